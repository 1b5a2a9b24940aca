"""Overrides without effect are refused: of a training, of what is fitted, of an evaluation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from conf.settings import SHORT
from sae.errors import ConfigError
from sae.settings import shown

BASELINE = "baseline"
"""`sae.kind` of what is fitted instead of trained."""
_TRAINED_ONLY = ("epochs", "optimizer", "resample", "callbacks", "trainer")
LISTS = ("layer", "site", "l1", "k", "target_l0", "dict_ratio", "seed")
"""Keys of which a list stands for several SAEs (`several`)."""
JOINING = ("crosscoder",)
"""Architectures that read all listed layers at once."""
PLACES = ("layer", "site", "target", "ctx")
"""Place at which an SAE from another library is measured."""
_OF_EVALUATION = ("lm", "corpus", *PLACES, "tokens", "device", "saebench")


def refuse(
    given: Iterable[str],
    unread: Collection[str],
    where: str,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a key or group on the command line that nothing reads.

    Args:
        given: Names that the command line sets.
        unread: Keys of the top level that have no effect.
        where: The end of the sentence, and what to do besides leaving the key out.
        config: Given, it shows the key's value.

    Raises:
        ConfigError: If there is one.
    """
    for name in given:
        if name.partition(".")[0] in unread:
            value = "" if config is None else f"={shown(config[name])}"
            raise ConfigError(f"{name}{value} has no effect {where} Drop {name}.")


def several(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys whose list stands for several SAEs, with the list."""
    joins = config["sae"].get("architecture") in JOINING
    return {
        name: config[name]
        for name in LISTS
        if OmegaConf.is_list(config[name]) or isinstance(config[name], list)
        if not (joins and name == "layer")
    }


def reject_lists(config: Mapping[str, Any]) -> None:
    """Refuse a list that stands for several SAEs where one is trained.

    Raises:
        ConfigError: If there is one; the message tells how to train several.
    """
    for name, listed in several(config).items():
        values = ",".join(map(str, listed))
        joining = f" One SAE for all layers: sae={JOINING[0]}." if name == "layer" else ""
        raise ConfigError(
            f"{name}=[{values}] names several SAEs, and this is one run. Without -m, "
            f"python train.py '{name}=[{values}]' trains them from one read; as jobs of a "
            f"sweep: python train.py -m {name}={values}; in Python: docs/guides/ensembles.md."
            f"{joining}"
        )


def check_training(
    config: Mapping[str, Any], given: Sequence[str], readers: Collection[str]
) -> None:
    """Refuse a short override, or a group, that nothing in the configuration reads.

    Args:
        config: The configuration.
        given: Names that the command line sets.
        readers: Short overrides that some node reads.

    Raises:
        ConfigError: If the command line sets one that nothing reads.
    """
    kind, sae = config["activations"].get("kind"), config["sae"].get("architecture")
    parts = f"with sae={sae} activations={kind}, which read {', '.join(readers)}."
    refuse(given, set(SHORT) - set(readers), parts, config)
    if kind != "lm":
        refuse(given, ("lm", "corpus", "harvest_only"), f"with activations={kind}: no LM runs.")
    if config["harvest_only"] and config["activations"].get("stream"):
        raise ConfigError(
            "harvest_only=true has no effect with activations.stream=true, which keeps no "
            "activations. Drop one of them."
        )


def check_fitting(config: Mapping[str, Any], given: Sequence[str]) -> None:
    """Refuse settings of the training where a baseline is fitted.

    A sweep is not checked: its other jobs may be SAEs, which read these settings.
    """
    sae, given = config["sae"], [name for name in given if name != "trainer.accelerator"]
    if sae.get("kind") == BASELINE:
        unread = [*_TRAINED_ONLY, *([] if "seed" in sae else ["seed"])]
        refuse(given, unread, f"with sae={sae['architecture']}, which is fitted, not trained.")


def refuse_serving(config: Mapping[str, Any], where: str) -> None:
    """Refuse a dashboard that is served, which ends when somebody ends it, where others wait.

    Args:
        config: A configuration of either program.
        where: The end of the sentence.

    Raises:
        ConfigError: If there is one.
    """
    if (config["eval"].get("dashboard") or {}).get("serve"):
        raise ConfigError(
            f"eval.dashboard.serve=true is for one run of evaluate.py, {where}. Leave it out, and "
            "serve one: python evaluate.py run=<run> 'eval=[dashboard]' eval.dashboard.serve=true"
        )


def check_evaluation(
    config: Mapping[str, Any], runs: Sequence[str], given: Sequence[str], several: Sequence[str]
) -> bool:
    """Refuse what has no effect, or would write two SAEs to one place.

    Args:
        config: The checked configuration.
        runs: The runs that are measured.
        given: Names that the command line sets.
        several: The evaluations, among the chosen ones, that measure SAEs against each other.

    Returns:
        Whether only an export is asked for.
    """
    evals, exported = list(config["eval"]), bool(config["export"])
    only_export = exported and not any(name.partition(".")[0] == "eval" for name in given)
    if len(runs) > 1:
        refuse_serving(config, f"and run= names {len(runs)}")
    if not evals and not only_export:
        raise ConfigError("eval is empty. Choose evaluations: 'eval=[core,downstream]'.")
    if exported and not config["out"]:
        raise ConfigError(f"export={config['export']} needs a new folder: out=<folder>.")
    alone = len(several) == len(evals)
    one_place = config["together"] or (alone and len(evals) == 1)
    if config["out"] and len(runs) > 1 and not one_place:
        raise ConfigError(f"out={config['out']} is for one run; run= names {len(runs)}.")
    if config["together"] and evals and alone:
        words = ",".join(several)
        raise ConfigError(
            f"together=true has no effect with eval=[{words}], which splices nothing into an LM. "
            f"Drop it, or also measure the SAEs together: 'eval=[downstream,{words}]'."
        )
    if config["together"]:
        refuse(given, ("export", "format", *PLACES, "saebench"), "with together=true.")
    if only_export:
        also = "on an export alone. To evaluate as well: 'eval=[core]'."
        refuse(given, _OF_EVALUATION, also)
    return only_export
