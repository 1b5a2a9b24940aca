"""Settings of a part as a typed class: types, ranges, defaults and help, declared once.

A part declares `class Config(Settings)` with fields by `setting(...)`. Pydantic checks the values,
and its errors become ours here.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from sae.errors import ConfigError, unknown


class Settings(BaseModel):
    """Base of every part's settings: immutable, no unknown keys, only finite numbers.

    A whole number may be written as a float (2e6), and a number stands for itself where a text is
    due (run_dir=7). true and false are not numbers, and numbers in quotes are texts.

    Raises:
        ConfigError: If a value is missing, unknown, of a wrong type or out of range.

    Example:
        >>> class Config(Settings):
        ...     where = "sae."
        ...     k: int = setting(64, ge=1, help="latents that fire per vector")
        >>> Config().k, Config(k=2e1).k
        (64, 20)
        >>> Config(k=0)
        Traceback (most recent call last):
        sae.errors.ConfigError: sae.k=0 must be a whole number of at least 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    where: ClassVar[str] = ""
    """Location of the node in a configuration, with a dot at the end, for error messages."""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explained(type(self), values, error.errors()[0])) from None

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: Any) -> Any:
        kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
        if tuple in kinds and isinstance(value, list):
            return tuple(value)
        if tuple in kinds and isinstance(value, str):  # one name stands for a list of it
            return (value,)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if isinstance(value, float) and int in kinds and value.is_integer():
            return int(value)
        return str(value) if str in kinds and not kinds & {int, float} else value


class Allowed:
    """In words, the values that a field of a type of its own takes (an entry of `Annotated`)."""

    def __init__(self, words: str) -> None:
        self.words = words


def _span(value: int | float | str) -> int | str:
    share = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", str(value))
    if isinstance(value, str) and share is not None and float(share[1]) <= 100:
        return value
    if isinstance(value, str) or value < 0 or not float(value).is_integer():
        raise ValueError
    return int(value)


Span = Annotated[
    int | float | str,
    AfterValidator(_span),
    Allowed("a number of tokens (200000, 2e6) or a share of the run (5%)"),
]
"""A number of tokens, or a share of the run such as "5%"."""


def _some(value: int | tuple[int | str, ...]) -> int | tuple[int | str, ...]:
    if isinstance(value, int) and value < 0:
        raise ValueError
    return value


Some = Annotated[
    int | tuple[int | str, ...], AfterValidator(_some),
    Allowed("a number of latents (24), or a list of them ([123, -7])"),
]  # fmt: skip
"""A number of latents, or a list of them; -7 is the negative side of 7."""
Absolute = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().absolute()))]
"""A user's path, as it can be found from any working directory."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least 1, as an entry of a list."""


def setting(
    default: Any = ...,
    *,
    help: str,
    ge: int | float | None = None,
    gt: int | float | None = None,
    le: int | float | None = None,
    lt: int | float | None = None,
    min_length: int | None = None,
) -> Any:
    """A field of `Settings`.

    Args:
        default: Its default; without one, a value must be given.
        help: Its meaning and unit, in a line.
        ge: Smallest allowed value.
        gt: The value must be greater than this.
        le: Largest allowed value.
        lt: The value must be smaller than this.
        min_length: Entries that a list must have at least.
    """
    bounds: Any = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length}
    return Field(default, description=help, **bounds)


def shown(value: Any) -> str:
    """A value as one writes it in a configuration.

    Example:
        >>> shown(None), shown(True), shown([1, 2]), shown(1e-3)
        ('null', 'true', '[1, 2]', '0.001')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, in words.

    Example:
        >>> class Config(Settings):
        ...     share: float | None = setting(None, gt=0, le=1, help="")
        >>> allowed(Config.model_fields["share"])
        'a number above 0 and at most 1, or null'
    """
    own = [item.words for item in field.metadata if isinstance(item, Allowed)]
    kinds = list(_kinds(field.annotation))
    words = own or [word for kind in kinds if (word := _word(kind))]
    choices = [str(kind) for kind in kinds if not isinstance(kind, type)]
    if choices:
        words = ["one of " + ", ".join(choices)]
    bounds = [
        f"{word} {getattr(item, name):g}"
        for kind, word, name in _BOUNDS
        for item in field.metadata
        if isinstance(item, kind)
    ]
    text = " ".join([words[-1], " and ".join(bounds)]).strip() if words else ""
    return ", or ".join([*([text] if text else []), *(["null"] if NoneType in kinds else [])])


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without null, and without nodes of nothing but null.

    Example:
        >>> without_nulls({"a": 0, "b": None, "c": {"d": None}})
        {'a': 0}
    """
    nodes = {k: without_nulls(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {key: value for key, value in nodes.items() if value is not None and value != {}}


_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false",
    list: "a list", tuple: "a list", dict: "a node of settings",
}  # fmt: skip


def _word(kind: Any) -> str | None:
    nested = isinstance(kind, type) and issubclass(kind, Settings)
    return _WORDS[dict] if nested else _WORDS.get(kind)


_BOUNDS = (
    (Ge, "of at least", "ge"), (Gt, "above", "gt"), (Le, "at most", "le"), (Lt, "below", "lt"),
    (MinLen, "of a length of at least", "min_length"),
)  # fmt: skip


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value may have; the choices of a `Literal` themselves."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for one in get_args(annotation):
            yield from _kinds(one)
    elif origin is Literal:
        yield from get_args(annotation)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif annotation is None:
        yield NoneType
    else:
        yield origin or annotation


def _explained(config: type[Settings], values: Mapping[str, Any], error: Mapping[str, Any]) -> str:
    own = error.get("ctx", {}).get("error")
    if not error["loc"]:  # several values that do not go together
        return str(own)
    name, prefix = str(error["loc"][0]), config.where
    if error["type"] == "extra_forbidden":
        return unknown(name, config.model_fields, prefix)
    if error["type"] == "missing":
        return f"{prefix}{name} has no value. Give one: {prefix}{name}=…"
    if isinstance(own, ConfigError):  # of a node in this node, or with a remedy of its own
        return f"{prefix}{own}" if _nested(config, name) else str(own)
    words = str(own or "") or allowed(config.model_fields[name])
    if error["type"] in ("list_type", "tuple_type"):
        words += (
            ". Write it as a list, in quotes because of the shell: "
            f"'{prefix}{name}=[{shown(values[name])}]'. [] is the empty list"
        )
    elif len(error["loc"]) > 1 and isinstance(values[name], list | tuple):
        index = error["loc"][1]
        return f"{prefix}{name}={shown(values[name][index])} must be {_entry(config, name)}."
    return f"{prefix}{name}={shown(values[name])} must be {words}."


def _nested(config: type[Settings], name: str) -> bool:
    annotation = config.model_fields[name].annotation
    kinds = [*_kinds(annotation), *get_args(annotation)]
    return any(isinstance(kind, type) and issubclass(kind, Settings) for kind in kinds)


def _entry(config: type[Settings], name: str) -> str:
    """The values that an entry of a list takes, in words."""
    of = get_args(config.model_fields[name].annotation)[0]
    return allowed(FieldInfo.from_annotation(of))
