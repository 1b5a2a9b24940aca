"""From a configuration to the dictionary that it names, with every mistake found before."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.base import ARCHITECTURES, Dictionary
from sae.errors import ConfigError
from sae.functional import input_and_target


def build_dictionary(
    config: Mapping[str, Any],
    *,
    d_in: int,
    d_out: int | None = None,
    widths: Sequence[int] = (),
    mean: Tensor | None = None,
    seed: int = 0,
) -> Dictionary:
    """Build the dictionary that a configuration names.

    Args:
        config: `architecture`, `dict_ratio` (d_sae = dict_ratio * d_in; of several layers, that of
            one), `skip` and its own settings.
        d_in: Width of the activations.
        d_out: Width of the target of a transcoder; None where the input is the target.
        widths: Of a crosscoder: widths of the layers that the activations consist of.
        mean: Mean vector of the training split, scaled, that of the target after that of the
            input; start value of biases and centre.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: If the architecture is unknown or a setting is missing, unknown or invalid.
    """
    settings = dict(config)
    skip = settings.pop("skip", False)
    for name in ("start_bias", "gate_trains_decoder"):
        if settings.get(name, 0) is None:  # what the class says
            del settings[name]
    word = settings.pop("architecture", None)
    if word not in ARCHITECTURES:
        raise ConfigError(
            f"sae.architecture={word!r} is not known. Choose one of {sorted(ARCHITECTURES)}."
        )
    ratio = settings.pop("dict_ratio", None)
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not ratio > 0:
        raise ConfigError(f"dict_ratio={ratio!r} must be a number above 0, for example 8.")
    cls = ARCHITECTURES[word]
    if not _required(cls) <= set(settings) <= cls.options:
        raise ConfigError(
            f"sae.architecture={word} was given {sorted(settings)}; it reads {sorted(cls.options)}."
        )
    check_ends(word, transcoder=d_out is not None, num_layers=max(1, len(widths)), skip=skip)
    d_sae = max(1, round(ratio * d_in / max(1, len(widths))))
    if widths:
        settings["widths"] = tuple(widths)
    generator = torch.Generator().manual_seed(seed)
    start, target = (None, None) if mean is None else input_and_target(mean, d_in)
    dictionary = cls(d_in, d_sae, mean=start, generator=generator, **settings)  # pyright: ignore[reportCallIssue]
    if d_out is not None:
        made: Any = dictionary
        made.transcode(d_out, centre=start, mean=target, skip=skip, generator=generator)
    return dictionary


def check_ends(word: str, *, transcoder: bool, num_layers: int, skip: bool) -> None:
    """Whether an architecture can read and write what it is asked to.

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


def _required(cls: type[Dictionary]) -> set[str]:
    """Options without a default, in the class or, where it hands them on, in a base."""
    found: dict[str, bool] = {}
    for one in cls.__mro__:
        for name, parameter in signature(one.__init__).parameters.items():
            found.setdefault(name, parameter.default is Parameter.empty)
    return {name for name in cls.options if found.get(name, True)}


def sparsity_of(config: Mapping[str, Any]) -> list[str]:
    """What decides the sparsity of a configured dictionary, to name runs by.

    Example:
        >>> sparsity_of({"l1": 1e-3, "target_l0": None}), sparsity_of({"l1": 1e-3, "target_l0": 32})
        (['l1=0.001'], ['target_l0=32'])
    """
    if config.get("target_l0") is not None:
        return [f"target_l0={config['target_l0']:g}"]
    deciding = ("l1", "l0_coefficient", "components", "k")
    return [f"{key}={config[key]:g}" for key in deciding if config.get(key) is not None]
