"""What a command line of evaluate.py asks for, and which parts of it have no effect."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sae.errors import ConfigError

PLACES = ("layer", "site", "target", "ctx")
"""Where an SAE from another library is measured."""
OF_EVALUATION = ("lm", "corpus", *PLACES, "tokens", "device", "saebench")
"""Settings of the evaluation itself, handed on to `evaluate`."""


def set_by(
    names: Collection[str], evals: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, dict[str, Any]]:
    """The settings that the command line sets: conf/eval/*.yaml has those of new runs.

    Example:
        >>> core = {"resamples": None, "bootstrap": {"seed": 3, "level": 0.95}}
        >>> set_by(["eval.core.bootstrap.seed"], {"core": core})
        {'core': {'bootstrap': {'seed': 3}}}
    """
    return {name: _set_by(names, node or {}, f"eval.{name}") for name, node in evals.items()}


def _set_by(names: Collection[str], node: Mapping[str, Any], where: str) -> dict[str, Any]:
    if where in names:
        return dict(node)
    found = {}
    for name, value in node.items():
        if f"{where}.{name}" in names:
            found[name] = value
        elif isinstance(value, Mapping) and (nested := _set_by(names, value, f"{where}.{name}")):
            found[name] = nested
    return found


def reject_unused(name: str, unused: Collection[str], names: Collection[str]) -> None:
    """Refuse settings that an evaluation does not read.

    Args:
        name: Name of the evaluation.
        unused: Keys that it does not read.
        names: Keys that are set on the command line.
    """
    for key in unused:
        if any(given.split(".")[0] == key for given in names):
            raise ConfigError(
                f"{key} has no effect with eval=[{name}], which reads the runs as they are. "
                f"Drop {key}."
            )


def check_asked(
    config: Mapping[str, Any], runs: Sequence[str], names: Collection[str], several: Sequence[str]
) -> bool:
    """Refuse what has no effect, or would write two SAEs to one place.

    Args:
        config: The checked configuration.
        runs: The runs that are measured.
        names: Keys that are set on the command line.
        several: The evaluations, among the chosen ones, that measure SAEs against each other.

    Returns:
        Whether only an export is asked for.
    """
    evals, exported = list(config["eval"]), bool(config["export"])
    only_export = exported and not any(one == "eval" or one.startswith("eval.") for one in names)
    if not evals and not only_export:
        raise ConfigError("eval is empty. Choose evaluations: 'eval=[core,downstream]'.")
    if exported and not config["out"]:
        raise ConfigError(f"export={config['export']} needs a new folder: out=<folder>.")
    alone = len(several) == len(evals)
    one_place = config["together"] or (alone and len(evals) == 1)
    if config["out"] and len(runs) > 1 and not one_place:
        raise ConfigError(f"out={config['out']} is for one run; run= names {len(runs)}.")
    used = {name.partition(".")[0] for name in names}
    of_one = [name for name in ("export", "format", *PLACES, "saebench") if name in used]
    if config["together"] and evals and alone:
        words = ",".join(several)
        raise ConfigError(
            f"together=true has no effect with eval=[{words}], which splices nothing into an LM. "
            f"Drop it, or also measure the SAEs together: 'eval=[downstream,{words}]'."
        )
    if config["together"] and of_one:
        raise ConfigError(
            f"{', '.join(of_one)} has no effect with together=true. Drop one of them."
        )
    if only_export and (unused := [name for name in OF_EVALUATION if name in used]):
        raise ConfigError(
            f"{', '.join(unused)} has no effect on an export alone. Drop it, or also evaluate: "
            "'eval=[core]'."
        )
    return only_export
