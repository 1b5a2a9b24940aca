"""Ways against dead latents, on equal data: resampling, AuxK, and where training starts.

    python -m benchmarks.dead                         all that docs/results/dead-latents.md compares
    python -m benchmarks.dead --worlds resid          activations at one site alone

Runs that are done are kept in the cache and not repeated: an interrupted benchmark goes on.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.common import Result, Table, arguments
from benchmarks.runs import configuration, temporary_cache
from sae import functional
from sae.activations.datamodule import ActivationDataModule
from sae.activations.from_config import build_source
from sae.activations.rows import Rows
from sae.activations.sources import ActivationSource
from sae.activations.superposition import SuperpositionRows
from sae.dictionaries.untied import Untied
from sae.kernels import unit_rows
from sae.provenance import cache_dir, content_key, write_json
from sae.reports.style import TONES, axes_of
from sae.training.from_config import build_module
from sae.training.module import SAEModule

WORLDS = {
    "resid": ["site=resid", "dict_ratio=8"],
    "mlp": ["site=mlp", "dict_ratio=2"],
    "synthetic": [
        "activations=superposition", "activations.d_in=128", "activations.num_features=512",
        "activations.active=6", "activations.decay=1", "activations.zipf=1",
        "activations.rescale=true", "activations.branch=correlated", "activations.hierarchy=0.25",
        "activations.noise=0.03", "activations.seed=7", "dict_ratio=4", "optimizer.lr=1e-2",
    ],
}  # fmt: skip
"""Sites of the default LM, and the world of benchmarks/quality."""
ARCHITECTURES = {
    "l1": ["sae=l1", "target_l0=8"],
    "tied": ["sae=tied", "target_l0=8"],
    "topk": ["sae=topk", "k=8", "sae.auxk=0"],
}
# sparse, and at a large rate, so that latents do die: elsewhere so short a run kills none
NONE = ["resample=none"]
LR = 3e-3
"""On the LM."""
BEFORE, AFTER = 20, 200
"""Steps whose mean loss a spike is compared with, and steps in which it is looked for."""


@dataclass(frozen=True)
class Way:
    """One way to have fewer dead latents.

    Attributes:
        words: What it adds to the command line.
        start: What it changes before the first step.
        only: The architectures that have it.
    """

    words: Sequence[str]
    start: Callable[[Any], object] = lambda dictionary: None
    only: Sequence[str] = tuple(ARCHITECTURES)


@torch.no_grad()
def _encoder_apart(dictionary: Untied) -> None:
    drawn = torch.randn(dictionary.encoder_rows.shape, generator=torch.Generator().manual_seed(1))
    dictionary.encoder_rows.copy_(unit_rows(drawn))


@torch.no_grad()
def _no_centre(dictionary: Untied) -> None:
    dictionary.b_dec.zero_()


WAYS = {
    "none": Way(NONE),
    "drawn, toward input": Way(["resample=scaled", "resample.toward=input"]),
    "drawn, toward residual (scaled)": Way(["resample=scaled"]),
    "worst_example": Way(["resample=worst_example"], only=["l1", "topk"]),
    "AuxK": Way([*NONE, "sae.auxk=1"], only=["topk"]),
    "none, encoder biases from 0": Way([*NONE, "sae.start_bias=0"], only=["l1", "tied"]),
    "none, centred": Way([*NONE, "sae.centre=mean"], only=["tied"]),
    "none, encoder not the transpose": Way(NONE, _encoder_apart, only=["l1", "topk"]),
    "none, b_dec from 0, not the mean": Way(NONE, _no_centre, only=["l1", "topk"]),
}


@dataclass(frozen=True)
class Size:
    """How long the runs are.

    Attributes:
        steps: Optimiser steps.
        batch_size: Vectors in each.
        test_rows: Vectors of the test split that are measured.
        sample_tokens: Vectors among which a resampling chooses.
    """

    steps: int
    batch_size: int
    test_rows: int
    sample_tokens: int


class Watch(L.Callback):
    """Notes the loss of every step, and after which steps latents were revived."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.revivals: list[int] = []
        self._revived = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """One step."""
        assert isinstance(pl_module, SAEModule)
        self.losses.append(float(outputs["loss"]))
        if int(pl_module.revived) > self._revived:
            self._revived = int(pl_module.revived)
            self.revivals.append(len(self.losses))


