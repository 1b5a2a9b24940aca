"""Measure trained sparse autoencoders on held-out text.

    python evaluate.py run=outputs/mine 'eval=[core,downstream]'
    python evaluate.py 'run=[outputs/a,outputs/b]' 'eval=[compare]'
    python evaluate.py run=<sweep folder> 'eval=[frontier]'
    python evaluate.py run=theirs format=saelens lm=gpt2 layer=4 site=resid
    python evaluate.py run=outputs/mine export=saelens out=for_them

From Python: `evaluate(Path("outputs/mine"), {"core": {}, "downstream": {}})`.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.asked import OF_EVALUATION, check_asked, reject_for_several, set_by
from conf.commandline import fail, names_of, parse, run_program
from conf.schema import check, known_wheels, values
from sae.errors import ConfigError, SAEError

if TYPE_CHECKING:
    from sae.activations.sources import ActivationSource
    from sae.dictionaries.sae import SAE
    from sae.evals import EvalResult

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
    target: str | None = None,
    ctx: int | None = None,
    tokens: int | None = None,
    device: str = "auto",
    saebench: bool = False,
    out: str | None = None,
) -> dict[str, "EvalResult"]:
    """Measure one saved SAE and write `<run>/evals/<eval>.json` (names: docs/formats.md).

    Args:
        run: A run folder, an SAE folder, files of another library, or an id on the hub.
        format: Of these files; None finds it by their names.
        evals: Settings by the word of the evaluation, as in conf/eval/*.yaml. What is not given,
            or None, is as in the run that made the SAE.
        lm: Another LM than the SAE's own, as in conf/lm/*.yaml, or what differs from its own
            (`{"dtype": "float32"}`). An SAE from another library has none of its own, so that it
            must be given.
        corpus: Another text, as in conf/corpus/*.yaml; without one of its own, `news`.
        layer: For an SAE from another library.
        site: For an SAE from another library.
        target: For a transcoder from another library: the site, of the same layer, that it gives.
        ctx: For an SAE from another library; default as its files say, or as in conf.
        tokens: Test tokens, default as in training.
        device: `auto`, `cpu`, `cuda`, …
        saebench: Write `<eval>_saebench.json` beside each result, in SAEBench's schema.
        out: Results go to `<out>/evals` instead.

    Raises:
        SAEError: If there is no SAE, or nothing to measure it on.
    """
    from sae.artifacts import load
    from sae.dtypes import resolve_lm
    from sae.evals import build, foreign
    from sae.evals.names import results_folder
    from sae.evals.saebench import WORDS, to_saebench
    from sae.provenance import write_json

    device = build.find_device(device)
    folder = results_folder(str(run), out)
    sae = load(run, format)
    place: dict[str, Any] = {"layer": layer, "site": site, "target": target, "ctx": ctx}
    if not foreign.is_placed(sae):
        text, settings = corpus or values("corpus", "news"), values("activations", "lm")
        lm = resolve_lm(lm, device) if lm and "kind" in lm else None
        foreign.put_in_place(sae, lm=lm, corpus=text, **place, settings=settings)
        corpus = text
    elif unused := [f"{name}={value}" for name, value in place.items() if value is not None]:
        raise ConfigError(
            f"{' '.join(unused)} has no effect on {run}, whose SAE says what it was trained on; "
            "it is for SAEs from other libraries."
        )
    evals = _as_in_run(sae, evals)
    source = build.source_of(
        sae, lm=lm, corpus=corpus, tokens=tokens, device=device, known=known_wheels()
    )
    # before the harvest, which may take long
    build.check_source(evals, source)
    build.prepare_test(source)
    _warn_of_changes(run, sae, source)
    foreign.check_width(sae, source.split("test"))
    results = build.run_evals(sae, source, evals, device)
    for word, file in _save(results, folder, sae, source).items():
        if saebench and word in WORDS:
            written = file.with_name(f"{file.stem}_saebench.json")
            write_json(written, to_saebench(word, results, sae, Path(run).name))
            log.info("wrote %s", written)
    if left_out := sorted(set(evals) - set(results)):
        log.info("left out: %s (these activations offer less)", ", ".join(left_out))
    return results


def evaluate_together(
    runs: Sequence[str | Path],
    evals: Mapping[str, Mapping[str, Any]],
    *,
    lm: Mapping[str, Any] | None = None,
    corpus: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    device: str = "auto",
    out: str | None = None,
) -> dict[str, "EvalResult"]:
    """Measure several SAEs that stand in for their activations in one LM at the same time.

    Results go to `<first run>/evals/<eval>-together=<points>.json`.

    Args:
        runs: SAEs that say what they were trained on: the same LM and text, each a point of its
            own.
        evals: As for `evaluate`; what is not given is as in the first run. Evaluations that know
            only one SAE are left out.
        lm: As for `evaluate`.
        corpus: As for `evaluate`.
        tokens: As for `evaluate`.
        device: As for `evaluate`.
        out: As for `evaluate`.

    Raises:
        SAEError: As for `evaluate`, and if the SAEs do not fit together.
    """
    from sae.artifacts import load
    from sae.evals import build, together
    from sae.evals.names import results_folder

    device = build.find_device(device)
    folder = results_folder(str(runs[0]), out)
    saes = [load(run) for run in runs]
    evals = _as_in_run(saes[0], evals)
    sources = [
        build.source_of(
            sae, lm=lm, corpus=corpus, tokens=tokens, device=device, known=known_wheels()
        )
        for sae in saes
    ]
    together.check(evals, sources)
    for source in sources:
        build.prepare_test(source)
    for run, sae, source in zip(runs, saes, sources, strict=True):
        _warn_of_changes(run, sae, source)
    results = together.run(saes, sources, evals, device)
    _save(results, folder, saes[0], sources[0])
    if left_out := sorted(set(evals) - set(results)):
        log.info("left out: %s (they measure one SAE at a time)", ", ".join(left_out))
    return results


def _warn_of_changes(run: str | Path, sae: "SAE", source: "ActivationSource") -> None:
    from sae.evals.changes import changed, key_of

    for what in changed(sae, source):
        log.warning(
            "%s was trained on other files: %s changed since. Results are not the run's own; their "
            "names end in changed-%s.", run, what, key_of(source),
        )  # fmt: skip


def _save(
    results: Mapping[str, "EvalResult"], folder: Path, sae: "SAE", source: "ActivationSource"
) -> dict[str, Path]:
    """Write results; says into which files."""
    from sae.evals.names import result_file

    files = {}
    for word, result in results.items():
        file = result_file(folder, result, sae, source)
        result.save(file)
        log.info("wrote %s", file)
        files[word] = file
    return files


def _as_in_run(sae: "SAE", evals: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that are not given are those of the run that made the SAE."""
    from sae.evals.build import OF_SAE, own_settings
    from sae.language.trust import check_named

    own = own_settings(sae)
    taken = {
        word: {name: value for name, value in own.get(word, {}).items() if name not in given}
        for word, given in ((word, _given(evals[word])) for word in evals)
    }
    for word, settings in taken.items():
        check_named(settings, (), OF_SAE, f"eval.{word}")
    return {word: taken[word] | _given(evals[word]) for word in evals}


def compare(
    runs: Sequence[str | Path],
    settings: Mapping[str, Any] | None = None,
    *,
    format: str | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Compare saved SAEs with each other and write tables and a heat map (docs/compare.md).

    Args:
        runs: As for `evaluate`, at least two.
        settings: As in conf/eval/compare.yaml; what is not given is as there.
        format: Of their files; None finds it by their names.
        folder: Where the tables go; default `compare-<key>` in the folder that all runs are in.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        The folder.

    Raises:
        SAEError: If there is no SAE, or only one.
    """
    from sae.artifacts import load
    from sae.evals.build import find_device
    from sae.evals.compare import Compare, rows_of_test_split
    from sae.evals.names import name_runs
    from sae.provenance import content_key
    from sae.reports import write_comparison

    comparison: Compare = Compare(**(settings or {}))
    common, named = name_runs(runs)
    saes = {name: load(run, format) for name, run in named.items()}
    rows_of = partial(rows_of_test_split, known=known_wheels())
    compared = comparison.run(saes, find_device(device), rows_of)
    if folder is None:
        key = content_key({"runs": list(saes), "settings": compared.settings})
        folder = common / f"compare-{key[:8]}"
    return write_comparison(compared, folder)


def frontier(runs: Sequence[str | Path], *, folder: str | Path | None = None) -> Path:
    """Draw finished runs on the plane of L0 and FVU; nothing is measured (docs/frontier.md).

    Args:
        runs: Run folders.
        folder: Where tables and pictures go; default `frontier-<key>` in the folder that all runs
            are in.

    Returns:
        The folder.

    Raises:
        SAEError: If none of the runs has a result.
    """
    from sae.evals.names import name_runs
    from sae.provenance import content_key
    from sae.reports import read_frontier, write_frontier

    common, named = name_runs(runs)
    found = read_frontier({name: Path(run).expanduser() for name, run in named.items()})
    for what in sorted(set(found.missing.values())):
        lacking = [name for name, missing in found.missing.items() if missing == what]
        log.warning("%s: %s", what, ", ".join(lacking))
    return write_frontier(found, folder or common / f"frontier-{content_key({'': [*named]})[:8]}")


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


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(composed: DictConfig) -> None:
    """Evaluate every SAE that `run` names."""
    from sae.evals.names import runs_in
    from sae.reports import print_results

    try:
        config = check(composed)
        config["lm"] = _given(config["lm"]) or None
        names = names_of(parse(list(HydraConfig.get().overrides.task)))
        named = config["run"] if isinstance(config["run"], list) else [config["run"]]
        runs = [run for name in named for run in runs_in(name)]
        only_export = bool(config["export"]) and not any(
            name == "eval" or name.startswith("eval.") for name in names
        )
        check_asked(config, runs, names, only_export)
        if config["export"]:
            export(runs[0], config["export"], config["out"], config["format"])
        if only_export:
            return
        evals = set_by(names, config["eval"])
        passed = {name: config[name] for name in OF_EVALUATION}
        if evals.pop("frontier", None) is not None:
            reject_for_several("frontier", names)
            asked = [job for name in named for job in runs_in(name, unfinished=True)]
            log.info("wrote %s", frontier(asked, folder=config["out"]) / "frontier.csv")
        comparison = evals.pop("compare", None)
        if comparison is not None:
            reject_for_several("compare", names)
            options = {"format": config["format"], "folder": config["out"]}
            folder = compare(runs, comparison, **options, device=config["device"])
            log.info("wrote %s", folder / "pairs.csv")
        if config["together"]:
            on = {name: config[name] for name in ("lm", "corpus", "tokens", "device", "out")}
            print_results(evaluate_together(runs, evals, **on), " + ".join(map(str, runs)))
            return
        for run in runs if evals else ():
            results = evaluate(run, evals, format=config["format"], out=config["out"], **passed)
            print_results(results, run)
    except (SAEError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    run_program("evaluate", main)
