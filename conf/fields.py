"""Fields with ranges: what a value may be, and how to say so when it is something else."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from omegaconf import MISSING, OmegaConf

from sae.errors import ConfigError

SPAN = "span"
"""A kind of value: a number of tokens, or a share of the run such as "5%"."""


@dataclass(frozen=True)
class Limits:
    """What a field may hold. See `ranged`."""

    kind: Any
    low: float | None
    above: float | None
    high: float | None
    below: float | None
    choices: Sequence[str]
    many: bool
    always_many: bool
    null: bool
    because: str

    def __str__(self) -> str:
        """In words, for error messages."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            bounds = [
                f"{word} {bound:g}"
                for word, bound in (
                    ("of at least", self.low), ("above", self.above), ("at most", self.high),
                    ("below", self.below),
                )
                if bound is not None
            ]  # fmt: skip
            text = " ".join([_WORDS[self.kind], " and ".join(bounds)]).strip()
        if self.always_many:
            return f"a list whose entries are {text}"
        return (
            text
            + (", or a list of such" if self.many else "")
            + (", or null" if self.null else "")
            + (f": {self.because}" if self.because else "")
        )


_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false",
    SPAN: "a number of tokens (200000, 2e6) or a share of the run (5%)",
}  # fmt: skip


def ranged(
    kind: Any, default: Any = MISSING, *, low: float | None = None, above: float | None = None,
    high: float | None = None, below: float | None = None, choices: Sequence[str] = (),
    many: bool = False, always_many: bool = False, null: bool = False, because: str = "",
) -> Any:  # fmt: skip
    """A field with the limits that `checked` enforces.

    Args:
        kind: int, float, str, bool or SPAN. An integral float such as 2e6 counts as an int.
        default: Anything but MISSING: the field may be left out.
        low: Smallest allowed value.
        above: The value must be greater than this.
        high: Largest allowed value.
        below: The value must be smaller than this.
        choices: Allowed words.
        many: A list of such values is allowed too.
        always_many: It must be a list; an empty one is allowed.
        null: null is allowed too.
        because: Why, where the range does not explain itself.
    """
    limits = Limits(kind, low, above, high, below, choices, many, always_many, null, because)
    return field(default=default, metadata={"limits": limits})


def checked(node: Mapping[Any, Any], schema: type, prefix: str = "") -> dict[str, Any]:
    """The fields of `schema` that `node` has, each in its right type.

    Args:
        node: Keys and values; those that are no field of `schema` are passed over.
        schema: A dataclass of `ranged` fields.
        prefix: Where the node is, with a dot at the end, for error messages.

    Raises:
        ConfigError: At the first value of a wrong type or out of range.
    """
    return {
        item.name: _value(prefix + item.name, node[item.name], item.metadata["limits"])
        for item in dataclasses.fields(schema)
        if item.metadata and item.name in node
    }


def lacking(node: Mapping[Any, Any], schema: type) -> str | None:
    """The first field of `schema` that must be there and is not."""
    names = (item.name for item in dataclasses.fields(schema) if item.default is MISSING)
    return next((name for name in names if name not in node), None)


def shown(value: Any) -> str:
    """A value as one writes it in a config.

    Example:
        >>> shown(None), shown([1, 2]), shown(1e-3)
        ('null', '[1, 2]', '0.001')
    """
    return "null" if value is None else str(value)


def _value(name: str, value: Any, limits: Limits) -> Any:
    if OmegaConf.is_list(value) or isinstance(value, list):
        if not limits.always_many and (not limits.many or len(value) == 0):
            raise ConfigError(f"{name}={list(value)} must be {limits}.")
        one = dataclasses.replace(limits, many=False, always_many=False)
        return [_value(name, entry, one) for entry in value]
    if limits.always_many:
        example = shown(value) if _valid(value, limits) else "…"
        raise ConfigError(
            f"{name}={shown(value)} must be {limits}. Write it as a list, in quotes because of "
            f"the shell: '{name}=[{example}]'. [] is the empty list."
        )
    if value is None and limits.null:
        return None
    if not _valid(value, limits):
        raise ConfigError(f"{name}={shown(_kind(value, limits))} must be {limits}.")
    return _kind(value, limits)


def _valid(value: Any, limits: Limits) -> bool:
    right = {
        bool: value is True or value is False,
        str: isinstance(value, str) or (_number(value) and not limits.choices),
        float: _number(value) and abs(value) < float("inf"),
        int: _number(value) and float(value).is_integer(),
        SPAN: _span(value),
    }[limits.kind]
    return right and (not limits.choices or value in limits.choices) and _within(value, limits)


def _within(value: Any, limits: Limits) -> bool:
    return (
        (limits.low is None or value >= limits.low)
        and (limits.above is None or value > limits.above)
        and (limits.high is None or value <= limits.high)
        and (limits.below is None or value < limits.below)
    )


def _span(value: Any) -> bool:
    if _number(value):
        return value >= 0 and float(value).is_integer()
    share = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", str(value))
    return share is not None and float(share[1]) <= 100


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any, limits: Limits) -> Any:
    """The value in the field's type, where it can be."""
    if limits.kind in (int, SPAN) and _number(value) and float(value).is_integer():
        return int(value)
    if limits.kind in (float, str) and _number(value):
        return limits.kind(value)
    return value
