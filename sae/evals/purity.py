"""`purity`: of which tokens, parts of speech, entities and classes of texts firings are."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

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
from sae.evals.purity_sets import (
    LOOKUP,
    SET_COLUMNS,
    OfSet,
    estimate,
    measured_set,
    over_sets,
    require_enough,
)
from sae.features.by_column import BY_COLUMN, firings_by_column
from sae.features.compared import COMPARED, Dictionary, compared, named
from sae.features.firings import FiringStore
from sae.features.labelled_text import LabelledText, RowLabels
from sae.features.make import all_firings, contexts_in
from sae.features.purity import MIN_CONTEXTS, chance, purities
from sae.language.pieces import token_bytes
from sae.language.text import special_ids
from sae.progress import progress
from sae.settings import setting
from sae.tables import Column, Table, Type
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv
from sae.tasks.tagged import require_tagger, token_labels
from sae.types import Split

HEADLINE = "pos_given_token"
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
_DECILES: dict[str, tuple[Type, str]] = {
    "dictionary": ("string", ""), "decile": ("int64", ""),
    **{name: ("float64", "") for name in NAMES if name.endswith(("entropy", "purity"))},
}  # fmt: skip


@register
class PurityEval(Resampled):
    """Purity of latents by token and by linguistic label, and what labels say beyond the token.

    The headline, `pos_given_token`, is the share of the uncertainty about firing given the token
    that the part of speech explains: I(fires; label | token) / H(fires | token), less that of
    labels shuffled within tokens. Purity itself rewards token identity. Bases and random
    directions are measured beside the SAE at equal firing counts. `sets` and `csv` give classes of
    whole texts. These are shuffled over texts and not over rows, and bases as they are, which fire
    in every text, are left out beside them (docs/guides/purity.md).
    """

    name: ClassVar[str] = "purity"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    controls: tuple[str, ...] = setting(
        (), help="trained controls: runs, or sweeps, with a frozen decoder or of a random LM"
    )
    seeds: tuple[str, ...] = setting((), help="runs of other seeds, for intervals over seeds")
    sets: tuple[str, ...] = setting(
        (), help="binary sets in the wheel sae-probes, whose classes are labels of whole texts; "
        "all: all 113",
    )  # fmt: skip
    csv: str = setting("", help="a CSV file with the columns text,label (two or more classes)")
    max_texts: int = setting(200, ge=MIN_CONTEXTS, help="texts of each class, the first ones")
    max_tokens: int = setting(128, ge=2, help="longer texts lose their end")
    num_tokens: int = setting(1_000_000, ge=1, help="test tokens that are read, the first ones")
    shuffles: int = setting(5, ge=1, help="how often labels are shuffled")
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
        sets = self._sets()  # all are read, and may be refused, first
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
            others.append(Dictionary(LOOKUP, purities(text, text.lookup()), len(text.rows), {}))
            advance(1)
        if not saes[0].found.latent:
            raise ConfigError(
                f"No latent fires in enough contexts of {len(text.rows):,} rows. Measure on more "
                "tokens (tokens=…, eval.purity.num_tokens)."
            )
        rows = compared(saes, others, NAMES, self.bootstrap)
        metrics = {name: estimate(saes, name, self.bootstrap) for name in NAMES}
        for row in rows:
            if row["number"] == HEADLINE and row.get("coverage", 0) >= LEAST_COVERAGE:
                key = f"{HEADLINE}_over_{row['control'].replace(' ', '_').replace('-', '')}"
                bounds = (row.get(f"difference{end}") for end in ("", "_low", "_high"))
                metrics[key] = Estimate(*bounds)
        measured = time.perf_counter()
        of_sets = self._of_sets(sets, ours, controls)
        found = [of for of in of_sets if of is not None]
        left_out = [one.name for one, of in zip(sets, of_sets, strict=True) if of is None]
        if found:
            metrics |= over_sets(found, self.bootstrap)
        store = one.source.store(on)
        contexts = contexts_in(store, self.num_tokens)
        return Measured(
            metrics=metrics,
            tokens={
                "tokens": contexts * store.spec.ctx, "vectors": len(text.rows),
                "latents": len(saes[0].found.latent), "documents": text.num_documents,
                **({"sets": len(found)} if found else {}),
            },
            details={
                "l0": l0, "chance": chance(text), "groups_of_documents": text.num_groups,
                "too_rare": saes[0].found.rare, "seeds": len(saes),
                "controls": {
                    one.name: {"latents": len(one.found.latent), "too_rare": one.found.rare,
                               **one.facts}
                    for one in others
                },
                "missing": missing_controls(one, given),
                "seconds": {
                    "fit": round(fitted - start, 1), "label": round(tagged - fitted, 1),
                    "measure": round(measured - tagged, 1),
                    "sets": round(time.perf_counter() - measured, 1),
                },
                "sets": [of.facts for of in found],
                "sets_left_out": left_out,
            },
            tables={
                "latents": _latents(saes[0]), "compared": Table.of(COMPARED, rows),
                "deciles": Table.of(_DECILES, _deciles([saes[0], *others])),
                "sets": Table.of(SET_COLUMNS, [row for of in found for row in of.rows]),
            },
        )  # fmt: skip

    def _sets(self) -> list[LabelledTexts]:
        found = probe_sets(self.sets) if self.sets else []
        if self.csv:
            found.append(read_csv(self.csv))
            require_enough(found[-1])
        return [labelled.first_of_each(self.max_texts) for labelled in found]

    def _of_sets(
        self, sets: Sequence[LabelledTexts], saes: Sequence[Control], controls: Sequence[Control]
    ) -> list[OfSet | None]:
        found = []
        with progress("measure sets", len(sets), "sets") as advance:
            for labelled in sets:
                found.append(measured_set(
                    labelled, saes, controls, max_tokens=self.max_tokens, shuffles=self.shuffles,
                    batch_rows=self.batch_rows, bootstrap=self.bootstrap,
                ))  # fmt: skip
                advance(1)
        return found

    def _firings(self, one: PlacedSAE, on: Split) -> FiringStore:
        return all_firings(one, on, num_tokens=self.num_tokens, batch_rows=self.batch_rows)

    def _measured(self, control: Control, text: LabelledText, on: Split) -> Dictionary:
        one, facts = control.placed, dict(control.facts)
        if control.dense and one.sae.config.activation in BY_COLUMN:
            signed = one.sae.config.activation == "identity"
            of = np.linspace(0, one.sae.d_sae * (1 + signed) - 1, DENSE_LATENTS)
            latents = np.unique(of.round().astype(int)).tolist()
            found = firings_by_column(one.sae, one.rows(on), text.counted, latents)
            measured = purities(text, ((str(i), fired) for i, fired in found))
            facts["measured_latents"] = len(latents)
        else:
            firings = self._firings(one, on)
            if not np.array_equal(firings.counted, text.counted):
                facts["other_rows"] = int((firings.counted != text.counted).sum())
            found = (
                pair for group in firings.groups()
                for pair in zip(group, firings.read(group), strict=True)
            )  # fmt: skip
            measured = purities(text, named(found, one.sae.d_sae, text))
        return Dictionary(control.name, measured, len(text.rows), facts)


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


def _latents(one: Dictionary) -> Table:
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


def _deciles(dictionaries: Sequence[Dictionary]) -> Iterator[dict[str, Any]]:
    for one in dictionaries:
        means = {}
        for name, values in one.found.deciles.items():
            there = np.isfinite(values)
            sums = np.where(there, values, 0).sum(0)
            means[name] = np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan)
        for decile in range(10) if means else ():
            values = {name: float(mean[decile]) for name, mean in means.items()}
            yield {"dictionary": one.name, "decile": decile + 1, **values}
