"""Defaults at places far apart: do FVU, L0 and silent latents hold on every layer and site?

    python -m benchmarks.places --harvest                  activations of all places, in one LM pass
    python -m benchmarks.places --jobs 2                   defaults at every place
    python -m benchmarks.places --places resid.15 --recipes default lr/2 lr*2   a grid at a place
    python -m benchmarks.places --report                   tables of what is recorded
    python -m benchmarks.places --lm gemma3-270m --places resid.3 resid.12      another LM

Runs that are done are kept in the work folder and not repeated: an interrupted benchmark goes on.
"""

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common import Result, Table, arguments
from benchmarks.quality.contender import Setting
from benchmarks.quality.data import Data, Size
from benchmarks.quality.from_sparsify import contenders
from benchmarks.quality.measure import measured
from benchmarks.runs import QUICK, configuration
from sae.activations.from_config import lm_activations
from sae.provenance import content_key, write_json
from sae.training.optimizers import OptimizerSettings
from sae.types import Point
from train import train

log = logging.getLogger(__name__)
WORK = Path("outputs/places")
LAYERS = (0, 4, 9, 15, 22, 28)
PLACES = [f"{site}.{layer}" for layer in LAYERS for site in ("resid", "mlp")]
PLACES += ["mlp_out.9", "attn_out.9"]
L0 = 32
SIZE = ["tokens=160000", "epochs=3", "dict_ratio=4"]
"""480,000 vectors for every run, 131,072 test tokens."""
FEWER = {"mlp": ["dict_ratio=1.5"]}
"""Where vectors are wider than the residual stream: on SmolLM2 2,304 latents as at other sites."""
WORDS = {
    "topk": [f"k={L0}"], "jumprelu": [f"target_l0={L0}"], "l1": [f"target_l0={L0}"],
    "tied": [f"target_l0={L0}"], "tied, l1=1e-3": ["l1=1e-3"],
}  # fmt: skip
LR = OptimizerSettings().lr
RECIPES = {
    "default": [],
    "lr/2": [f"optimizer.lr={LR / 2}"],
    "lr*2": [f"optimizer.lr={LR * 2}"],
    "lr*4": [f"optimizer.lr={LR * 4}"],
    "no clip": ["trainer.gradient_clip=0"],
    "moments .9, .999": ["optimizer.beta1=0.9", "optimizer.beta2=0.999"],
    "4 d_in latents": ["dict_ratio=4"],
}  # fmt: skip
"""Overrides by recipe; those after the first are the grid that a default is held against."""
PEER = "sparsify topk, adam"
_DECIDE = ("lm", "corpus", "activations", "sae", "resample", "optimizer", "trainer", "epochs")
"""Nodes of the configuration: a record belongs to their values."""
SHOWN = ("fvu", "fvu_median", "fvu_all_rows", "l0", "silent", "dense", "left_out")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        lm: Option of conf/lm.
        place: Site and layer, such as `resid.4`.
        word: Key of `WORDS`, or `PEER`.
        recipe: Key of `RECIPES`.
        quick: Tiny sizes.
    """

    lm: str
    place: str
    word: str
    recipe: str
    quick: bool

    def words(self) -> list[str]:
        """The overrides of train.py's command line."""
        site, layer = self.place.split(".")
        architecture = "topk" if self.word == PEER else self.word.partition(",")[0]
        chosen = WORDS["topk"] if self.word == PEER else WORDS[self.word]
        size = [] if self.quick else [f"lm={self.lm}", *SIZE]
        return [
            f"sae={architecture}", *chosen, f"site={site}", f"layer={layer}", *size,
            *FEWER.get(site, ()), *RECIPES[self.recipe], "eval=[core]", "~callbacks.downstream",
            "trainer.validations=0",
        ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Harvest, or train what is not done yet and write the result; returns the page."""
    parser = arguments(__doc__)
    parser.add_argument("--harvest", action="store_true", help="only fill the cache")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--lm", default="smollm2-135m", help="option of conf/lm")
    parser.add_argument("--places", nargs="+", default=PLACES)
    parser.add_argument("--architectures", nargs="+", choices=[*WORDS, PEER], default=list(WORDS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["default"])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, a core each")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of records")
    given = parser.parse_args(argv)
    if given.harvest:
        return harvest(given.lm, given.places, given.quick)
    runs = [
        Run(given.lm, place, word, recipe, given.quick)
        for place in given.places
        for word in given.architectures
        for recipe in (["default"] if word == PEER else given.recipes)
    ]
    if given.report:
        runs = [run for run in runs if _file(run, given.work)[0].exists()]
    if given.jobs == 1:
        found = {run: recorded(run, given.work) for run in runs}
    else:
        found = _side_by_side(runs, given.work, given.jobs)
    sizes = {"size": SIZE} | {f"at {site}": words for site, words in FEWER.items()}
    settings = {"lm": given.lm, "l0": L0} | {k: " ".join(v) for k, v in sizes.items()} | {"lr": LR}
    result = Result(given.name or "places", settings)
    tables = [_table(found, place) for place in given.places]
    result.tables = [table for table in tables if table.rows]
    result.raw = {f"{r.place}, {r.word}, {r.recipe}": value for r, value in found.items()}
    result.notes += [
        "FVU, its median over rows, L0, silent (never fires) and dense (fires on over 10 %) on "
        "the test rows that count; left out: share of the test rows that do not.",
        f"best of grid: lowest FVU of the recipes run there, at an L0 within 5 % of {L0}.",
        "Recipes add to the command line: "
        + "; ".join(f"{name}: {' '.join(words) or 'nothing'}" for name, words in RECIPES.items()),
        "Runs are kept and may be older than the commit above. One seed.",
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out)


def harvest(lm: str, places: Sequence[str], quick: bool) -> None:
    """Fill the cache for all places in one LM pass a split."""
    config = configuration([] if quick else [f"lm={lm}", *SIZE], quick)
    first, *others = (Point(site, int(layer)) for site, layer in (p.split(".") for p in places))
    source = lm_activations(config["lm"], config["corpus"], first, config["activations"])
    source.prepare(also=others)


def _side_by_side(runs: Sequence[Run], work: Path, jobs: int) -> dict[Run, dict[str, float]]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # the processes that are started now read it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = {pool.submit(recorded, run, work): run for run in runs}
        for future in as_completed(waiting):
            future.result()  # the first error ends the benchmark
    return {run: recorded(run, work) for run in runs}


def recorded(run: Run, work: Path) -> dict[str, float]:
    """The record of a run, made now unless it is there."""
    file, key = _file(run, work)
    if not file.exists():
        values = _peer(run) if run.word == PEER else _ours(run, work)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "values": values})
        log.warning("%s %s", file.stem, {k: round(v, 4) for k, v in values.items()})
    return json.loads(file.read_text())["values"]


@cache  # composing a configuration takes a third of a second
def _file(run: Run, work: Path) -> tuple[Path, dict[str, Any]]:
    """Where the record of a run is, and what decides it."""
    config = configuration(run.words(), run.quick)
    key = {"run": str(run), **{node: config[node] for node in _DECIDE}}
    name = f"{run.lm}-{run.place}-{run.word}-{run.recipe}".translate(str.maketrans(" ,/*", "____"))
    return work / "records" / f"{name}-{content_key(key)}.json", key


def _ours(run: Run, work: Path) -> dict[str, float]:
    folder = work / "runs" / content_key({"run": str(run)})
    shutil.rmtree(folder, ignore_errors=True)
    metrics = train(configuration(run.words(), run.quick), folder)["core"]["metrics"]
    shutil.rmtree(folder)
    return {name: metrics[name]["value"] for name in SHOWN}


@dataclass(frozen=True)
class _Harvested(Data):
    """The rows of a place, as a contender of benchmarks.quality reads them.

    Attributes:
        words: Command line of the run whose batches they are.
    """

    words: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        """Its words, as a list."""
        return list(self.words)


def _peer(run: Run) -> dict[str, float]:
    """Sparsify's TopK with Adam by its own trainer, on the same batches and test rows."""
    words = (*(QUICK if run.quick else ()), *run.words())
    config = configuration(words, quick=False)
    size = Size(vectors=0, val=0, test=0, batch=config["trainer"]["batch_size"])
    data = _Harvested(Path(), run.place, size, words)
    peer = next(c for c in contenders() if c.name == "topk, adam")
    d_sae = round(config["sae"]["dict_ratio"] * data.d_in)
    fitted = peer.fit(data, d_sae, Setting(peer.lr(d_sae), config["sae"]["k"], seed=0))
    return measured(fitted, data, "test")


def _table(found: dict[Run, dict[str, float]], place: str) -> Table:
    columns = ["sae", "recipe", *SHOWN, "FVU / best of grid"]
    table = Table(place, [c.replace("_", " ") for c in columns])
    for run, values in found.items():
        if run.place != place:
            continue
        cell = {r.recipe: v for r, v in found.items() if (r.place, r.word) == (place, run.word)}
        near = [v["fvu"] for v in cell.values() if abs(v["l0"] / L0 - 1) <= 0.05]
        ratio = values["fvu"] / min(near) if len(cell) > 1 and near else None
        table.rows.append([run.word, run.recipe, *(values.get(name) for name in SHOWN), ratio])
    return table


if __name__ == "__main__":
    main()
