"""Limits to the files that a configuration of somebody else may have fetched and read.

An LM or a text that the user names (`lm=`, `corpus=`) is the user's choice. One that a saved SAE
or the config.yaml of a run names is its author's: nothing is downloaded for it but what conf/
lists, and whatever else it names is told before it is read (docs/guides/security.md).
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from sae.errors import ArtifactError, ConfigError
from sae.language.fetch import WheelFile
from sae.provenance import cache_dir, content_key

log = logging.getLogger(__name__)

CHAT = "chat"
"""Node of an evaluation's settings that says which chat LM is asked."""
_PLACES = ("repo", "dataset", "path", "csv")
"""Fields of a configuration that name a repository of the hub, or a file or folder here."""


def check_named(
    config: Mapping[str, Any], known: Collection[WheelFile], by: str, what: str
) -> None:
    """Refuse a wheel that nobody here chose; tell, once, of a place that is new here.

    Args:
        config: Configuration of an LM, a text, a folder of activations or an evaluation, out of
            somebody's files.
        known: Wheels that conf/ lists or the user names.
        by: The files, for people.
        what: Part that is configured, for example `lm`.

    Raises:
        ArtifactError: If it names a wheel that is not in `known` and whose very bytes are not in
            the cache either. Nothing was fetched.
        ConfigError: If the wheel's name, version, hash or member is none.
    """
    parts = config.get("parts")
    for wheel in (config.get("wheel"), *(parts if isinstance(parts, list | tuple) else ())):
        if not isinstance(wheel, Mapping):
            continue
        named = WheelFile(**wheel)
        if named.pin() not in [one.pin() for one in known] and not named.is_cached():
            raise ArtifactError(
                f"{by} names the wheel {named.package}=={named.version} (SHA-256 {named.sha256}) "
                f"as its {what}: neither conf/{what} nor the cache has it, so nothing was "
                f"downloaded. If you trust whoever chose it, write it into a "
                f"conf/{what}/<name>.yaml of your own; or give another {what}=."
            )
    for field in _PLACES:
        if isinstance(place := config.get(field), str) and _is_new(f"{what}.{field}={place}"):
            log.warning(
                "%s names %s.%s=%s, which is new here: it is read as data.", by, what, field, place
            )


def check_asked(evals: Mapping[str, Any], chosen: Mapping[str, Any], by: str) -> None:
    """Refuse chat LMs, and variables with keys, that only a file names.

    Keys and texts would be sent to its address.

    Args:
        evals: Settings by the name of the evaluation, out of somebody's file.
        chosen: Settings of the user.
        by: The file, for people.

    Raises:
        ConfigError: If it names an address, or a variable for the key, that the user does not.
    """
    for name in evals:
        theirs, own = (_node(_node(settings, name), CHAT) for settings in (evals, chosen))
        for key, harmless in (("base_url", (None,)), ("key_env", (None, "OPENAI_API_KEY"))):
            value = theirs.get(key)
            if value not in harmless and value != own.get(key):
                raise ConfigError(
                    f"{by} names {key}={value} of a chat LM for eval={name}. Nothing was sent. If "
                    f"you trust it, give eval.{name}.{CHAT}.{key}={value}."
                )


def _node(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Settings inside settings; nothing where a file has something else there."""
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_new(place: str) -> bool:
    """True if nobody was told of this place before; from now on it is known."""
    mark = cache_dir() / "told" / content_key({"place": place})
    if mark.exists():
        return False
    with suppress(OSError):  # a cache that others own may be read-only: told again next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return True
