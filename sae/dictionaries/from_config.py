"""Build the dictionary that a configuration names; every mistake is found first."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.base import ARCHITECTURES, Dictionary
from sae.dictionaries.shape import Init, Shape
from sae.errors import ConfigError
from sae.functional import input_and_target


def settings_of(config: Mapping[str, Any]) -> tuple[type[Dictionary], Any]:
    """The class that a configuration names, and its checked settings.

    Args:
        config: `architecture` and its settings; those left out take their defaults.

    Raises:
        ConfigError: If the architecture is unknown or a setting is missing, unknown or invalid.
    """
    settings = dict(config)
    cls = ARCHITECTURES.find(settings.pop("architecture", None))
    return cls, cls.Config(**settings)


def build_dictionary(
    config: Mapping[str, Any],
    *,
    d_in: int,
    d_out: int | None = None,
    widths: Sequence[int] = (),
    mean: Tensor | None = None,
    spread: float | None = None,
    long_run: bool = False,
    seed: int = 0,
    kernels: str = "auto",
) -> Dictionary:
    """Build the dictionary that a configuration names.

    Args:
        config: `architecture` and its settings; d_sae = dict_ratio * d_in (of several layers, that
            of one).
        d_in: Width of the activations.
        d_out: Width of the target of a transcoder; None where the input is the target.
        widths: Widths of the layers that a crosscoder's vectors consist of.
        mean: Mean vector of the training split, scaled, that of the target after that of the
            input; start value of biases and centre.
        spread: Standard deviation of ordinary scaled activations; None: unknown.
        long_run: See `Init`.
        seed: Seed of the initial weights.
        kernels: See `Init`.

    Raises:
        ConfigError: If the architecture is unknown or a setting is missing, unknown or invalid.
    """
    cls, settings = settings_of(config)
    skip = getattr(settings, "skip", False)
    check_ends(
        cls.architecture, transcoder=d_out is not None, num_layers=max(1, len(widths)), skip=skip
    )
    d_sae = max(1, round(settings.dict_ratio * d_in / max(1, len(widths))))
    start, target = (None, None) if mean is None else input_and_target(mean, d_in)
    generator = torch.Generator().manual_seed(seed)
    make: Any = cls
    return make(
        settings,
        Shape(d_in, d_sae, d_out, tuple(widths)),
        Init(start, target, spread, long_run, generator, kernels),
    )


def check_ends(word: str, *, transcoder: bool, num_layers: int, skip: bool) -> None:
    """Check that an architecture can read and write what it is asked to.

    Raises:
        ConfigError: If not, with those that can.
    """
    cls = ARCHITECTURES[word]
    if transcoder and not cls.transcodes:
        able = sorted(name for name, one in ARCHITECTURES.items() if one.transcodes)
        raise ConfigError(
            f"sae={word} cannot be trained with a target: it reads and writes in one space, and "
            f"both ends must be equal. Drop target, or choose sae= one of {', '.join(able)}."
        )
    if skip and not transcoder:
        raise ConfigError(
            "sae.skip=true needs a target: from an activation to itself, a linear path would "
            "reconstruct everything. Give target=mlp_out, or drop sae.skip."
        )
    if num_layers > 1 and not cls.joins:
        able = sorted(name for name, one in ARCHITECTURES.items() if one.joins)
        raise ConfigError(
            f"sae={word} reads one layer, and {num_layers} were given. One SAE for all of them is "
            f"sae={' or '.join(able)}."
        )


def sparsity_of(config: Mapping[str, Any]) -> list[str]:
    """Settings that decide the sparsity of a configured dictionary, to name runs by.

    Example:
        >>> sparsity_of({"l1": 1e-3, "target_l0": None}), sparsity_of({"l1": 1e-3, "target_l0": 32})
        (['l1=0.001'], ['target_l0=32'])
    """
    if config.get("target_l0") is not None:
        return [f"target_l0={config['target_l0']:g}"]
    deciding = ("l1", "l0_coefficient", "components", "k")
    return [f"{key}={config[key]:g}" for key in deciding if config.get(key) is not None]
