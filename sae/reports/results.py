"""Files of results, named so that no result replaces one that was made otherwise."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.activations.sources import ActivationSource, LMActivations
from sae.activations.superposition import SuperpositionActivations
from sae.artifacts import authors
from sae.artifacts.changes import changed, key_of
from sae.artifacts.formats import locate
from sae.artifacts.hub import is_hub_id
from sae.artifacts.placed import PlacedSAE, own_settings
from sae.checksums import read_unsealed
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError, ConfigError
from sae.evals.base import EvalResult
from sae.evals.from_config import ctx_of, make_evals, offers_of
from sae.language.trust import CHAT
from sae.provenance import content_key
from sae.tables import read_table

log = logging.getLogger(__name__)

_SHOWING = {"dashboard": ("export", "text_file", "ablate", "features", "serve", "port")}
"""Settings of an evaluation that add pages or files to a result, whose numbers stay as they are."""
_OF_THE_LINE = ("key_env", "concurrency", "budget", "timeout")
"""Settings of a chat LM that do not decide its replies."""


def results_folder(run: str, out: str | None = None) -> Path:
    """The folder of the results of `evaluate.py run=<run>`; each SAE of a file has its own.

    Args:
        run: Path as `sae.artifacts.load` takes it.
        out: A folder that the user chose instead.

    Raises:
        ConfigError: If it is on the hub or cannot be written to, and `out` is not given.
    """
    if out is not None:
        return Path(out).expanduser() / "evals"
    where = None if is_hub_id(run.rpartition(":")[0] or run) else locate(run)
    folder = _beside(*where) if where else None
    if folder is None or not _writable(folder):
        problem = "cannot be written to" if folder else "is on the hub"
        raise ConfigError(f"{run} {problem}. Say where the results go: out=<folder>.")
    return folder


def newest_latents(
    name: str, result: EvalResult, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The newest result of an evaluation of the same SAE, and the rows of its table `latents`.

    Args:
        name: The evaluation.
        result: Result of another evaluation of the SAE.
        folder: Folder that holds results.

    Returns:
        The result's content and the rows; both empty without such a result. One that
        cannot be read is passed over with a warning.
    """
    for file in sorted(folder.glob(f"{name}*.json"), key=lambda file: -file.stat().st_mtime):
        try:
            content = read_unsealed(file)
            known, table = content["provenance"], content["tables"]["latents"]["file"]
            rows = read_table(folder / table)
        except (ArtifactError, KeyError, TypeError, OSError) as error:
            log.warning(
                "The table has no columns of %s: %s cannot be read (%s).", name, file, error
            )
            continue
        if all(known.get(key) == result.provenance.get(key) for key in ("sae", "point")):
            return content, rows
    return {}, []


def _beside(path: Path, member: int | None) -> Path:
    if member is not None and path.is_dir():  # a position in the file that is in there
        path = path / authors.FILE
    if not path.is_file():
        return path / "evals"
    folder = path.parent / "evals" / path.stem
    return folder if member is None else folder / str(member)


def _writable(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return os.access(there, os.W_OK)


def result_file(folder: Path, result: EvalResult, placed: PlacedSAE) -> Path:
    """File of a result of `evaluate.py`.

    `<eval>.json` is the run's own result again: same text, LM, tokens and settings. What differs
    follows the word, for example `core-houseofcommons-tokens=2048.json`; a hash follows if a file
    of that name was made otherwise, for example of another text of the same name. Where the LM, the
    text or the activations changed in their place since the training, `changed-<key>` follows.

    Args:
        folder: The folder of the results.
        result: The result to save.
        placed: The SAE that was measured; the first one of several.
    """
    sae, source = placed.sae, placed.source
    differences = [
        *_of_company(result),
        *_of_source(sae, source),
        *_of_settings(result, sae, source),
    ]
    parts = [re.sub(r"[^\w.=+]+", "_", part) for part in [result.eval, *differences]]
    name = "-".join(part if len(part) <= 60 else content_key({"": part}) for part in parts)
    file = folder / f"{name}.json"
    if differences and file.is_file() and _made_by(file) not in (None, _key(result)):
        return folder / f"{name}-{_key(result)}.json"
    return file


def _of_company(result: EvalResult) -> list[str]:
    """The points of SAEs that were spliced in together, for one alone nothing."""
    together = result.provenance.get("together", [])
    return ["together=" + "+".join(entry["point"] for entry in together)] if together else []


def _of_source(sae: SAE, source: ActivationSource) -> list[str]:
    trained: Any = sae.metadata["activations"]
    if isinstance(source, SuperpositionActivations):
        test = source.num_rows["test"]
        return [f"tokens={test}"] if test != trained["tokens"]["test"] else []
    mark = ["changed", key_of(source)] if changed(sae, source) else []
    if not isinstance(source, LMActivations):
        return mark
    test = source.specs["test"]
    differences = []
    if test.test_fraction == 1:  # `source_of` chooses so for another text; no training can
        differences.append(source.corpus.name)
    lm = source.source.to_config()
    same_lm = content_key(test.lm) == trained.get("identities", {}).get("lm")  # maybe moved
    if lm != trained["lm"] and not same_lm:
        as_trained = lm.get("dtype") == trained["lm"].get("dtype")
        differences.append(lm["name"] if as_trained else f"{lm['name']}-{lm['dtype']}")
    if test.tokens != trained["tokens"]["test"]:
        differences.append(f"tokens={test.tokens}")
    return differences + mark


def _of_settings(result: EvalResult, sae: SAE, source: ActivationSource) -> list[str]:
    own = own_settings(sae).get(result.eval, {})
    made: Any = make_evals({result.eval: own}, ctx_of(source), offers_of(source))[result.eval]
    expected = _deciding(result.eval, made.model_dump())
    got = _deciding(result.eval, result.settings)
    return [_short(name, value) for name, value in got.items() if value != expected.get(name)]


def _short(name: str, value: Any) -> str:
    """`name=value`; of a long value, such as a list of sets, a hash: names of files have an end."""
    text = f"{name}={value}"
    return text if len(text) <= 60 else f"{name}={content_key({name: value})}"


def _deciding(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide the numbers, lists as JSON has them; those of memory are left out."""
    bootstrap = {
        f"bootstrap.{name}": value for name, value in settings.get("bootstrap", {}).items()
    }
    resamples = bootstrap.pop("bootstrap.num_resamples", None)
    flat = {**({} if resamples is None else {"resamples": resamples}), **bootstrap, **settings}
    chat = settings.get(CHAT) or {}
    asked = {key: value for key, value in chat.items() if key not in _OF_THE_LINE}
    flat |= {CHAT: asked if chat.get("base_url") else None}
    left_out = ("bootstrap", "batch_rows", "batch_contexts", *_SHOWING.get(name, ()))
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat.items()
        if key not in left_out and (key, value) != (CHAT, None)
    }


def _key(result: EvalResult) -> str:
    known = result.provenance
    made = {name: known.get(name) for name in ("point", "store")}
    made |= {"together": known["together"]} if "together" in known else {}
    return content_key({**made, "settings": _deciding(result.eval, result.settings)})


def _made_by(file: Path) -> str | None:
    """Key of the result in a file; None if it holds none."""
    try:
        return _key(EvalResult.from_json(read_unsealed(file)))
    except (ValueError, KeyError, TypeError, AttributeError, ArtifactError):
        return None
