"""Types, ranges and the short overrides. Yaml files hold the values, this file what they may be."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from sae.errors import ConfigError
from sae.types import SITES

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
WANDB_MODES = ("auto", "online", "offline", "disabled")


def ranged(
    kind: type, default: Any = MISSING, *, low: float | None = None, above: float | None = None,
    high: float | None = None, choices: Sequence[str] = (), many: bool = False, null: bool = False,
) -> Any:  # fmt: skip
    """A field with the range that `check` enforces.

    Args:
        kind: int, float, str or bool. An integral float such as 2e6 counts as an int.
        default: Value where the yaml gives none.
        low: Smallest allowed value.
        above: The value must be greater than this.
        high: Largest allowed value.
        choices: Allowed words.
        many: A list of such values is allowed too.
        null: null is allowed too.
    """
    limits = {
        "kind": kind, "low": low, "above": above, "high": high, "choices": choices,
        "many": many, "null": null,
    }  # fmt: skip
    return field(default=default, metadata=limits)


@dataclass
class TrainerConfig:
    """conf/trainer/*.yaml."""

    batch_size: Any = ranged(int, low=1)
    precision: Any = ranged(str, choices=PRECISIONS)
    accelerator: Any = ranged(str)
    devices: Any = ranged(int, low=1)
    gradient_clip: Any = ranged(float, above=0, null=True)
    log_every_steps: Any = ranged(int, low=1)
    validations: Any = ranged(int, low=0)
    checkpoint_every_steps: Any = ranged(int, low=1)


@dataclass
class LoggerConfig:
    """conf/logger/*.yaml."""

    wandb: Any = ranged(str, choices=WANDB_MODES)
    project: Any = ranged(str)
    entity: Any = ranged(str, null=True)
    group: Any = ranged(str, null=True)
    name: Any = ranged(str, null=True)


@dataclass
class ResampleConfig:
    """conf/resample/*.yaml; spans are read by sae.training.schedules.span_tokens."""

    at_tokens: list[Any] = MISSING
    dead_after_tokens: Any = MISSING
    sample_tokens: Any = MISSING


@dataclass
class OptimizerConfig:
    """conf/optimizer/*.yaml."""

    name: Any = ranged(str, choices=("adam", "authors_adam"))
    lr: Any = ranged(float, above=0)
    beta1: Any = ranged(float, low=0, high=1)
    beta2: Any = ranged(float, low=0, high=1)
    eps: Any = ranged(float, above=0)
    warmup_tokens: Any = MISSING
    decay_tokens: Any = MISSING


@dataclass
class TrainConfig:
    """conf/train.yaml. The fields with a range are the short overrides."""

    lm: Any = MISSING
    corpus: Any = MISSING
    activations: Any = MISSING
    sae: Any = MISSING
    resample: ResampleConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: Any = MISSING
    eval: Any = MISSING
    layer: Any = ranged(int, low=0, many=True)
    site: Any = ranged(str, choices=SITES, many=True)
    l1: Any = ranged(float, low=0, many=True)
    k: Any = ranged(int, low=1, many=True)
    dict_ratio: Any = ranged(float, above=0, many=True)
    seed: Any = ranged(int, low=0, many=True)
    tokens: Any = ranged(int, low=1)
    epochs: Any = ranged(int, low=1)
    run_dir: Any = ranged(str)
    sweep_dir: Any = ranged(str)
    harvest_only: Any = ranged(bool, default=False)


@dataclass
class EvaluateConfig:
    """conf/evaluate.yaml."""

    run: Any = ranged(str, many=True)
    eval: Any = MISSING
    lm: Any = None
    corpus: Any = None
    tokens: Any = ranged(int, low=1, null=True, default=None)
    device: Any = ranged(str, default="auto")


SCHEMAS: dict[str, type] = {"train": TrainConfig, "evaluate": EvaluateConfig}
SHORT = ("layer", "site", "l1", "k", "dict_ratio", "tokens", "epochs", "seed")
USED_BY_PROGRAM = ("epochs", "seed")
"""Short overrides that train.py reads itself, so that no yaml node needs to mention them."""


def register() -> None:
    """Make the schemas known to Hydra under the names that the yaml files refer to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)


def check(config: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """Check types and ranges, and that each given short override has an effect.

    Args:
        config: The composed configuration.
        given: Names set on the command line: keys and chosen groups.

    Returns:
        The configuration as plain dicts and lists, interpolations resolved, integral floats where
        whole numbers are due turned into ints.

    Raises:
        ConfigError: At the first value that is missing, of a wrong type, out of range or unused.
    """
    schema = SCHEMAS["train" if "layer" in config else "evaluate"]
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    if schema is TrainConfig:
        _reject_unused(raw, given)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(
            f"{missing[0]} has no value. Give one on the command line: {missing[0]}=…"
        )
    # first the short overrides, so that nodes which interpolate them see the checked value
    for name, value in _checked(config, schema).items():
        config[name] = value
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.type) and isinstance(plain.get(item.name), dict):
            node = plain[item.name]
            assert isinstance(item.type, type)
            node.update(_checked(node, item.type, prefix=f"{item.name}."))
    return plain  # pyright: ignore[reportReturnType]


def _checked(node: Mapping[Any, Any], schema: type, prefix: str = "") -> dict[str, Any]:
    values = {}
    for item in dataclasses.fields(schema):
        if item.metadata and item.name in node:
            values[item.name] = _value(prefix + item.name, node[item.name], item.metadata)
    return values


def _value(name: str, value: Any, limits: Mapping[str, Any]) -> Any:
    if OmegaConf.is_list(value) or isinstance(value, list):
        if not limits["many"] or len(value) == 0:
            raise ConfigError(f"{name}={list(value)} must be {_allowed(limits)}.")
        return [_value(name, one, limits | {"many": False}) for one in value]
    if value is None and limits["null"]:
        return None
    kind = limits["kind"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {
        bool: isinstance(value, bool),
        str: isinstance(value, str) or (number and not limits["choices"]),
        float: number,
        int: number and float(value).is_integer(),
    }[kind]
    if right and kind is not bool:
        value = kind(value)
        right = (
            (not limits["choices"] or value in limits["choices"])
            and (limits["low"] is None or value >= limits["low"])
            and (limits["above"] is None or value > limits["above"])
            and (limits["high"] is None or value <= limits["high"])
            and (kind is not float or abs(value) < float("inf"))
        )
    if not right:
        raise ConfigError(f"{name}={value} must be {_allowed(limits)}.")
    return value


def _allowed(limits: Mapping[str, Any]) -> str:
    if limits["choices"]:
        text = "one of " + ", ".join(limits["choices"])
    else:
        kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        text = kinds[limits["kind"]]
        bounds = [
            f"{word} {limits[key]:g}"
            for key, word in (("low", "of at least"), ("above", "above"), ("high", "at most"))
            if limits[key] is not None
        ]
        text = " ".join([text, " and ".join(bounds)]).strip()
    return (
        text
        + (", or a list of such" if limits["many"] else "")
        + (", or null" if limits["null"] else "")
    )


def _reject_unused(raw: Mapping[str, Any], given: Sequence[str]) -> None:
    """Raise for a short override, or a group, that nothing in the chosen configuration reads."""
    nodes = {name: node for name, node in raw.items() if isinstance(node, dict)}
    choice = f"sae={nodes.get('sae', {}).get('architecture')}"
    for name in SHORT:
        if name not in given or name in USED_BY_PROGRAM or f"${{{name}}}" in str(nodes):
            continue
        readers = [short for short in SHORT if f"${{{short}}}" in str(nodes)]
        kind = nodes.get("activations", {}).get("kind")
        raise ConfigError(
            f"{name}={raw[name]} has no effect with {choice} activations={kind}, which read "
            f"{', '.join(readers)}. Drop {name}, or choose another sae= or activations=."
        )
    if nodes.get("activations", {}).get("kind") == "folder":
        for name in ("lm", "corpus", "harvest_only"):
            if name in given or any(key.startswith(f"{name}.") for key in given):
                raise ConfigError(
                    f"{name} has no effect with activations=folder: the vectors are already there."
                )
