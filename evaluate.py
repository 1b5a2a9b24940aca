"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'
    python evaluate.py 'run=[outputs/a,outputs/b]' 'eval=[compare]'

From Python: `evaluate(Path("outputs/mine"), {"core": {}, "downstream": {}})`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.commandline import fail, names_of, parse, run_program
from conf.schema import check, register
from sae.errors import ConfigError, SAEError

if TYPE_CHECKING:
    from sae.evals import EvalResult

register()
log = logging.getLogger(__name__)


def evaluate(
    run: Path,
    evals: Mapping[str, Mapping[str, Any]],
    *,
    lm: Mapping[str, Any] | None = None,
    corpus: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    device: str = "auto",
) -> dict[str, "EvalResult"]:
    """Measure one saved SAE and write `<run>/evals/<eval>.json` (names: docs/formats.md).

    Args:
        run: A run folder or an SAE folder.
        evals: Settings by the word of the evaluation, as in conf/eval/*.yaml. What is not given,
            or None, is as in the run that made the SAE.
        lm: Another LM than the SAE's own, as in conf/lm/*.yaml.
        corpus: Another text, as in conf/corpus/*.yaml.
        tokens: Test tokens, default as in training.
        device: `auto`, `cpu`, `cuda`, …

    Raises:
        SAEError: If there is no SAE, or nothing to measure it on.
    """
    from sae.artifacts import load
    from sae.evals import build
    from sae.evals.names import result_file

    run, device = run.expanduser(), build.find_device(device)
    sae = load(run)
    own = build.own_settings(sae)
    evals = {word: {**own.get(word, {}), **_given(evals[word])} for word in evals}
    source = build.source_of(sae, lm=lm, corpus=corpus, tokens=tokens, device=device)
    build.check_evals(evals, build.ctx_of(source))  # before the harvest, which may take long
    build.prepare_test(source)
    results = build.run_evals(sae, source, evals, device)
    for result in results.values():
        file = result_file(run / "evals", result, sae, source)
        result.save(file)
        log.info("wrote %s", file)
    if left_out := sorted(set(evals) - set(results)):
        log.info("left out: %s (no tokens behind these activations)", ", ".join(left_out))
    return results


def compare(
    runs: Sequence[Path],
    settings: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    device: str = "auto",
) -> Path:
    """Compare saved SAEs with each other and write tables and a heat map (docs/compare.md).

    Args:
        runs: Run folders or SAE folders, at least two.
        settings: As in conf/eval/compare.yaml; what is not given is as there.
        folder: Where the tables go; default `compare-<key>` in the folder that all runs are in.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        The folder.

    Raises:
        SAEError: If there is no SAE, or only one.
    """
    from sae.artifacts import load
    from sae.evals.build import find_device, from_settings
    from sae.evals.compare import Compare
    from sae.provenance import content_key
    from sae.reports import write_comparison

    comparison: Compare = from_settings(Compare, "compare", settings or {})
    paths = list(dict.fromkeys(run.expanduser().resolve() for run in runs))
    common = Path(os.path.commonpath([path.parent for path in paths]))
    saes = {str(path.relative_to(common)): load(path) for path in paths}
    compared = comparison.run(saes, find_device(device))
    if folder is None:
        key = content_key({"runs": list(saes), "settings": compared.settings})
        folder = common / f"compare-{key[:8]}"
    return write_comparison(compared, folder)


def _runs_in(run: Path) -> list[Path]:
    """The run itself; of a sweep the jobs that are finished."""
    if not (run.expanduser() / "multirun.yaml").is_file():
        return [run]
    jobs = [file.parent for file in run.expanduser().glob("*/results.json")]
    return sorted(jobs, key=lambda job: (len(job.name), job.name))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _set_by(
    names: Sequence[str], evals: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Only those settings that the command line sets: conf/eval/*.yaml has those of new runs."""
    return {
        word: {
            name: value
            for name, value in (settings or {}).items()
            if {f"eval.{word}.{name}", f"eval.{word}"} & set(names)
        }
        for word, settings in evals.items()
    }


def _reject_for_compare(names: Sequence[str]) -> None:
    """Dictionaries are compared on the test text they have in common: their own."""
    for name in ("lm", "corpus", "tokens"):
        if any(given.split(".")[0] == name for given in names):
            raise ConfigError(
                f"{name} has no effect with eval=[compare], which reads the test text of the runs. "
                f"Drop {name}; eval.compare.num_tokens=… says how much of it."
            )


def show(results: Mapping[str, "EvalResult"], title: str) -> None:
    """Print every metric with its interval."""
    from rich.console import Console
    from rich.table import Table

    table = Table("evaluation", "metric", "value", "95 % interval", "measured on", title=title)
    for word, result in results.items():
        measured_on = ", ".join(f"{count:,} {unit}" for unit, count in result.tokens.items())
        for name, estimate in result.metrics.items():
            known = estimate.low is not None and estimate.high is not None
            table.add_row(
                word,
                name,
                "undefined" if estimate.value is None else f"{estimate.value:.5g}",
                f"{estimate.low:.5g} to {estimate.high:.5g}" if known else "–",
                measured_on,
            )
    Console().print(table)


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Evaluate every SAE that `run` names."""
    try:
        config = check(composed)
        if not config["eval"]:
            raise ConfigError("eval is empty. Choose evaluations: 'eval=[core,downstream]'.")
        names = names_of(parse(list(HydraConfig.get().overrides.task)))
        evals = _set_by(names, config["eval"])
        named = config["run"] if isinstance(config["run"], list) else [config["run"]]
        runs = [run for name in named for run in _runs_in(Path(name))]
        comparison = evals.pop("compare", None)
        if comparison is not None:
            _reject_for_compare(names)
            folder = compare(runs, comparison, device=config["device"])
            log.info("wrote %s", folder / "pairs.csv")
        for run in runs if evals else ():
            results = evaluate(
                run,
                evals,
                lm=config["lm"],
                corpus=config["corpus"],
                tokens=config["tokens"],
                device=config["device"],
            )
            show(results, str(run))
    except SAEError as error:
        fail(error)


if __name__ == "__main__":
    run_program("evaluate", main)
