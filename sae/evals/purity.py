"""`purity`: of which tokens, parts of speech and named entities the firings of latents are."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import Estimate, Measured, Resampled, register
from sae.evals.controls import (
    Control,
    fitted_controls,
    given_controls,
    missing_controls,
    other_seeds,
)
from sae.features.by_column import BY_COLUMN, firings_by_column
from sae.features.firings import Firings, FiringStore
from sae.features.make import all_firings, contexts_in
from sae.features.purity import LabelledText, Purities, RowLabels
from sae.language.pieces import token_bytes
from sae.language.text import special_ids
from sae.metrics.matched import (
    Matched,
    Mean,
    Sample,
    matched_means,
    mean_of,
    plain_mean,
    seed_interval,
)
from sae.progress import progress
from sae.settings import setting
from sae.tables import Column, Table, Type
from sae.tasks.tagged import require_tagger, token_labels
from sae.types import Split

HEADLINE = "pos_given_token"
LOOKUP = "token lookup"
NAMES = (
    "token_entropy", "token_purity",
    "pos_entropy", "pos_purity", "pos_given_token", "pos_bits", "pos_consistency",
    "entity_entropy", "entity_purity", "entity_given_token", "entity_bits", "entity_consistency",
)  # fmt: skip
"""Numbers of a latent that dictionaries are compared by."""
DENSE_LATENTS = 256
"""Latents of a basis as it is that are measured, evenly spaced: each fires on half of the rows."""
LEAST_COVERAGE = 0.05
"""Share of the SAE's latents under which a comparison is in the table alone."""
_COMPARED: dict[str, tuple[Type, str]] = {
    "control": ("string", ""), "number": ("string", ""), "latents": ("int64", ""),
    "coverage": ("float64", "share"),
    **{f"{who}{end}": ("float64", "")
       for who in ("sae", "of_control", "difference") for end in ("", "_low", "_high")},
    "seeds": ("int64", ""), "seed_low": ("float64", ""), "seed_high": ("float64", ""),
}  # fmt: skip
_DECILES: dict[str, tuple[Type, str]] = {
    "dictionary": ("string", ""), "decile": ("int64", ""),
    **{name: ("float64", "") for name in NAMES if name.endswith(("entropy", "purity"))},
}  # fmt: skip


class _Dictionary(NamedTuple):
    """A dictionary that was measured."""

    name: str
    found: Purities
    num_rows: int
    facts: Mapping[str, Any]

    def sample(self, name: str) -> Sample:
        found = self.found
        return Sample(found.firings / self.num_rows, found.values[name], found.influence[name])


