"""`dashboard`: records of all latents that fire, for the pages that show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from sae.artifacts import load
from sae.artifacts.placed import PlacedSAE
from sae.evals.base import Estimate, Evaluation, Measured, register
from sae.features import Records, own_text, records
from sae.features.ablated import ablated, chosen
from sae.features.effects import at_one_point
from sae.features.sets import weights_by_set
from sae.settings import Absolute, Some, setting
from sae.tables import Table, Type
from sae.types import Split

Format = Literal["saedashboard", "neuronpedia", "neuronpedia_bulk", "circuit_tracer", "delphi"]


@register
class DashboardEval(Evaluation):
    """Pages of all latents that fire (docs/guides/dashboard.md).

    Table `latents` has a row per latent that fires. The training text may be read, since pages are
    for people to look at; no score comes from it.
    """

    name: ClassVar[str] = "dashboard"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    joined: ClassVar[bool] = True
    text: Literal["auto", "train", "test"] = setting(
        "auto", help="the split that is read; auto: train where its activations are cached"
    )
    text_file: Absolute | None = setting(
        None, help="a text of your own (UTF-8); a page shows the latents that fire on it"
    )
    ablate: Some = setting(
        0, help="latents whose effect on the logits is measured: how many, or a list of them"
    )
    num_tokens: int = setting(1_000_000, ge=1, help="tokens that are read, the first of the split")
    against: tuple[str, ...] = setting((), help="runs of other seeds, for the stability of latents")
    features: tuple[Absolute, ...] = setting(
        (), help="features.json files of other evaluations; the table gets a column of weights each"
    )
    export: tuple[Format, ...] = setting(
        (), help="formats of other tools, written into export/ beside the pages"
    )
    serve: bool = setting(
        False, help="evaluate.py serves the finished dashboard at 127.0.0.1, with live text"
    )
    port: int = setting(8731, ge=0, le=65_535, help="of serve; if it is taken, a free one")
    batch_rows: int = setting(2048, ge=1, help="vectors encoded at once; decides memory")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Make the records, or find them in the cache."""
        (one,) = subjects
        written = None if self.text_file is None else self._written(one, Path(self.text_file))
        sets = weights_by_set(self.features, one)
        if self.ablate:
            at_one_point(one)  # refuses others now, not after the passes
        others = [load(Path(run)) for run in self.against]
        found = records(
            one,
            split=None if self.text == "auto" else self.text,
            num_tokens=self.num_tokens,
            batch_rows=self.batch_rows,
            against=others,
        )
        latents = found.facts["latents"]
        metrics = {
            "live": Estimate(float(len(found))), "silent": Estimate(1 - len(found) / latents)
        }  # fmt: skip
        details = {
            "records": str(found.folder), "weights": found.weights, "export": list(self.export),
            "text": found.facts["text"], "split": found.facts["split"], "own_text": None,
            "run": one.name, "sets": sets,
        }  # fmt: skip
        tables = {"latents": found.table()}
        if written is not None:
            file = own_text.kept(one, found, written)
            details["own_text"] = str(file)
            tables["own_text"] = own_text.as_table(own_text.reading_in(file), found)
        if self.ablate:
            tables["ablated"] = _effects(one, found, chosen(found, self.ablate))
        stability = found.stability()
        metrics |= {name: Estimate(value) for name, value in stability.items()}
        return Measured(
            metrics=metrics,
            on=found.facts["split"],
            tokens={"tokens": found.facts["tokens"], "vectors": found.num_rows},
            details=details,
            tables=tables,
        )

    def _written(self, one: PlacedSAE, file: Path) -> own_text.Written:
        what = f"{self.where}text_file={file}"
        return own_text.write(one, own_text.text_in(file, what), what)


def _effects(one: PlacedSAE, found: Records, names: list[str]) -> Table:
    types: dict[str, tuple[Type, str]] = {
        "latent": ("string", ""), "kl": ("float64", "nats"), "kl_random": ("float64", "nats"),
        "positions": ("int64", ""), "contexts": ("int64", ""),
    }  # fmt: skip
    rows = [
        {"latent": name, **effect._asdict()} for name, effect in ablated(one, found, names).items()
    ]
    return Table.of(types, rows)
