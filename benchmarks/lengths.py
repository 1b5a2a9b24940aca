"""Defaults beside plain Adam, in short and in long runs, on the world of benchmarks.quality.

    python -m benchmarks.lengths                                    all lengths, three seeds
    python -m benchmarks.lengths --steps 320 --recipes default --architectures topk

Runs that are done are kept in the work folder and not repeated: an interrupted benchmark goes on.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.common import Result, Table, arguments
from benchmarks.dead import Short
from benchmarks.quality.contender import Fitted
from benchmarks.quality.data import SYNTHETIC, Data, Size, prepare
from benchmarks.quality.measure import measured
from benchmarks.runs import configuration, temporary_cache
from sae.activations.from_config import build_source
from sae.dictionaries import ARCHITECTURES
from sae.dictionaries.untied import Untied
from sae.provenance import content_key, write_json
from sae.training.from_config import build_module
from sae.training.optimizers import LONG_RUN_STEPS

WORK = Path("outputs/lengths")
LR = 3e-3
L0 = 8
BATCH = 128
PASS_STEPS = 8000
"""Steps after which vectors come again."""
WORDS = {
    "topk": [f"k={L0}"], "batch_topk": [f"k={L0}"], "gated": [f"target_l0={L0}"],
    "l1": [f"target_l0={L0}"], "jumprelu": [f"target_l0={L0}"],
}  # fmt: skip
SHORT_ROWS = "short rows"
"""Recipe: encoder rows start as short as in a run below `LONG_RUN_STEPS`."""
RECIPES = {
    "default": [],
    "plain": [
        "optimizer.beta1=0.9", "optimizer.beta2=0.999", "optimizer.bias_rate=1",
        "trainer.gradient_clip=0", "sae.start_bias=0",
    ],
    "biases at the common rate": ["optimizer.bias_rate=1"],
    "moments .9, .999": ["optimizer.beta1=0.9", "optimizer.beta2=0.999"],
    "moments .5, .99": ["optimizer.beta1=0.5", "optimizer.beta2=0.99"],
    "start 0": ["sae.start_bias=0"],
    "clip .01": ["trainer.gradient_clip=0.01"],
    SHORT_ROWS: [],
}  # fmt: skip
"""Overrides by recipe; `plain` is Adam as it is written, from a dense start."""
SHOWN = ("recovered", "fvu", "silent")


def main(argv: Sequence[str] | None = None) -> Path:
    """Train what is not done yet, write the result; returns the page."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[320, 3000, 12_000])
    parser.add_argument("--architectures", nargs="+", choices=WORDS, default=list(WORDS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["default", "plain"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of data and records")
    given = parser.parse_args(argv)
    held, steps = (256, [40]) if given.quick else (16_384, given.steps)
    size = Size(BATCH * min(PASS_STEPS, max(steps)), val=held // 2, test=held, batch=BATCH)
    result = Result("lengths", asdict(size) | {"lr": LR, "l0": L0, "seeds": given.seeds})
    with temporary_cache(given.quick) as folder:
        work = folder if given.quick else given.work
        data = prepare(SYNTHETIC, size, work)
        for length in steps:
            table = Table(
                f"{length} steps of {BATCH}", ["architecture", "recipe", "seeds", *SHOWN, "L0"]
            )
            for word in given.architectures:
                for recipe in given.recipes:
                    runs = [_Run(data, word, recipe, length, seed) for seed in range(given.seeds)]
                    seeds = [
                        one.recorded(work) for one in runs
                        if not given.report or one.file(work).exists()
                    ]  # fmt: skip
                    if not seeds:
                        continue
                    result.raw.setdefault(f"{word}, {length} steps", {})[recipe] = seeds
                    means = [spread([one[name] for one in seeds]) for name in SHOWN]
                    l0 = statistics.mean(one["l0"] for one in seeds)
                    table.rows.append([word, recipe, len(seeds), *means, l0])
            result.tables.append(table)
    result.notes += [
        "Mean and standard deviation over the seeds, on the test split. recovered: share of the "
        "512 features with an atom above a cosine of 0.9; silent: share of the latents.",
        "Added to the command line: "
        + "; ".join(f"{name}: {' '.join(words) or 'nothing'}" for name, words in RECIPES.items())
        + f". {SHORT_ROWS}: encoder rows start at a fifth of their length (`topk`, `jumprelu`).",
        "Runs are kept and may be older than the commit above.",
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread([0.8, 0.9, 1.0])
        '.900 ± .100'
    """
    shown = f"{statistics.mean(values):.3f}".removeprefix("0")
    if len(values) == 1:
        return shown
    return f"{shown} ± {statistics.stdev(values):.3f}".replace("± 0.", "± .")


def words_of(architecture: str, recipe: str) -> list[str]:
    """Overrides of a run: the part of the recipe that the architecture has."""
    options = ARCHITECTURES[architecture].Config.model_fields
    words = [
        word for word in RECIPES[recipe]
        if not word.startswith("sae.") or word[4:].partition("=")[0] in options
    ]  # fmt: skip
    return [f"sae={architecture}", *WORDS[architecture], *words]


@dataclass(frozen=True)
class _Run:
    """One training: some steps on `data`."""

    data: Data
    architecture: str
    recipe: str
    steps: int
    seed: int

    def words(self) -> list[str]:
        return [
            *words_of(self.architecture, self.recipe), "dict_ratio=4", f"optimizer.lr={LR}",
            f"seed={self.seed}", *self.data.overrides(),
            f"epochs={-(-self.steps // self.data.steps)}", "trainer.validations=0",
        ]  # fmt: skip

    def key(self) -> dict[str, Any]:
        words = self.words()
        key = {"words": words, "steps": self.steps, "defaults": _defaults(words)}
        return key | ({"recipe": SHORT_ROWS} if self.recipe == SHORT_ROWS else {})

    def file(self, work: Path) -> Path:
        name = f"{self.architecture}-{self.steps}-{self.seed}-{content_key(self.key())}.json"
        return work / "records" / name

    def recorded(self, work: Path) -> dict[str, Any]:
        """The record, made now unless it is there."""
        file = self.file(work)
        if not file.exists():
            short = self.recipe == SHORT_ROWS
            values = trained(self.data, self.words(), self.steps, short_rows=short)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, values | {"key": self.key()})
        return json.loads(file.read_text())


def _defaults(words: Iterable[str]) -> dict[str, Any]:
    """Defaults that the overrides leave open; a record belongs to these values."""
    config = configuration(list(words), quick=False)
    return {node: config[node] for node in ("sae", "optimizer", "resample", "trainer")}


def trained(
    data: Data, words: Sequence[str], steps: int, short_rows: bool = False
) -> dict[str, float]:
    """Train one SAE for so many steps and measure it on the test split."""
    config = configuration(words, quick=False)
    source = build_source(config["activations"], config["lm"], config["corpus"], "cpu")
    source.prepare()
    order = Short(
        source, batch_size=BATCH, epochs=config["epochs"], seed=config["activations"]["seed"],
        buffer_rows=config["activations"]["buffer_rows"],
        normalize=config["activations"]["normalize"],
    )  # fmt: skip
    order.limit = steps
    module = build_module(config, order)
    if short_rows and isinstance(module.dictionary, Untied) and steps >= LONG_RUN_STEPS:
        with torch.no_grad():
            module.dictionary.encoder_rows.mul_(module.dictionary.encoder_start)
    trainer = L.Trainer(
        accelerator="cpu", precision="32-true", max_steps=order.steps, max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, log_every_n_steps=steps,
        gradient_clip_val=config["trainer"]["gradient_clip"] or None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        trainer.fit(module, datamodule=order)
    sae = module.dictionary.folded(order.scale)
    fitted = Fitted(sae.encode, sae.decode, sae.W_dec.detach(), factor=1.0)
    return measured(fitted, data, "test")


if __name__ == "__main__":
    main()
