"""What the nodes of a configuration may hold: types and ranges. Yaml files hold the values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from conf.fields import ranged
from sae.types import SITES

if TYPE_CHECKING:
    from sae.settings import Settings

KERNELS = ("auto", "int8", "dense", "sparse")
PRECISIONS = ("auto", "32-true", "bf16-mixed")
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class ActivationsConfig:
    """What conf/activations/*.yaml share."""

    kind: Any = ranged(str)
    seed: Any = ranged(int, low=0)
    normalize: Any = ranged(str, choices=("spread", "mean_square", "none"))
    max_norm: Any = ranged(float, None, above=0, null=True)
    buffer_rows: Any = ranged(int, low=1)


@dataclass
class FolderActivationsConfig(ActivationsConfig):
    """conf/activations/folder.yaml."""

    path: Any = ranged(str)
    val_fraction: Any = ranged(float, low=0, below=1)
    test_fraction: Any = ranged(float, low=0, below=1)


@dataclass
class SuperpositionActivationsConfig(ActivationsConfig):
    """conf/activations/superposition.yaml. `sae.synthetic.World` checks the rest."""

    tokens: Any = ranged(int, low=1)
    val_tokens: Any = ranged(int, low=1)
    test_tokens: Any = ranged(int, low=1)
    d_in: Any = ranged(int, low=1)
    num_features: Any = ranged(int, low=1)
    active: Any = ranged(float, above=0)
    decay: Any = ranged(float, above=0, high=1)
    zipf: Any = ranged(float, low=0)
    rescale: Any = ranged(bool)
    branch: Any = ranged(str, choices=("uncorrelated", "correlated"))
    correlation_per: Any = ranged(str, choices=("sample", "batch"))
    coefficients: Any = ranged(str, choices=("uniform", "product"))
    hierarchy: Any = ranged(float, low=0, below=1)
    child_probability: Any = ranged(float, above=0, high=1)
    absorption: Any = ranged(float, low=0, high=1)
    noise: Any = ranged(float, low=0)


@dataclass
class LMActivationsConfig(ActivationsConfig):
    """conf/activations/lm.yaml."""

    val_fraction: Any = ranged(float, low=0, below=1)
    test_fraction: Any = ranged(float, low=0, below=1)
    layer: Any = ranged(int, low=0, many=True)
    site: Any = ranged(str, choices=SITES, many=True)
    target: Any = ranged(str, None, choices=SITES, null=True)
    tokens: Any = ranged(int, low=1)
    val_tokens: Any = ranged(int, low=1)
    test_tokens: Any = ranged(int, low=1)
    ctx: Any = ranged(int, low=2)
    dtype: Any = ranged(str, choices=("bfloat16", "float16", "float32"))
    keep_first: Any = ranged(bool)
    special: Any = ranged(str, "keep", choices=("drop", "keep", "all"))
    batch_contexts: Any = ranged(int, low=1)
    stream: Any = ranged(bool, False)


@dataclass
class TrainerConfig:
    """conf/trainer/*.yaml."""

    batch_size: Any = ranged(int, low=1)
    precision: Any = ranged(str, choices=PRECISIONS)
    kernels: Any = ranged(str, choices=KERNELS)
    accelerator: Any = ranged(str)
    devices: Any = ranged(int, low=1)
    num_nodes: Any = ranged(int, 1, low=1)
    gradient_clip: Any = ranged(float, low=0, null=True)
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
class WordConfig:
    """What one word of conf/callbacks/*.yaml or conf/eval/*.yaml may hold."""

    num_tokens: Any = ranged(int, None, low=1)
    batch_contexts: Any = ranged(int, None, low=1)
    batch_rows: Any = ranged(int, None, low=1)
    resamples: Any = ranged(int, None, low=1)
    every_n_validations: Any = ranged(int, None, low=1)
    max_steps: Any = ranged(int, None, low=1)
    threshold: Any = ranged(float, None, above=0, below=1)


@dataclass
class TrainConfig:
    """conf/train.yaml. The fields with a range are the short overrides."""

    lm: Any = MISSING
    corpus: Any = MISSING
    activations: Any = MISSING
    sae: Any = MISSING
    resample: Any = MISSING
    optimizer: Any = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: Any = MISSING
    eval: Any = MISSING
    e2e: Any = None
    layer: Any = ranged(int, low=0, many=True)
    site: Any = ranged(str, choices=SITES, many=True)
    target: Any = ranged(str, None, choices=SITES, null=True)
    l1: Any = ranged(float, low=0, many=True)
    k: Any = ranged(int, low=1, many=True, null=True)
    target_l0: Any = ranged(float, None, above=0, many=True, null=True)
    dict_ratio: Any = ranged(float, above=0, many=True)
    seed: Any = ranged(int, low=0, many=True)
    tokens: Any = ranged(int, low=1)
    epochs: Any = ranged(int, low=1)
    run_dir: Any = ranged(str)
    sweep_dir: Any = ranged(str)
    harvest_only: Any = ranged(bool, default=False)
    plan: Any = ranged(bool, default=False)
    resume_with: Any = None


@dataclass
class EvaluateConfig:
    """conf/evaluate.yaml."""

    run: Any = ranged(str, many=True)
    format: Any = ranged(str, null=True, default=None)
    eval: Any = MISSING
    lm: Any = None
    corpus: Any = None
    layer: Any = ranged(int, low=0, null=True, default=None)
    site: Any = ranged(str, choices=SITES, null=True, default=None)
    target: Any = ranged(str, choices=SITES, null=True, default=None)
    ctx: Any = ranged(int, low=2, null=True, default=None)
    tokens: Any = ranged(int, low=1, null=True, default=None)
    together: Any = ranged(bool, default=False)
    device: Any = ranged(str, default="auto")
    saebench: Any = ranged(bool, default=False)
    export: Any = ranged(str, null=True, default=None)
    out: Any = ranged(str, null=True, default=None)


ACTIVATIONS: dict[str, type] = {
    "lm": LMActivationsConfig, "folder": FolderActivationsConfig,
    "superposition": SuperpositionActivationsConfig,
}  # fmt: skip
NODES: dict[str, type] = {"trainer": TrainerConfig, "logger": LoggerConfig}


def part_config(name: str, node: Mapping[str, Any]) -> "type[Settings]":
    """The class of a node's settings, which is declared beside the part.

    Raises:
        ConfigError: If an SAE's architecture is not known.
    """
    # importing parts takes seconds, which --help and misspelt keys need not wait for
    if name == "resample":
        from sae.training.resampling import ResampleSettings as Found
    elif name == "optimizer":
        from sae.training.optimizers import OptimizerSettings as Found
    elif name == "e2e":
        from sae.training.end_to_end import EndToEndSettings as Found
    elif name == "sae" and node.get("kind") is not None:
        from sae.dictionaries.baselines import BASELINES

        return BASELINES.find(node.get("architecture"))
    else:
        from sae.dictionaries import ARCHITECTURES

        return ARCHITECTURES.find(node.get("architecture")).Config
    return Found
