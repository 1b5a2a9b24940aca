"""Fields with ranges: what a value may be, and how to say so when it is something else."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from omegaconf import MISSING, OmegaConf

from sae.errors import ConfigError
from sae.settings import shown


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
        return (
            text
            + (", or a list of such" if self.many else "")
            + (", or null" if self.null else "")
            + (f": {self.because}" if self.because else "")
        )


_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false",
}  # fmt: skip


def ranged(
    kind: Any, default: Any = MISSING, *, low: float | None = None, above: float | None = None,
    high: float | None = None, below: float | None = None, choices: Sequence[str] = (),
    many: bool = False, null: bool = False, because: str = "",
) -> Any:  # fmt: skip
    """A field with the limits that `checked` enforces.

    Args:
        kind: int, float, str or bool. An integral float such as 2e6 counts as an int.
        default: Anything but MISSING: the field may be left out.
        low: Smallest allowed value.
        above: The value must be greater than this.
        high: Largest allowed value.
        below: The value must be smaller than this.
        choices: Allowed words.
        many: A list of such values is allowed too.
        null: null is allowed too.
        because: Why, where the range does not explain itself.
    """
    limits = Limits(kind, low, above, high, below, choices, many, null, because)
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


def _value(name: str, value: Any, limits: Limits) -> Any:
    if OmegaConf.is_list(value) or isinstance(value, list):
        if not limits.many or len(value) == 0:
            raise ConfigError(f"{name}={list(value)} must be {limits}.")
        one = dataclasses.replace(limits, many=False)
        return [_value(name, entry, one) for entry in value]
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
    }[limits.kind]
    return right and (not limits.choices or value in limits.choices) and _within(value, limits)


def _within(value: Any, limits: Limits) -> bool:
    return (
        (limits.low is None or value >= limits.low)
        and (limits.above is None or value > limits.above)
        and (limits.high is None or value <= limits.high)
        and (limits.below is None or value < limits.below)
    )


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any, limits: Limits) -> Any:
    """The value in the field's type, where it can be."""
    if limits.kind is int and _number(value) and float(value).is_integer():
        return int(value)
    if limits.kind in (float, str) and _number(value):
        return limits.kind(value)
    return value
