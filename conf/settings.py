"""Settings of the two programs, and where the class of each node's settings is."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from conf.help import groups_in_words, keys_in_words
from sae.registry import Registry
from sae.settings import Settings, setting
from sae.types import Site

PARTS = {
    "lm": "sae.language:LMS",
    "corpus": "sae.language:CORPORA",
    "activations": "sae.activations.settings:KINDS",
    "sae": "sae.dictionaries:ARCHITECTURES",
    "baseline": "sae.dictionaries.baselines:BASELINES",
    "resample": "sae.training.resampling:ResampleSettings",
    "optimizer": "sae.training.optimizers:OptimizerSettings",
    "e2e": "sae.training.end_to_end:EndToEndSettings",
    "trainer": "sae.training.settings:TrainerSettings",
    "logger": "callbacks.settings:LoggerSettings",
    "callbacks": "callbacks.settings:WATCHERS",
    "eval": "sae.evals:EVALS",
}
"""Class of each node's settings, or registry of such classes. Importing one takes seconds."""


class ShortOverrides(Settings):
    """Settings of the dictionary and of its activations under short names.

    Type, range and default are those of the part that reads them. A list of values stands for
    several SAEs.
    """

    layer: Any = setting(None, help="LM block to read, from 0")
    site: Any = setting(None, help="place in the block")
    target: Any = setting(None, help="site that a transcoder makes of `site`")
    l1: Any = setting(None, help="sparsity coefficient")
    k: Any = setting(None, help="latents that fire; of a baseline null is all")
    target_l0: Any = setting(None, help="L0 that the coefficient of a penalty is steered to")
    dict_ratio: Any = setting(None, help="latents per activation dimension")
    tokens: Any = setting(None, help="LM tokens to harvest for training")


class TrainSettings(ShortOverrides):
    """Top level of conf/train.yaml."""

    lm: dict = setting(help="the LM")
    corpus: dict = setting(help="the text")
    activations: dict = setting(help="where the activations come from")
    sae: dict = setting(help="what is trained or fitted")
    resample: dict = setting(help="when dead latents start again")
    optimizer: dict = setting(help="optimiser and learning-rate schedule")
    trainer: dict = setting(help="how the training runs on this machine")
    logger: dict = setting(help="where metrics go")
    callbacks: dict = setting(help="what is measured during training")
    eval: dict = setting(help="what is measured in the end")
    e2e: dict | None = setting(None, help="training by the LM's predictions: experiment=e2e")
    seed: int = setting(0, ge=0, help="initial weights and resampling draws")
    epochs: int = setting(3, ge=1, help="passes over the tokens")
    run_dir: str = setting(help="folder of this run; an existing run is continued")
    sweep_dir: str = setting(help="folder of a multirun; finished jobs are skipped")
    harvest_only: bool = setting(False, help="only fill the cache")
    plan: bool = setting(False, help="say what it will cost; run nothing")
    resume_with: Any = setting(
        None, help="settings of the optimiser for a run that goes on: '{optimizer.lr: 1e-4}'"
    )


class EvaluateSettings(Settings):
    """Top level of conf/evaluate.yaml."""

    run: str = setting(help="run or SAE folder, sweep folder, other library's files, hub id")
    format: str | None = setting(None, help="of the files; null: found by their names")
    eval: dict = setting(help="what is measured; settings that are not given are as in the run")
    lm: dict | None = setting(None, help="another LM than the SAE's own")
    corpus: dict | None = setting(None, help="another text than that of its training")
    layer: int | None = setting(None, ge=0, help="of an SAE from another library")
    site: Site | None = setting(None, help="of an SAE from another library")
    target: Site | None = setting(None, help="what a transcoder makes of `site`")
    ctx: int | None = setting(None, ge=2, help="tokens per context of a foreign SAE")
    tokens: int | None = setting(None, ge=1, help="test tokens; null: as in training")
    together: bool = setting(False, help="splice all SAEs of `run` into the LM at once")
    device: str = setting("auto", help="auto, cpu, cuda, …")
    saebench: bool = setting(False, help="also write results in SAEBench's schema")
    export: str | None = setting(None, help="write the SAE in this format to `out`")
    out: str | None = setting(None, help="folder of the export, or of the results")


PROGRAMS: dict[str, type[Settings]] = {"train": TrainSettings, "evaluate": EvaluateSettings}
SHORT = tuple(ShortOverrides.model_fields)


def register() -> None:
    """Tell Hydra the keys and defaults of the top levels, and what `--help` says of them.

    Nodes are open: a part's own class says which keys it has.
    """
    OmegaConf.register_new_resolver("keys", keys_in_words, replace=True)
    OmegaConf.register_new_resolver("groups", groups_in_words, replace=True)
    for name, settings in PROGRAMS.items():
        top = OmegaConf.create()
        for key, field in settings.model_fields.items():
            value = "???" if field.is_required() else field.get_default()
            is_node = field.annotation in (dict, dict | None)
            if is_node:
                value = DictConfig(value or {}, flags={"struct": False})
            top[key] = value
        ConfigStore.instance().store(f"{name}_settings", top)


def part_of(name: str, node: Mapping[str, Any]) -> tuple[type[Settings], tuple[str, ...]]:
    """The class of a node's settings, which is declared beside the part.

    Args:
        name: `lm`, `sae`, …; for a callback or an evaluation `callbacks.<name>`, `eval.<name>`.
        node: Its content.

    Returns:
        The class, and the keys of the node that name the part.

    Raises:
        ConfigError: If the part that the node names is not known.
    """
    group, _, word = name.partition(".")
    found = resolve_name(PARTS["baseline" if group == "sae" and "kind" in node else group])
    names = ()
    if isinstance(found, Registry):
        key = found.key.rpartition(".")[2]
        names = () if word else tuple({key, "kind"})
        found = found.find(word or node.get(key))
    return getattr(found, "Config", found), names
