"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'

From Python: `evaluate(Path("outputs/mine"), {"core": {}, "downstream": {}})`.
"""

import logging
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
    # before the harvest, which may take long
    build.check_evals(evals, build.ctx_of(source), build.offers_of(source))
    build.prepare_test(source)
    results = build.run_evals(sae, source, evals, device)
    for result in results.values():
        file = result_file(run / "evals", result, sae, source)
        result.save(file)
        log.info("wrote %s", file)
    if left_out := sorted(set(evals) - set(results)):
        log.info("left out: %s (these activations offer less)", ", ".join(left_out))
    return results


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
        runs = config["run"] if isinstance(config["run"], list) else [config["run"]]
        for run in runs:
            results = evaluate(
                Path(run),
                evals,
                lm=config["lm"],
                corpus=config["corpus"],
                tokens=config["tokens"],
                device=config["device"],
            )
            show(results, run)
    except SAEError as error:
        fail(error)


if __name__ == "__main__":
    run_program("evaluate", main)
