"""A config with a `kind` word becomes one of several dataclasses, and turns back into a config.

Saved runs name what they used by these words, never by an import path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from sae.errors import ConfigError
from sae.language.fetch import WheelFile


class Kind:
    """Base of the dataclasses that a `kind` word can name."""

    kind: ClassVar[str]

    def to_config(self) -> dict[str, object]:
        """The JSON-able config that builds an equal object."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


T = TypeVar("T", bound=Kind)


def build(classes: Mapping[str, type[T]], config: Mapping[str, Any], what: str) -> T:
    """The object that `config` describes.

    Args:
        classes: From kind word to class.
        config: `kind` and the fields of that kind; those with a default may be left out.
        what: Group of the config, `"lm"` or `"corpus"`, for the error messages.

    Raises:
        ConfigError: If the kind is unknown, or a field is missing, unknown or of the wrong type.
    """
    kind = str(config.get("kind"))
    if kind not in classes:
        raise ConfigError(f"{what}.kind={kind} is not known. Choose one of {', '.join(classes)}.")
    values = {key: value for key, value in config.items() if key != "kind"}
    return _fill(classes[kind], values, f"{what}.kind={kind}")


def wheel_file(config: Mapping[str, Any], what: str) -> WheelFile:
    """The wheel that `config` describes.

    Raises:
        ConfigError: If a field is missing, unknown or wrong.
    """
    return _fill(WheelFile, dict(config), what)


def absolute(path: str) -> str:
    """A user's path as it can be found from any working directory."""
    return str(Path(path).expanduser().absolute())


def _fill(cls: type, values: dict[str, Any], what: str) -> Any:
    types = {field.name: get_type_hints(cls)[field.name] for field in fields(cls)}
    unknown = sorted(values.keys() - types.keys())
    required = [
        field.name
        for field in fields(cls)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    missing = [name for name in required if name not in values]
    if unknown or missing:
        problem = f"has no field {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ConfigError(f"{what} {problem}. Its fields: {', '.join(types)}.")
    for name, value in values.items():
        if types[name] is WheelFile and isinstance(value, Mapping):
            values[name] = wheel_file(value, f"{what}: {name}")
        elif types[name] == list[WheelFile] and isinstance(value, Sequence):
            values[name] = [wheel_file(one, f"{what}: {name}") for one in value]
        elif not _fits(value, types[name]):
            raise ConfigError(
                f"{what}: {name}={value!r} must be {_words(types[name])}, "
                f"not {type(value).__name__}."
            )
    return cls(**values)


def _fits(value: object, wanted: Any) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, wanted) or (wanted is float and isinstance(value, int))


def _words(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
