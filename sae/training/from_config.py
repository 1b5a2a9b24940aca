"""From plain configuration to the module that is trained."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from sae.activations.contexts import ContextDataModule
from sae.activations.datamodule import ActivationDataModule
from sae.activations.ranges import check_range
from sae.activations.sources import ActivationSource, LMActivations
from sae.dictionaries import ARCHITECTURES, build_dictionary
from sae.dictionaries.from_config import check_ends, settings_of
from sae.dtypes import fast_dtype, resolve_lm
from sae.errors import ConfigError
from sae.training.end_to_end import EndToEndModule, EndToEndSettings
from sae.training.module import RunLength, SAEModule
from sae.training.optimizers import LONG_RUN_STEPS, OptimizerSettings
from sae.training.resampling import ResampleSettings
from sae.training.settings import TrainerSettings
from sae.types import Split


def build_module(config: Mapping[str, Any], data: ActivationDataModule) -> SAEModule:
    """The module for the nodes `sae`, `optimizer`, `resample` and the `seed`.

    Args:
        config: Plain dicts as conf/*.yaml has them.
        data: Prepared; gives width, mean, scale and the length of the run.
    """
    settings = dict(config["sae"])
    cls = ARCHITECTURES.find(settings["architecture"])
    if config.get("e2e") is not None:
        settings |= {k: v for k, v in cls.e2e_settings.items() if settings.get(k) is None}
    ends, widths = getattr(data.source, "ends", None), data.widths
    pair = ends is not None and ends.pair
    d_in, d_out = widths if pair else (data.d_in, None)
    long_run = data.steps >= LONG_RUN_STEPS
    read = data.spreads[:1] if pair else data.spreads
    trainer = TrainerSettings(**config["trainer"])
    dictionary = build_dictionary(
        settings, d_in=d_in, d_out=d_out, widths=() if pair or len(widths) == 1 else widths,
        mean=data.mean * data.scale, spread=math.sqrt(sum(s**2 for s in read) / len(read)),
        long_run=long_run, seed=config["seed"], kernels=trainer.kernels,
    )  # fmt: skip
    kind, more = _kind(config, data)
    open_norm = trainer.gradient_clip is None and not long_run
    return kind(
        dictionary,
        **more,
        length=RunLength(data.steps, data.batch_size),
        optimizer=OptimizerSettings(**config["optimizer"]).for_run(data.steps),
        resampling=ResampleSettings(**config["resample"]),
        sparsity_warmup_tokens=getattr(dictionary.config, "sparsity_warmup_tokens", 0),
        target_l0=getattr(dictionary.config, "target_l0", None),
        gradient_norm=dictionary.gradient_norm if open_norm else None,
        scale=data.scale,
        seed=config["seed"],
        renewed=[name.removeprefix("optimizer.") for name in config.get("resume_with") or ()],
    )


def _kind(
    config: Mapping[str, Any], data: ActivationDataModule
) -> tuple[type[SAEModule], dict[str, Any]]:
    """The class of the module, and the arguments that only it takes."""
    settings, source = config.get("e2e"), data.source
    if settings is None:
        return SAEModule, {}
    assert isinstance(source, LMActivations)  # see `check_settings`
    return EndToEndModule, {
        "ends": source.ends,
        "load_lm": source.load_lm,
        "settings": EndToEndSettings(**settings),
        "keep_first": source.specs["train"].keep_first,
        "counted": source.counted,
    }


def check_settings(config: Mapping[str, Any]) -> None:
    """Build what can be built without activations, so that mistakes come before the harvest.

    Raises:
        ConfigError: If a setting is missing, unknown or out of range.
    """
    OptimizerSettings(**config["optimizer"])
    resampling = ResampleSettings(**config["resample"])
    sae, activations = config["sae"], config["activations"]
    if sae.get("kind") is None:
        architecture, settings = settings_of(sae)
        layer = activations.get("layer")
        check_ends(
            sae["architecture"],
            transcoder=activations.get("target") is not None,
            num_layers=len(layer) if isinstance(layer, list) else 1,
            skip=getattr(settings, "skip", False),
        )
        resampling.check(architecture, getattr(settings, "frozen_decoder", False))
    if (e2e := config.get("e2e")) is not None:
        EndToEndSettings(**e2e)
        if activations["kind"] != "lm":
            raise ConfigError(
                "e2e trains by an LM's predictions; these activations come without one. Use "
                "activations=lm, or drop e2e."
            )
    trainer = TrainerSettings(**config["trainer"])
    if trainer.batch_size % trainer.processes:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} is not divisible among {trainer.processes} "
            f"processes. Use a multiple of {trainer.processes}."
        )
    there = torch.cuda.device_count()
    if resolve_device(trainer.accelerator) == "cuda" and trainer.devices > there:
        raise ConfigError(
            f"trainer.devices={trainer.devices} is more than the {there} GPUs here. Use fewer, or "
            "trainer.accelerator=cpu."
        )


def check_processes(started: int, trainer: TrainerSettings) -> None:
    """Compare the processes that a cluster started with those that were asked for.

    Raises:
        ConfigError: If they differ: some would wait for ever, or train alone.
    """
    if started != trainer.processes:
        raise ConfigError(
            f"trainer.devices={trainer.devices} on trainer.num_nodes={trainer.num_nodes} means "
            f"{trainer.processes} processes, but the cluster started {started}. On Slurm: sbatch "
            f"--nodes={trainer.num_nodes} --ntasks-per-node={trainer.devices}, and srun before "
            "python."
        )


def build_data(config: Mapping[str, Any], source: ActivationSource) -> ActivationDataModule:
    """The data module over a prepared source.

    Raises:
        ConfigError: If a split that the run will read has no rows.
        StoreError: If float32 cannot hold the squares of its values.
    """
    activations, trainer = config["activations"], TrainerSettings(**config["trainer"])
    kind = ActivationDataModule if config.get("e2e") is None else ContextDataModule
    data = kind(
        source,  # pyright: ignore[reportArgumentType]
        batch_size=trainer.batch_size,
        epochs=config["epochs"],
        buffer_rows=activations["buffer_rows"],
        seed=activations["seed"],
        normalize=activations["normalize"],
    )
    validated = trainer.validations and config["sae"].get("kind") is None
    needed: list[Split] = ["train", "test", *(["val"] if validated else [])]
    for split in needed:
        check_range(split, data.rows(split))
    return data


def l1_equivalents(config: Mapping[str, Any], data: ActivationDataModule) -> dict[str, float]:
    """The l1 penalty in other units: docs/reference/metrics.md, "What l1 means".

    Returns:
        `l1`, its value on unscaled activations, and its value in the form of other libraries,
        where the squared error is summed over d_in (of a transcoder: over its target's width);
        empty for an SAE without l1.
    """
    l1 = config["sae"].get("l1")
    if l1 is None:
        return {}
    ends = getattr(data.source, "ends", None)
    if ends is not None and ends.pair:
        width, scale = data.widths[-1], data.scales[-1]
    elif isinstance(data.scale, float):
        width, scale = data.d_in, data.scale
    else:  # layers of unlike scales: no single number
        return {"l1": l1, "l1_sum_over_d_in": l1 * data.d_in}
    return {"l1": l1, "l1_raw_scale": l1 / scale, "l1_sum_over_d_in": l1 * width}


def resolve_device(accelerator: str) -> str:
    """Device of the LM and of evaluations: `cuda` where the trainer will use one, else `cpu`.

    Raises:
        ConfigError: If a GPU is asked for by name and there is none.
    """
    there = torch.cuda.is_available()
    if accelerator == "cuda" or (accelerator == "gpu" and not torch.backends.mps.is_available()):
        if not there:
            raise ConfigError(
                f"trainer.accelerator={accelerator} asks for a GPU, and PyTorch finds none here. "
                "Use trainer.accelerator=auto or cpu, or install a PyTorch that knows this GPU."
            )
        return "cuda"
    return "cuda" if there and accelerator in ("auto", "gpu") else "cpu"


def resolve_dtypes(config: dict[str, Any]) -> None:
    """Put into a configuration what `auto` as a dtype means here.

    `trainer.kernels=auto` becomes int8 where that selects fast and `trainer.precision` is `auto`,
    too: who names float32 gets it in every product.
    """
    trainer = TrainerSettings(**config["trainer"])
    device = resolve_device(trainer.accelerator)
    config["lm"] = resolve_lm(config["lm"], device)
    if trainer.precision != "auto":
        return
    fast = fast_dtype("sae", device) == "bfloat16"
    config["trainer"]["precision"] = "bf16-mixed" if fast else "32-true"
    if trainer.kernels == "auto" and not fast:
        rows = trainer.batch_size // trainer.processes
        if fast_dtype("selection", device, rows) == "int8":
            config["trainer"]["kernels"] = "int8"
