"""The whole configuration: whether every value fits, and whether every override has an effect."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from conf.compose import compose_job, names_of, parse
from conf.effects import BASELINE, LISTS, check_training
from conf.help import SEVERAL, keys_of, with_defaults
from conf.options import keys_set_by, options
from conf.settings import PARTS, SHORT, EvaluateSettings, TrainSettings, part_of
from sae.errors import ConfigError
from sae.settings import Settings, shown, without_nulls

NODES = tuple(name for name in PARTS if name not in (*SEVERAL, BASELINE))


def check(config: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """Check types and ranges, and that each given short override has an effect.

    Whether overrides have an effect on a run that is already in `run_dir` depends on its saved
    configuration: `conf.resume.continued` tells.

    Args:
        config: The composed configuration.
        given: Names set on the command line: keys and chosen groups.

    Returns:
        The configuration as plain dicts and lists: interpolations resolved, integral floats where
        whole numbers are due turned into ints, every setting that is not given at its default.

    Raises:
        ConfigError: If a value is missing, of a wrong type, out of range or unused.
    """
    raw, plain = _containers(config)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(_no_value(missing[0]))
    if "run_dir" in raw and not (Path(str(config["run_dir"])) / "config.yaml").exists():
        nodes = str([node for node in raw.values() if isinstance(node, dict)])
        check_training(raw, given, [name for name in SHORT if f"${{{name}}}" in nodes])
    _drop_keys_of_other_kinds(plain, given)
    _drop_nulls_of_nobody(plain, raw, given)
    return check_nodes(plain, first={name.partition(".")[0] for name in given})


def checked_job(words: Sequence[str]) -> dict[str, Any]:
    """The checked configuration of the training that these words of a command line stand for."""
    return check(compose_job("train", words), names_of(parse(words)))


def in_full(config: DictConfig, given: Sequence[str] = ()) -> dict[str, Any]:
    """A composed configuration with the defaults of all settings, not checked (`--cfg job`)."""
    raw, plain = _containers(config)
    _drop_nulls_of_nobody(plain, raw, given)
    return _with_short(with_defaults(plain))


def _containers(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration as dicts and lists, with interpolations and with their values.

    Raises:
        ConfigError: If an interpolation refers to nothing.
    """
    raw: Any = OmegaConf.to_container(config, resolve=False)
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{error.full_key} refers to something that is not there: "
            f"{str(error).splitlines()[0]}. In a text, ${{ is written \\${{."
        ) from None
    return raw, plain


def _drop_keys_of_other_kinds(plain: dict[str, Any], given: Sequence[str]) -> None:
    """Drop keys of `activations` that a file such as debug=tiny sets whatever the kind is."""
    node = plain["activations"] if isinstance(plain.get("activations"), dict) else {}
    for key in keys_of("activations.") - keys_of(f"activations.{node.get('kind')}"):
        if f"activations.{key}" not in given:
            node.pop(key, None)


def _drop_nulls_of_nobody(
    plain: dict[str, Any], raw: Mapping[str, Any], given: Sequence[str]
) -> None:
    """Drop what interpolates a short override that nobody gave: the part has its own default."""
    known = {*given, *(key for word in given for key in keys_set_by(word))}
    for group in ("activations", "sae"):
        for key in dict(plain.get(group) or {}):
            if raw[group][key] == f"${{{key}}}" and plain[key] is None and key not in known:
                del plain[group][key]


