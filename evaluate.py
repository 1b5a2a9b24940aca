"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'

From Python: `evaluate(Path("outputs/mine"), {"core": {}, "downstream": {}})`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from conf.commandline import fail, run_program
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
    """Measure one saved SAE and write `<run>/evals/<eval>.json`.

    Args:
        run: A run folder or an SAE folder.
        evals: Settings by the word of the evaluation, as in conf/eval/*.yaml.
        lm: Another LM than the SAE's own, as in conf/lm/*.yaml.
        corpus: Another text, as in conf/corpus/*.yaml; its results get its name as a suffix.
        tokens: Test tokens, default as in training.
        device: `auto`, `cpu`, `cuda`, …

    Raises:
        SAEError: If there is no SAE, or nothing to measure it on.
    """
    import torch

    from sae.artifacts import load
    from sae.evals.build import run_evals, source_of

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sae = load(run)
    source = source_of(sae, lm=lm, corpus=corpus, tokens=tokens, device=device)
    source.prepare()
    results = run_evals(sae, source, evals, device)
    suffix = f"-{corpus['name']}" if corpus else ""
    for word, result in results.items():
        file = run / "evals" / f"{word}{suffix}.json"
        result.save(file)
        log.info("wrote %s", file)
    return results


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
        runs = config["run"] if isinstance(config["run"], list) else [config["run"]]
        for run in runs:
            results = evaluate(
                Path(run),
                config["eval"],
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
