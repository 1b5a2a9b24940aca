"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'
    python evaluate.py run=theirs format=saelens lm=gpt2 layer=4 site=resid
    python evaluate.py run=outputs/mine export=saelens out=for_them

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
from conf.schema import check, register, values
from sae.errors import ConfigError, SAEError

if TYPE_CHECKING:
    from sae.evals import EvalResult

_OF_EVALUATION = ("lm", "corpus", "layer", "site", "ctx", "tokens", "device")

register()
log = logging.getLogger(__name__)


def evaluate(
    run: str | Path,
    evals: Mapping[str, Mapping[str, Any]],
    *,
    format: str | None = None,
    lm: Mapping[str, Any] | None = None,
    corpus: Mapping[str, Any] | None = None,
    layer: int | None = None,
    site: str | None = None,
    ctx: int | None = None,
    tokens: int | None = None,
    device: str = "auto",
    out: str | None = None,
) -> dict[str, "EvalResult"]:
    """Measure one saved SAE and write `<run>/evals/<eval>.json` (names: docs/formats.md).

    Args:
        run: A run folder, an SAE folder, files of another library, or an id on the hub.
        format: Of these files; None finds it by their names.
        evals: Settings by the word of the evaluation, as in conf/eval/*.yaml. What is not given,
            or None, is as in the run that made the SAE.
        lm: Another LM than the SAE's own, as in conf/lm/*.yaml. An SAE from another library has
            none of its own, so that it must be given.
        corpus: Another text, as in conf/corpus/*.yaml; without one of its own, `news`.
        layer: For an SAE from another library.
        site: For an SAE from another library.
        ctx: For an SAE from another library; default as its files say, or as in conf.
        tokens: Test tokens, default as in training.
        device: `auto`, `cpu`, `cuda`, …
        out: Results go to `<out>/evals` instead.

    Raises:
        SAEError: If there is no SAE, or nothing to measure it on.
    """
    from sae.artifacts import load
    from sae.evals import build, foreign
    from sae.evals.names import result_file, results_folder

    device = build.find_device(device)
    folder = results_folder(str(run), out)
    sae = load(run, format)
    place: dict[str, Any] = {"layer": layer, "site": site, "ctx": ctx}
    if not foreign.is_placed(sae):
        text, settings = corpus or values("corpus", "news"), values("activations", "lm")
        foreign.put_in_place(sae, lm=lm, corpus=text, **place, settings=settings)
        lm = corpus = None
    elif unused := [f"{name}={value}" for name, value in place.items() if value is not None]:
        raise ConfigError(
            f"{' '.join(unused)} has no effect on {run}, whose SAE says what it was trained on; "
            "it is for SAEs from other libraries."
        )
    own = build.own_settings(sae)
    evals = {word: {**own.get(word, {}), **_given(evals[word])} for word in evals}
    source = build.source_of(sae, lm=lm, corpus=corpus, tokens=tokens, device=device)
    # before the harvest, which may take long
    build.check_evals(evals, build.ctx_of(source), build.offers_of(source))
    build.prepare_test(source)
    foreign.check_width(sae, source.split("test"))
    results = build.run_evals(sae, source, evals, device)
    for result in results.values():
        file = result_file(folder, result, sae, source)
        result.save(file)
        log.info("wrote %s", file)
    if left_out := sorted(set(evals) - set(results)):
        log.info("left out: %s (these activations offer less)", ", ".join(left_out))
    return results


def export(run: str | Path, word: str, out: str | Path, format: str | None = None) -> Path:
    """Write a saved SAE in another format, into a new folder.

    Args:
        run: What is to be written, as for `evaluate`.
        word: The format that is written.
        out: The new folder.
        format: The format of `run`; None finds it by the files.

    Raises:
        SAEError: If there is no SAE, or the format cannot hold it.
    """
    from sae.artifacts import load, save

    folder = save(out, load(run, format), word)
    log.info("wrote %s (%s)", folder, word)
    return folder


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


def _check_asked(
    config: Mapping[str, Any], runs: Sequence[str], names: Sequence[str], only_export: bool
) -> None:
    """Refuse what has no effect, or would write two SAEs to one place."""
    if not config["eval"] and not only_export:
        raise ConfigError("eval is empty. Choose evaluations: 'eval=[core,downstream]'.")
    if config["export"] and not config["out"]:
        raise ConfigError(f"export={config['export']} needs a new folder: out=<folder>.")
    if config["out"] and len(runs) > 1:
        raise ConfigError(f"out={config['out']} is for one run; run= names {len(runs)}.")
    used = {name.partition(".")[0] for name in names}
    if only_export and (unused := [name for name in _OF_EVALUATION if name in used]):
        raise ConfigError(
            f"{', '.join(unused)} has no effect on an export alone. Drop it, or evaluate, too: "
            "'eval=[core]'."
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
        names = names_of(parse(list(HydraConfig.get().overrides.task)))
        runs = config["run"] if isinstance(config["run"], list) else [config["run"]]
        only_export = bool(config["export"]) and not any(
            name == "eval" or name.startswith("eval.") for name in names
        )
        _check_asked(config, runs, names, only_export)
        if config["export"]:
            export(runs[0], config["export"], config["out"], config["format"])
        if only_export:
            return
        evals = _set_by(names, config["eval"])
        passed = {name: config[name] for name in _OF_EVALUATION}
        for run in runs:
            results = evaluate(run, evals, format=config["format"], out=config["out"], **passed)
            show(results, run)
    except SAEError as error:
        fail(error)


if __name__ == "__main__":
    run_program("evaluate", main)
