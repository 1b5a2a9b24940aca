"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'
    python evaluate.py 'run=[outputs/a,outputs/b]' 'eval=[compare]'
    python evaluate.py run=<sweep folder> 'eval=[frontier]'
    python evaluate.py run=theirs format=saelens lm=gpt2 layer=4 site=resid
    python evaluate.py run=outputs/mine export=saelens out=for_them

From Python: `evaluate(Path("outputs/mine"), {"core": {}, "downstream": {}})`; `sae.evaluation`
describes the options.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.commandline import run_program
from conf.compose import names_of, parse
from conf.effects import PLACES, check_evaluation, refuse
from conf.options import content, known_wheels
from conf.schema import check
from sae.errors import SAEError
from sae.failures import fail

if TYPE_CHECKING:  # importing these takes seconds, which --help and errors need not wait for
    from sae.evaluation import Evals, Results


def _placing(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and, for an SAE of somebody else, its place, its text, and wheels to fetch."""
    at = {name: options.get(name) for name in PLACES}
    others = {name: value for name, value in options.items() if name not in PLACES}
    return {"known": known_wheels(), "text": content("corpus", "news"), "at": at, **others}


def evaluate(run: str | Path, evals: "Evals", **options: Any) -> "Results":
    """Measure one saved SAE and write `<run>/evals/<eval>.json` (names: docs/reference/formats.md).

    Options: `format lm corpus layer site target ctx tokens device saebench out`.
    """
    from sae import evaluation

    return evaluation.evaluate(run, evals, **_placing(options))


def evaluate_together(runs: Sequence[str | Path], evals: "Evals", **options: Any) -> "Results":
    """Measure SAEs spliced in at once. Options: `lm corpus tokens device out`."""
    from sae import evaluation

    return evaluation.evaluate(runs, evals, together=True, **_placing(options))


def compare(
    runs: Sequence[str | Path], settings: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Compare saved SAEs (docs/guides/compare.md). Options: `format folder device`."""
    from sae import evaluation

    return evaluation.evaluate_all("compare", runs, settings, **_placing(options))


def frontier(runs: Sequence[str | Path], folder: str | Path | None = None) -> Path:
    """Draw finished runs on the plane of L0 and FVU; measures nothing (docs/guides/frontier.md)."""
    from sae import evaluation

    return evaluation.evaluate_all("frontier", runs, folder=folder)


def export(run: str | Path, word: str, out: str | Path, format: str | None = None) -> Path:
    """Write a saved SAE in another format, into a new folder."""
    from sae import evaluation

    return evaluation.export(run, word, out, format)


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Evaluate every SAE that `run` names."""
    try:
        config = check(composed)  # before what takes seconds to import
        from sae import evaluation
        from sae.artifacts.runs import runs_in
        from sae.reports import print_results

        names = names_of(parse(list(HydraConfig.get().overrides.task)))
        several = evaluation.kinds_of_several(config["eval"])
        named = config["run"] if isinstance(config["run"], list) else [config["run"]]
        runs = [run for name in named for run in runs_in(name)]
        only_export = check_evaluation(config, runs, names, list(several))
        if config["export"]:
            export(runs[0], config["export"], config["out"], config["format"])
        evals = {} if only_export else dict(config["eval"])
        for name, kind in several.items() if evals else ():
            refuse(names, kind.unused, f"with eval=[{name}], which reads the runs as they are.")
            jobs = [job for one in named for job in runs_in(one, unfinished=kind.unfinished)]
            options = {name: config[name] for name in ("format", "device")}
            options |= {"folder": config["out"]}
            evaluation.evaluate_all(name, jobs, evals.pop(name), **_placing(options))
        options = {name: config[name] for name in ("lm", "corpus", "tokens", "device", "out")}
        if config["together"]:
            print_results(evaluate_together(runs, evals, **options), " + ".join(map(str, runs)))
            return
        options |= {name: config[name] for name in (*PLACES, "format")}
        for run in runs if evals else ():
            results = evaluate(run, evals, saebench=config["saebench"], **options)
            print_results(results, run)
            evaluation.serve(run, results, **_placing(options))
    except (SAEError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    run_program("evaluate", main)
