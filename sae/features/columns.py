"""Summaries of many latents as arrays, so that one of them is one read."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from sae.features.record import Summary
from sae.features.shown import Group, Listed, Shown
from sae.features.summary import LISTED_TOKENS, STACKED_TOKENS

_GROUPS: tuple[str, ...] = get_args(Group)
_NUMBERS = ("firings", "contexts_fired", "max", "mean")
_ARRAYS = ("interval_counts", "decile_edges", "histogram", "positions")
_LISTS = ("by_mass", "by_mean")
_SHOWN = ("context", "peak", "value", "interval", "decile")


def pack(latents: Sequence[int], summaries: Sequence[Summary]) -> dict[str, Tensor]:
    """Arrays with an entry for each latent, and flat ones of their contexts and firings."""
    found: dict[str, np.ndarray] = {"latent": np.array(latents, np.int64)}
    if not latents:
        return {"latent": torch.zeros(0, dtype=torch.int64)}
    for name in (*_NUMBERS, *_ARRAYS):
        found[name] = np.stack([getattr(one, name) for one in summaries])
    for name in _LISTS:
        lists = [getattr(one, name) for one in summaries]
        found[f"{name}.ids"] = np.stack([_padded(one.ids, LISTED_TOKENS, -1) for one in lists])
        found[f"{name}.values"] = np.stack([_padded(one.values, LISTED_TOKENS, 0) for one in lists])
    tokens = [_padded(one.histogram_tokens, STACKED_TOKENS, -1) for one in summaries]
    found["histogram_tokens"] = np.stack(tokens)
    shown = [one for summary in summaries for one in summary.contexts]
    found["shown.start"] = _starts([len(summary.contexts) for summary in summaries])
    found["shown.group"] = np.array([_GROUPS.index(one.group) for one in shown], np.uint8)
    for name in _SHOWN:
        found[f"shown.{name}"] = np.array([getattr(one, name) for one in shown])
    found["firing.start"] = _starts([len(one.positions) for one in shown])
    found["firing.position"] = np.concatenate([one.positions for one in shown]).astype(np.int32)
    found["firing.value"] = np.concatenate([one.values for one in shown])
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def unpack(packed: dict[str, np.ndarray], i: int) -> Summary:
    """The summary of entry `i`."""
    numbers = {name: packed[name][i].item() for name in _NUMBERS}
    arrays = {name: packed[name][i] for name in _ARRAYS}
    lists = {}
    for name in _LISTS:
        there = packed[f"{name}.ids"][i] >= 0
        lists[name] = Listed(packed[f"{name}.ids"][i][there], packed[f"{name}.values"][i][there])
    tokens = packed["histogram_tokens"][i]
    tokens = tokens[tokens >= 0]
    shown = range(*packed["shown.start"][i : i + 2].tolist())
    return Summary(
        **numbers, **arrays, **lists, histogram_tokens=tokens,
        contexts=[_shown(packed, j) for j in shown],
    )  # fmt: skip


def _shown(packed: dict[str, np.ndarray], j: int) -> Shown:
    own = slice(*packed["firing.start"][j : j + 2].tolist())
    group = _GROUPS[packed["shown.group"][j]]
    numbers = {name: packed[f"shown.{name}"][j].item() for name in _SHOWN}
    return Shown(
        group=group, **numbers,  # pyright: ignore[reportArgumentType]
        positions=packed["firing.position"][own], values=packed["firing.value"][own],
    )  # fmt: skip


def _padded(values: np.ndarray, count: int, fill: int) -> np.ndarray:
    return np.pad(values, (0, count - len(values)), constant_values=fill)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
