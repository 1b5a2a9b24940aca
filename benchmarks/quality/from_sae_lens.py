"""sae-lens: its `SAETrainer.fit`, its saved inference form."""

import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.common import find
from benchmarks.quality.contender import Contender, Control, Fitted, Setting, share
from benchmarks.quality.data import Data

DEAD_SHARE = 0.1
"""Share of the run after which a silent latent is dead; its own 1000 steps are too many."""
FIXED: dict[str, tuple[str, str, Control, float, str, Mapping[str, Any]]] = {
    # class, family, control, first penalty, what the control sets, what else is set
    "standard": ("Standard", "april", "coefficient", 1.0, "l1_coefficient", {}),
    "topk": ("TopK", "topk", "k", 0, "k", {}),
    "batch_topk": ("BatchTopK", "batch_topk", "k", 0, "k", {}),
    "jumprelu": (
        "JumpReLU", "jumprelu", "coefficient", 1.0, "l0_coefficient",
        # with its defaults (step, bandwidth 0.05) short runs move no threshold far enough; this is
        # the other setup that it documents
        {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_bandwidth": 2.0,
         "jumprelu_init_threshold": 0.1, "jumprelu_ste_to_input": True,
         "pre_act_loss_coefficient": 3e-6},
    ),
    "gated": ("Gated", "gated", "coefficient", 1.0, "l1_coefficient", {}),
    "matryoshka": ("MatryoshkaBatchTopK", "matryoshka", "k", 0, "k", {}),
}  # fmt: skip
WIDTHS = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)
"""Widths of nested dictionaries, shares of d_sae, in every library: this project's defaults."""


def contenders() -> list[Contender]:
    """All of its methods that this project has, too."""
    if find("sae_lens") is None:
        return []
    return [
        Contender(name, "sae-lens", family, control, lambda d_sae: 3e-4, start, partial(_fit, name))
        for name, (_, family, control, start, _, _) in FIXED.items()
    ]


def _fit(name: str, data: Data, d_sae: int, setting: Setting) -> Fitted:
    saes: Any = find("sae_lens.saes")
    trainers: Any = find("sae_lens.training.sae_trainer")
    configs: Any = find("sae_lens.config")
    kind, _, control, _, option, more = FIXED[name]
    steps, batch = data.steps, data.size.batch
    settings: dict[str, Any] = {"d_in": data.d_in, "d_sae": d_sae, **more}
    settings[option] = round(setting.value) if control == "k" else setting.value
    if option == "l1_coefficient":
        settings["l1_warm_up_steps"] = round(0.05 * steps)  # its tutorial
    if option == "l0_coefficient":
        settings["l0_warm_up_steps"] = round(0.05 * steps)
    if name == "matryoshka":
        settings["matryoshka_widths"] = [round(part * d_sae) for part in WIDTHS]
    torch.manual_seed(setting.seed)
    sae = getattr(saes, f"{kind}TrainingSAE")(getattr(saes, f"{kind}TrainingSAEConfig")(**settings))
    trainer = trainers.SAETrainer(
        configs.SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=setting.lr,
            lr_end=setting.lr,
            lr_decay_steps=round(0.2 * steps),  # its tutorial
            dead_feature_window=share(steps, DEAD_SHARE, 1000),
        ),
        sae,
        data.batches(),
    )
    trained = trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        found = find("sae_lens").SAE.load_from_disk(folder)
    return Fitted(found.encode, found.decode, found.W_dec.detach(), factor=data.scale)
