"""What a command line of evaluate.py asks for, and which parts of it have no effect."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.errors import ConfigError

OF_EVALUATION = ("lm", "corpus", "layer", "site", "target", "ctx", "tokens", "device", "saebench")
"""Settings of the evaluation itself, handed on to `evaluate`."""


def set_by(
    names: Sequence[str], evals: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Only those settings that the command line sets: conf/eval/*.yaml has those of new runs."""
    return {
        word: {
            name: value
            for name, value in (settings or {}).items()
            if {f"eval.{word}.{name}", f"eval.{word}"} & set(names)
        }
        for word, settings in evals.items()
    }


def reject_for_several(word: str, names: Sequence[str]) -> None:
    """Dictionaries are compared on the test text they have in common: their own."""
    reads, instead = {
        "compare": ("the test text of the runs", "; eval.compare.num_tokens=… says how much of it"),
        "frontier": ("the results of the runs", ""),
    }[word]
    unused = ("lm", "corpus", "layer", "site", "target", "ctx", "tokens")
    for name in (*unused, *(("format", "device") if word == "frontier" else ())):
        if any(given.split(".")[0] == name for given in names):
            raise ConfigError(
                f"{name} has no effect with eval=[{word}], which reads {reads}. "
                f"Drop {name}{instead}."
            )


def check_asked(
    config: Mapping[str, Any], runs: Sequence[str], names: Sequence[str], only_export: bool
) -> None:
    """Refuse what has no effect, or would write two SAEs to one place."""
    if not config["eval"] and not only_export:
        raise ConfigError("eval is empty. Choose evaluations: 'eval=[core,downstream]'.")
    if config["export"] and not config["out"]:
        raise ConfigError(f"export={config['export']} needs a new folder: out=<folder>.")
    one_place = config["together"] or list(config["eval"]) in (["compare"], ["frontier"])
    if config["out"] and len(runs) > 1 and not one_place:
        raise ConfigError(f"out={config['out']} is for one run; run= names {len(runs)}.")
    used = {name.partition(".")[0] for name in names}
    of_one = ("export", "format", "layer", "site", "target", "ctx", "saebench")
    alone = [name for name in of_one if name in used]
    of_several = [word for word in config["eval"] if word in ("compare", "frontier")]
    if config["together"] and of_several == list(config["eval"]):
        words = ",".join(of_several)
        raise ConfigError(
            f"together=true has no effect with eval=[{words}], which splices nothing into an LM. "
            f"Drop it, or measure the SAEs together, too: 'eval=[downstream,{words}]'."
        )
    if config["together"] and alone:
        raise ConfigError(f"{', '.join(alone)} has no effect with together=true. Drop one of them.")
    if only_export and (unused := [name for name in OF_EVALUATION if name in used]):
        raise ConfigError(
            f"{', '.join(unused)} has no effect on an export alone. Drop it, or evaluate, too: "
            "'eval=[core]'."
        )
