"""The command line that trains an SAE again, with something changed."""

import shlex
from collections.abc import Mapping
from typing import Any

from sae.activations.settings import LMSettings
from sae.dictionaries import ARCHITECTURES
from sae.training.optimizers import OptimizerSettings
from sae.training.resampling import ResampleSettings
from sae.training.settings import TrainerSettings

_SHORT = ("layer", "site", "target", "l1", "k", "target_l0", "dict_ratio", "tokens")
_TRAINER = ("batch_size", "precision", "gradient_clip")
Node = Mapping[str, Any]


def config_of(metadata: Node) -> dict[str, Any]:
    """The part of a run's configuration that a saved SAE knows: not epochs, not the trainer."""
    made_of = dict(metadata["activations"])
    counts = made_of["tokens"]
    site, _, layer = made_of["point"].partition(".")
    activations = made_of | {
        "site": site, "layer": int(layer), "tokens": counts["train"],
        "val_tokens": counts["val"], "test_tokens": counts["test"],
        "normalize": metadata["normalize"],
    }  # fmt: skip
    known = {name: activations[name] for name in LMSettings.model_fields if name in activations}
    nodes = {"lm": made_of["lm"], "corpus": made_of["corpus"], "activations": known}
    return {**metadata["settings"], **nodes}


def command(config: Node, *, run_dir: str, **changes: Any) -> str:
    """A line for a shell that trains the SAE of a configuration, or a control of it.

    LM, text and architecture are chosen by their names in conf/; of all other settings, those are
    listed that differ from their defaults.

    Args:
        config: As in a run's config.yaml, or from `config_of`.
        run_dir: Folder of the new run.
        changes: Settings to add or to replace, such as `lm.random_weights`.
    """
    sae, resample = dict(config["sae"]), dict(config.get("resample") or {})
    architecture = sae.pop("architecture")
    words: dict[str, Any] = {
        "lm": config["lm"]["name"], "corpus": config["corpus"]["name"], "sae": architecture,
    }  # fmt: skip
    if "dtype" in config["lm"]:
        words["lm.dtype"] = config["lm"]["dtype"]
    words |= _short("activations", _others(config["activations"], LMSettings()))
    words |= _short("sae", _others(sae, ARCHITECTURES.find(architecture).Config()))
    if resample and not resample["at_tokens"]:
        words["resample"] = "none"
        resample.pop("at_tokens")
    defaults = {**ResampleSettings().model_dump(), "toward": "residual"}
    words |= {f"resample.{name}": v for name, v in resample.items() if v != defaults[name]}
    optimizer = config.get("optimizer") or {}
    chosen = OptimizerSettings(name=optimizer.get("name", "adam"))
    words |= {f"optimizer.{n}": v for n, v in _others(optimizer, chosen).items()}
    trainer = {n: v for n, v in (config.get("trainer") or {}).items() if n in _TRAINER}
    words |= {f"trainer.{n}": v for n, v in _others(trainer, TrainerSettings()).items()}
    words |= {name: config[name] for name in ("epochs", "seed") if name in config}
    words |= {name: value for name, value in changes.items()}
    if words.get("resample") == "none":
        words = {name: v for name, v in words.items() if not name.startswith("resample.")}
    words["run_dir"] = run_dir
    return " ".join(["python train.py", *(_word(name, value) for name, value in words.items())])


def _others(node: Node, defaults: Any) -> dict[str, Any]:
    """Settings that differ from the defaults."""
    usual = defaults.model_dump()
    return {n: v for n, v in node.items() if n != "kind" and n in usual and v != usual[n]}


def _short(node: str, settings: Node) -> dict[str, Any]:
    return {n if n in _SHORT else f"{node}.{n}": value for n, value in settings.items()}


def _word(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        value = "[" + ",".join(map(str, value)) + "]"
    text = {None: "null", True: "true", False: "false"}.get(value) if (
        value is None or isinstance(value, bool)
    ) else str(value)  # fmt: skip
    return shlex.quote(f"{name}={text}")