@register
class PurityEval(Resampled):
    """Purity of latents by token and by linguistic label, and what labels say beyond the token.

    The headline, `pos_given_token`, is the share of the uncertainty about firing given the token
    that the part of speech explains: I(fires; label | token) / H(fires | token), less that of
    labels shuffled within tokens. Purity itself rewards token identity. Bases and random
    directions are measured beside the SAE at equal firing counts (docs/guides/purity.md).
    """

    name: ClassVar[str] = "purity"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    controls: tuple[str, ...] = setting(
        (), help="trained controls: runs, or sweeps, with a frozen decoder or of a random LM"
    )
    seeds: tuple[str, ...] = setting((), help="runs of other seeds, for intervals over seeds")
    num_tokens: int = setting(1_000_000, ge=1, help="test tokens that are read, the first ones")
    shuffles: int = setting(5, ge=1, help="how often labels are shuffled within tokens")
    batch_rows: int = setting(2048, ge=1, help="vectors encoded at once; decides memory")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure the SAE, its other seeds and all controls on the same rows."""
        (one,) = subjects
        require_tagger()
        if not isinstance(one.source, LMActivations):
            raise ConfigError(
                "eval=purity needs the tokens behind the activations. Choose an SAE of an LM's "
                "activations."
            )
        start = time.perf_counter()
        firings = self._firings(one, on)
        l0 = float(firings.counts.sum() / max(1, firings.counted.sum()))
        given = given_controls(one, self.controls)
        controls = [*fitted_controls(one, l0), *given]
        ours = [
            Control("SAE", one),
            *(Control("SAE", seed) for seed in other_seeds(one, self.seeds)),
        ]
        fitted = time.perf_counter()
        text = labelled_text(one, on, firings, self.shuffles)
        tagged = time.perf_counter()
        saes, others = [], []
        with progress("measure purity", len(ours) + len(controls) + 1, "dictionaries") as advance:
            for group, measured in ((ours, saes), (controls, others)):
                for control in group:
                    measured.append(self._measured(control, text, on))
                    advance(1)
            others.append(_Dictionary(LOOKUP, text.measure(text.lookup()), len(text.rows), {}))
            advance(1)
        if not saes[0].found.latent:
            raise ConfigError(
                f"No latent fires in enough contexts of {len(text.rows):,} rows. Measure on more "
                "tokens (tokens=…, eval.purity.num_tokens)."
            )
        rows = self._compared(saes, others)
        metrics = {name: self._estimate([one.sample(name) for one in saes]) for name in NAMES}
        for row in rows:
            if row["number"] == HEADLINE and row.get("coverage", 0) >= LEAST_COVERAGE:
                key = f"{HEADLINE}_over_{row['control'].replace(' ', '_').replace('-', '')}"
                bounds = (row.get(f"difference{end}") for end in ("", "_low", "_high"))
                metrics[key] = Estimate(*bounds)
        store = one.source.store(on)
        contexts = contexts_in(store, self.num_tokens)
        return Measured(
            metrics=metrics,
            tokens={
                "tokens": contexts * store.spec.ctx, "vectors": len(text.rows),
                "latents": len(saes[0].found.latent), "documents": text.num_documents,
            },
            details={
                "l0": l0, "chance": text.chance(), "groups_of_documents": text.num_groups,
                "too_rare": saes[0].found.rare, "seeds": len(saes),
                "controls": {
                    one.name: {"latents": len(one.found.latent), "too_rare": one.found.rare,
                               **one.facts}
                    for one in others
                },
                "missing": missing_controls(one, given),
                "seconds": {
                    "fit": round(fitted - start, 1), "label": round(tagged - fitted, 1),
                    "measure": round(time.perf_counter() - tagged, 1),
                },
            },
            tables={
                "latents": _latents(saes[0]), "compared": Table.of(_COMPARED, rows),
                "deciles": Table.of(_DECILES, _deciles([saes[0], *others])),
            },
        )  # fmt: skip

    def _firings(self, one: PlacedSAE, on: Split) -> FiringStore:
        return all_firings(one, on, num_tokens=self.num_tokens, batch_rows=self.batch_rows)

    def _measured(self, control: Control, text: LabelledText, on: Split) -> _Dictionary:
        one, facts = control.placed, dict(control.facts)
        if control.dense and one.sae.config.activation in BY_COLUMN:
            signed = one.sae.config.activation == "identity"
            of = np.linspace(0, one.sae.d_sae * (1 + signed) - 1, DENSE_LATENTS)
            latents = np.unique(of.round().astype(int)).tolist()
            found = firings_by_column(one.sae, one.rows(on), text.counted, latents)
            measured = text.measure((str(i), fired) for i, fired in found)
            facts["measured_latents"] = len(latents)
        else:
            firings = self._firings(one, on)
            if not np.array_equal(firings.counted, text.counted):
                facts["other_rows"] = int((firings.counted != text.counted).sum())
            measured = text.measure(_named(firings, one.sae.d_sae, text))
        return _Dictionary(control.name, measured, len(text.rows), facts)

    def _estimate(self, samples: Sequence[Sample]) -> Estimate:
        """Mean over latents (and seeds), with its interval over documents."""
        means = [mean for sample in samples if (mean := plain_mean(sample))]
        if not means:
            return Estimate(None)
        mean = mean_of(means)
        return Estimate(mean.value, *(mean.interval(self.bootstrap) or ()))

    def _compared(self, saes: list[_Dictionary], others: list[_Dictionary]) -> list[dict[str, Any]]:
        """A row for each control and number, at equal firing counts."""
        rows = []
        for name in dict.fromkeys(one.name for one in others):
            group = [one for one in others if one.name == name and one.found.latent]
            for number in NAMES if group else ():
                row = {"control": name, "number": number,
                       "latents": sum(len(one.found.latent) for one in group)}  # fmt: skip
                found = matched_means(
                    [one.sample(number) for one in saes], [one.sample(number) for one in group]
                )
                rows.append(row | (self._row(found) if found else {}))
        return rows

    def _row(self, found: Matched) -> dict[str, Any]:
        first, second = mean_of(found.first), mean_of(found.second)
        row: dict[str, Any] = {"coverage": found.coverage, "seeds": len(found.first)}
        for name, mean in (("sae", first), ("of_control", second), ("difference", first - second)):
            low, high = mean.interval(self.bootstrap) or (None, None)
            row |= {name: mean.value, f"{name}_low": low, f"{name}_high": high}
        between = seed_interval(_values(found.first), _values(found.second), self.bootstrap.level)
        row["seed_low"], row["seed_high"] = between or (None, None)
        return row


def labelled_text(
    one: PlacedSAE, on: Split, firings: FiringStore, shuffles: int = 5
) -> LabelledText:
    """The first contexts of a split with the labels of their tokens, by rows.

    Args:
        one: An SAE of an LM's activations.
        on: The split.
        firings: Its firings, which say how many rows are read and which count.
        shuffles: See `LabelledText`.

    Raises:
        ConfigError: If the tagger is not installed.
    """
    store, tokenizer = one.source.store(on), one.source.source.load_tokenizer()
    vocabulary = token_bytes(tokenizer)
    for special in special_ids(tokenizer, every=True):
        if special < len(vocabulary):
            vocabulary[special] = b""
    contexts = len(firings.counted) // store.spec.rows_per_context
    tokens, document = store.tokens[:contexts], store.document[:contexts]
    first = store.spec.ctx - store.spec.rows_per_context

    def by_row(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[:, first:]).ravel()

    labels = token_labels(tokens, document, vocabulary)
    return LabelledText(
        by_row(tokens), by_row(document),
        np.repeat(np.arange(contexts), store.spec.rows_per_context), firings.counted,
        {kind: RowLabels(by_row(one.of), one.names) for kind, one in labels.items()},
        shuffles=shuffles,
    )  # fmt: skip


def _named(firings: FiringStore, d_sae: int, text: LabelledText) -> Iterator[tuple[str, Firings]]:
    """All latents by their names, on the rows that count for the SAE and here."""
    for group in firings.groups():
        for index, fired in zip(group, firings.read(group), strict=True):
            negative, latent = divmod(index, d_sae)
            there = text.counted[fired.row]
            yield f"{'-' if negative else ''}{latent}", Firings(*(part[there] for part in fired))


def _latents(one: _Dictionary) -> Table:
    """A row for each latent of the SAE."""
    found = one.found
    columns = {
        "latent": Column("string", "", found.latent),
        "firings": Column("int64", "", found.firings),
        "density": Column("float64", "share", found.firings / one.num_rows),
    }
    columns |= {kind: Column("string", "", names) for kind, names in found.label.items()}
    for name, values in found.values.items():
        columns[name] = Column("float64", _unit(name), values)
    return Table(columns)


def _unit(name: str) -> str:
    if name.endswith(("entropy", "bits", "information", "shuffled", "uncertainty")):
        return "" if "consistency" in name else "bits"
    return "share" if name.endswith(("purity", "given_token")) else ""


def _deciles(dictionaries: Sequence[_Dictionary]) -> Iterator[dict[str, Any]]:
    for one in dictionaries:
        means = {}
        for name, values in one.found.deciles.items():
            there = np.isfinite(values)
            sums = np.where(there, values, 0).sum(0)
            means[name] = np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan)
        for decile in range(10) if means else ():
            values = {name: float(mean[decile]) for name, mean in means.items()}
            yield {"dictionary": one.name, "decile": decile + 1, **values}


def _values(means: Sequence[Mean]) -> list[float]:
    return [mean.value for mean in means]
