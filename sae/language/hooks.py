"""Functions that see, and may replace, activations at sites in every pass of a model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae.errors import ConfigError, SiteError
from sae.language import sites
from sae.types import Point


class Pass(NamedTuple):
    """The tokens of a forward pass.

    Args:
        tokens: Token ids; with a KV cache those that are new.
        start: Position of the first of them.
    """

    tokens: Int[Tensor, "batch new"]
    start: int


CACHE_NAMES = ("cache", "past_key_values")
"""Argument of a model that holds keys and values, in new and old versions of transformers."""
OnPass = Callable[[Tensor, Pass], Tensor | None]
"""Gets the activation [batch new d] and its pass; what it returns takes the activation's place."""


@contextmanager
def hooked(model: nn.Module, functions: Mapping[Point, OnPass]) -> Iterator[None]:
    """Call a function on the activation at each point, in every pass inside.

    Functions of an outer context come first and those of an inner one see what they return.

    Args:
        model: A causal LM of a known family.
        functions: Functions by point; the model must have the points.
    """
    current: list[Pass] = []

    def begin(module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        given = named.get("input_ids", inputs[0] if inputs else None)
        if given is None:
            raise ConfigError(
                "Activations are read and edited in passes over token ids. Give the LM input_ids, "
                "not inputs_embeds."
            )
        past = next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)
        current[:] = [Pass(given, 0 if past is None else int(past.get_seq_length()))]

    def end(module: nn.Module, inputs: tuple, output: Any) -> None:
        current.clear()

    handles: list[RemovableHandle] = []
    try:
        handles.append(model.register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(model.register_forward_hook(end, always_call=True))
        for point, function in functions.items():
            module = sites.module_at(model, point)
            factor = sites.factor_of(model) if sites.is_added(point) else None
            at_module = _as_at_site(function, current, factor)
            if sites.is_input(point):
                handles.append(module.register_forward_pre_hook(_on_input(at_module)))
            else:
                handles.append(module.register_forward_hook(_on_output(at_module)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def splices(replace: Mapping[Point, Callable[[Tensor], Tensor]] | None) -> dict[Point, OnPass]:
    """Replacements as functions of passes; SiteError where one returns another shape."""

    def splice(point: Point, function: Callable[[Tensor], Tensor]) -> OnPass:
        def swap(value: Tensor, _: Pass) -> Tensor:
            new = function(value)
            if not isinstance(new, Tensor) or new.shape != value.shape:
                got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise SiteError(
                    f"The replacement at {point} returned {got}; it must return a tensor of "
                    f"the activation's shape {list(value.shape)}."
                )
            return new.to(value)

        return swap

    return {point: splice(point, function) for point, function in (replace or {}).items()}


def _as_at_site(
    function: OnPass, current: list[Pass], factor: float | None
) -> Callable[[Tensor], Tensor | None]:
    """The function, for what the module itself has: rows without contexts, no factor yet.

    With a factor the function gets a copy, since some blocks (Falcon's) add to the outputs of
    modules in place.
    """

    def at_module(value: Tensor) -> Tensor | None:
        if not current:
            raise ConfigError(
                "A part of the LM was called by itself, so its tokens are not known. Call the "
                "whole LM (lm.logits, lm.capture, lm.generate, lm.model)."
            )
        (now,) = current
        here = value.reshape(*now.tokens.shape, value.shape[-1])  # OPT's MLP reads [batch * ctx, d]
        new = function(here if factor is None else here * factor, now)
        if new is None:
            return None
        return (new if factor is None else new / factor).reshape(value.shape)

    return at_module


def _on_input(function: Callable[[Tensor], Tensor | None]) -> Callable:
    def hook(module: nn.Module, inputs: tuple) -> tuple | None:
        new = function(inputs[0])
        return None if new is None else (new, *inputs[1:])

    return hook


def _on_output(function: Callable[[Tensor], Tensor | None]) -> Callable:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
        # Blocks return the tensor or, in other versions of transformers, a tuple that starts so.
        if not isinstance(output, tuple):
            return function(output)
        new = function(output[0])
        return None if new is None else (new, *output[1:])

    return hook