class Short(ActivationDataModule):
    """The first `limit` steps of the order."""

    limit = 0

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return min(super().steps, self.limit)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train what is not done yet, write the result; returns the page."""
    parser = arguments(__doc__)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument(
        "--architectures", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES]
    )
    parser.add_argument("--steps", type=int, default=300, help="of 512 vectors")
    given = parser.parse_args(argv)
    size = Size(given.steps, 512, 32_768, 16_384)
    if given.quick:
        size = Size(40, 32, 256, 64)
    result = Result(given.name or "dead", asdict(size) | {"seed": 0})
    with temporary_cache(given.quick):
        for world in given.worlds:
            source = None
            for architecture in given.architectures:
                done: dict[str, dict[str, Any]] = {}
                for name, way in WAYS.items():
                    if architecture not in way.only:
                        continue
                    words = [f"optimizer.lr={LR}", *WORLDS[world], *ARCHITECTURES[architecture]]
                    words += way.words
                    words += ["k=4"] if given.quick and architecture == "topk" else []
                    key = content_key({"words": words, "name": name, "size": asdict(size)})
                    file = cache_dir() / "benchmarks" / "dead" / f"{key}.json"
                    if not file.exists():
                        config = _configuration(words, size, given.quick)
                        source = source or build_source(
                            config["activations"], config["lm"], config["corpus"], "cpu"
                        )
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_json(file, measured(config, source, way, size))
                    done[name] = json.loads(file.read_text())
                result.tables.append(_table(f"{architecture} on {world}", done))
                result.raw[f"{architecture} on {world}"] = done
    result.notes += [
        "dead: silent in the last tenth of the training; silent: on the test vectors.",
        f"spike: largest loss of a step in the {AFTER} steps after a resampling (fewer if the next "
        f"comes before), divided by the mean of the {BEFORE} steps before it; of several "
        "resamplings the largest.",
        "Added to the command line: "
        + "; ".join(" ".join(words) for words in (WORLDS | ARCHITECTURES).values()),
        "Runs are kept and may be older than the commit above; times are of a shared machine.",
        "One seed; a short run: what is rare has had little time to fire.",
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out, _plot(result.raw))


def _configuration(words: Sequence[str], size: Size, quick: bool) -> dict[str, Any]:
    own = [
        f"trainer.batch_size={size.batch_size}", f"resample.sample_tokens={size.sample_tokens}",
        "activations.buffer_rows=65536", "trainer.validations=0",
    ]  # fmt: skip
    return configuration([*words, *own], quick)


def measured(
    config: dict[str, Any], source: ActivationSource, way: Way, size: Size
) -> dict[str, Any]:
    """Train one SAE and measure it."""
    source.prepare()
    activations = config["activations"]
    data = Short(
        source,
        batch_size=size.batch_size,
        buffer_rows=activations["buffer_rows"],
        seed=activations["seed"],
        normalize=activations["normalize"],
    )
    data.limit = size.steps
    module = build_module(config, data)
    way.start(module.dictionary)
    watch, start = Watch(), time.perf_counter()
    trainer = L.Trainer(
        accelerator="cpu", precision=config["trainer"]["precision"], max_steps=data.steps,
        max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[watch],
        gradient_clip_val=config["trainer"]["gradient_clip"] or None,
        log_every_n_steps=data.steps,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {
        "dead": module.dead_share(),
        "revived": int(module.revived),
        "spike": spike(watch.losses, watch.revivals),
        "seconds": time.perf_counter() - start,
        **_tested(module, data, size.test_rows),
        "losses": [float(f"{loss:.4g}") for loss in watch.losses],
    }


@torch.no_grad()
def _tested(
    module: SAEModule, data: ActivationDataModule, num_rows: int
) -> dict[str, float | None]:
    rows, parts = data.rows("test"), []
    for chunk in range(rows.num_chunks):
        parts.append(rows.read(chunk).float())
        if sum(map(len, parts)) >= num_rows:
            break
    x = torch.cat(parts)[:num_rows]
    sae = module.dictionary.folded(data.scale)
    x_hat, fired, counts = [], 0, torch.zeros(sae.d_sae)
    for part in x.split(4096):
        f = sae.encode(part)
        x_hat.append(sae.decode(f))
        counts += (f != 0).sum(dim=0)
        fired += int((f != 0).sum())
    return {
        "recovered": _recovered(rows, sae.W_dec),
        "fvu": float(functional.fvu(x, torch.cat(x_hat))),
        "l0": fired / len(x),
        "silent": float((counts == 0).double().mean()),
    }


def _recovered(rows: Rows, atoms: torch.Tensor) -> float | None:
    """Share of the true features with an atom above a cosine of 0.9, where they are known."""
    if not isinstance(rows, SuperpositionRows):
        return None
    nearest = (rows.world.features @ unit_rows(atoms).T).amax(dim=1)
    return float((nearest > 0.9).double().mean())


def spike(losses: Sequence[float], revivals: Sequence[int]) -> float | None:
    """Largest loss soon after a revival, divided by the mean before it; None without any.

    Example:
        >>> spike([1.0, 1.0, 5.0, 2.0, 2.0, 3.0], [2, 5])
        5.0
    """
    found = []
    for start, following in pairwise([*revivals, len(losses)]):
        before = losses[max(0, start - BEFORE) : start]
        after = losses[start : min(start + AFTER, following)]
        if after:
            found.append(max(after) * len(before) / sum(before))
    return max(found, default=None)


def _table(title: str, done: dict[str, dict[str, Any]]) -> Table:
    columns = ["dead", "silent", "revived", "spike", "recovered", "fvu", "l0", "seconds"]
    return Table(
        title,
        ["way", *columns],
        [[name, *(record[column] for column in columns)] for name, record in done.items()],
    )


def _plot(raw: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Losses on the left, dead latents and FVU on the right; a row for each comparison."""
    figure = Figure(figsize=(11, 3.2 * len(raw)), layout="constrained")
    grid = axes_of(figure, len(raw), 2)
    colors = dict(zip(WAYS, TONES, strict=False))
    for (losses, shares), (title, done) in zip(grid, raw.items(), strict=True):
        for name, record in done.items():
            losses.plot(record["losses"], color=colors[name], label=name, linewidth=0.9)
            shares.scatter(100 * record["dead"], record["fvu"], color=colors[name], label=name)
        losses.set(title=title, yscale="log", xlabel="step", ylabel="training loss")
        shares.set(
            title=title, xlabel="dead at the end, %", ylabel="FVU on test vectors", yscale="log"
        )
        shares.set_xlim(-3, 103)
    lines = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=lines, fontsize=7, loc="outside right upper")
    return figure


if __name__ == "__main__":
    main()