def check_nodes(plain: Mapping[str, Any], first: Collection[str] = ()) -> dict[str, Any]:
    """Check types and ranges in a resolved configuration.

    Args:
        plain: The configuration, as `check` returns it or config.yaml holds it.
        first: Nodes to begin with. A mistake there is answered before others are imported.

    Raises:
        ConfigError: If a value is of a wrong type, out of range, or unknown.
    """
    trains = "run_dir" in plain
    program = TrainSettings if trains else EvaluateSettings
    for name, field in program.model_fields.items():
        if field.is_required() and name not in plain:
            raise ConfigError(_no_value(name))
    optional = [n for n, field in program.model_fields.items() if field.annotation == dict | None]
    plain = {**plain, **checked(program, plain)}
    plain |= {name: None for name in optional if plain[name] == {}}
    nodes = sorted(_nodes(plain), key=lambda one: one[0].partition(".")[0] not in first)
    for name, node in nodes:
        if not trains and name.startswith("eval."):  # evaluate.py takes the rest from the run
            checked(part_of(name, node)[0], without_nulls(node))
        elif trains or "kind" in node:  # lm.dtype alone says what differs from the SAE's own LM
            group, _, word = name.partition(".")
            found = _checked_node(name, node)
            plain[group] = plain[group] | {word: found} if word else found
    if not trains:
        return plain
    plain = _with_short(plain)
    if (kind := plain["sae"].get("kind")) not in (None, BASELINE):
        raise ConfigError(f"sae.kind={shown(kind)} must be {BASELINE}.")
    pair = plain["activations"].get("target") is not None or plain["e2e"] is not None
    if pair and kind == BASELINE:
        raise ConfigError(
            f"sae={plain['sae']['architecture']} is fitted to one activation; target and e2e have "
            "no effect on it. Drop them, or choose an SAE that is trained."
        )
    return plain


def _with_short(plain: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the values at the top level that its nodes have under these names."""
    read = {**(plain.get("activations") or {}), **(plain.get("sae") or {})}
    return plain | {name: read[name] for name in SHORT if name in read}


def _checked_node(name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    settings, names = part_of(name, node)
    own = {key: value for key, value in node.items() if key not in names}
    auto = {"dtype": "auto"} if name == "lm" and node.get("dtype") == "auto" else {}
    found = checked(settings, {key: value for key, value in own.items() if key not in auto})
    # yaml knows no tuples
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}
    return {key: node[key] for key in names if key in node} | lists | auto


def checked(settings: type[Settings], node: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node in their right types, with the defaults of those that it lacks.

    A list of a short override stands for several SAEs: each of its values is checked.

    Raises:
        ConfigError: If a value is unknown, of a wrong type or out of range.
    """
    make: Any = settings
    listed = {k: v for k, v in node.items() if k in (*LISTS, "run") and isinstance(v, list) and v}
    one = {**node, **{key: values[0] for key, values in listed.items()}}
    found = make(**one).model_dump()
    several = {
        key: [getattr(make(**{**one, key: value}), key) for value in values]
        for key, values in listed.items()
    }
    return found | several


def lacking_key(plain: Mapping[str, Any]) -> str | None:
    """The first key that the configuration of a run should have and has not."""
    nodes = [(f"{name}.", node, part_of(name, node)[0]) for name, node in _nodes(plain, NODES)]
    for prefix, node, settings in (("", plain, TrainSettings), *nodes):
        for key, field in settings.model_fields.items():
            # what is off (null, false) may be missing: the version that wrote it did not know it
            needed = field.is_required() or field.get_default() not in (None, False, [])
            if needed and key not in node:
                return prefix + key
    return None


def _nodes(
    plain: Mapping[str, Any], groups: Sequence[str] = (*NODES, *SEVERAL)
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places of the nodes with a class of settings, and their content."""
    for group in groups:
        if group not in SEVERAL and plain.get(group) is not None:
            yield group, _node(group, plain[group])
        elif group in SEVERAL:
            for word, node in _node(group, plain.get(group, {})).items():
                yield f"{group}.{word}", _node(f"{group}.{word}", node)


def _node(name: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(
            f"{name}={shown(node)} must be a node of settings: {name}.key=value. ~{name} removes "
            "it."
        )
    return node


def _no_value(key: str) -> str:
    known = ", ".join(options(key))
    remedy = f"Choose {key}=… from {known}." if known else f"Give one on the command line: {key}=…"
    return f"{key} has no value. {remedy}"
