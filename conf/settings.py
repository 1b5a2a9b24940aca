"""Settings of the two programs: their short overrides, and where the class of each node is."""

from collections.abc import Mapping
from typing import Any

from sae.settings import Settings, setting
from sae.types import Site

NAMES = ("architecture", "kind")
"""Keys of a node that name the part."""


class TrainSettings(Settings):
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
    e2e: dict | None = setting(None, help="training by the LM's predictions")
    layer: int = setting(ge=0, help="LM block to read, from 0")
    site: Site = setting(help="place in the block")
    target: Site | None = setting(None, help="site that a transcoder makes of `site`")
    l1: float = setting(ge=0, help="sparsity coefficient of sae=tied and sae=l1")
    k: int | None = setting(ge=1, help="latents that fire; of a baseline null is all")
    target_l0: float | None = setting(
        None, gt=0, help="L0 that the coefficient of a penalty is steered to"
    )
    dict_ratio: float = setting(gt=0, help="latents per activation dimension")
    seed: int = setting(ge=0, help="initial weights and resampling draws")
    tokens: int = setting(ge=1, help="LM tokens to harvest for training")
    epochs: int = setting(ge=1, help="passes over them")
    run_dir: str = setting(help="folder of this run; an existing run is continued")
    sweep_dir: str = setting(help="folder of a multirun; finished jobs are skipped")
    harvest_only: bool = setting(False, help="only fill the cache")
    plan: bool = setting(False, help="say what it will cost; run nothing")
    resume_with: Any = setting(None, help="settings of the optimiser for a run that goes on")


class EvaluateSettings(Settings):
    """Top level of conf/evaluate.yaml."""

    run: str = setting(help="run or SAE folder, sweep folder, other library's files, hub id")
    format: str | None = setting(None, help="of the files; null: found by their names")
    eval: dict = setting(help="what is measured")
    lm: dict | None = setting(None, help="another LM than the SAE's own")
    corpus: dict | None = setting(None, help="another text")
    layer: int | None = setting(None, ge=0, help="of an SAE from another library")
    site: Site | None = setting(None, help="of an SAE from another library")
    target: Site | None = setting(None, help="what a transcoder makes of `site`")
    ctx: int | None = setting(None, ge=2, help="tokens per context of a foreign SAE")
    tokens: int | None = setting(None, ge=1, help="test tokens")
    together: bool = setting(False, help="splice all SAEs of `run` into the LM at once")
    device: str = setting("auto", help="auto, cpu, cuda, …")
    saebench: bool = setting(False, help="write results in SAEBench's schema, too")
    export: str | None = setting(None, help="write the SAE in this format to `out`")
    out: str | None = setting(None, help="folder of the export, or of the results")


def settings_of(name: str, node: Mapping[str, Any]) -> "type[Settings]":
    """The class of a node's settings, which is declared beside the part.

    Raises:
        ConfigError: If the part that the node names is not known.
    """
    # importing parts takes seconds, which --help and misspelt keys need not wait for
    if name == "trainer":
        from sae.training.settings import TrainerSettings as Found
    elif name == "logger":
        from callbacks.settings import LoggerSettings as Found
    elif name == "resample":
        from sae.training.resampling import ResampleSettings as Found
    elif name == "optimizer":
        from sae.training.optimizers import OptimizerSettings as Found
    elif name == "e2e":
        from sae.training.end_to_end import EndToEndSettings as Found
    elif name == "activations":
        from sae.activations.settings import KINDS as SOURCES

        return SOURCES.find(node.get("kind"))
    elif name.startswith("callbacks."):
        from callbacks.settings import WATCHERS

        return WATCHERS.find(name.partition(".")[2])
    elif name.startswith("eval."):
        from sae.evals import EVALS

        return EVALS.find(name.partition(".")[2])
    elif node.get("kind") is not None:
        from sae.dictionaries.baselines import BASELINES

        return BASELINES.find(node.get("architecture"))
    else:
        from sae.dictionaries import ARCHITECTURES

        return ARCHITECTURES.find(node.get("architecture")).Config
    return Found
