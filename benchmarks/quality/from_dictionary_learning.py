"""dictionary_learning: its trainers' `update` in the loop of its `trainSAE`, its dictionaries.

Its `trainSAE` is a loop over `update`, and returns nothing. It normalises to a mean ||x||^2 of 1,
which its defaults are made for, so it is given the same vectors in that scale.
"""

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import Any

import torch

from benchmarks.common import find
from benchmarks.quality.contender import Contender, Control, Fitted, Setting, share
from benchmarks.quality.data import Data
from benchmarks.quality.from_sae_lens import DEAD_SHARE, WIDTHS

NAMES: dict[str, tuple[str, str, str, Control, str]] = {
    # module, class, family, control, what the control sets
    "standard": ("standard", "StandardTrainer", "l1", "coefficient", "l1_penalty"),
    "april": ("standard", "StandardTrainerAprilUpdate", "april", "coefficient", "l1_penalty"),
    "topk": ("top_k", "TopKTrainer", "topk", "k", "k"),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer", "batch_topk", "k", "k"),
    "jumprelu": ("jumprelu", "JumpReluTrainer", "jumprelu", "target", "target_l0"),
    "gated": ("gdm", "GatedSAETrainer", "gated", "coefficient", "l1_penalty"),
    "p_anneal": ("p_anneal", "PAnnealTrainer", "p_anneal", "coefficient",
                 "initial_sparsity_penalty"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", "matryoshka", "k", "k"),
}  # fmt: skip
START = {"standard": 0.05, "april": 0.05, "gated": 0.05, "p_anneal": 0.02}


def contenders() -> list[Contender]:
    """All of its methods that this project has, too."""
    _without_nnsight()
    if find("dictionary_learning") is None:
        return []
    return [
        Contender(
            name, "dictionary_learning", family, control, partial(_lr, name),
            START.get(name, 0), partial(_fit, name),
        )
        for name, (_, _, family, control, _) in NAMES.items()
    ]  # fmt: skip


def _without_nnsight() -> None:
    """Its buffer of LM activations imports nnsight, which takes seconds; its training does not."""
    stub = ModuleType("nnsight")
    stub.LanguageModel = object  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules.setdefault("nnsight", stub)


def _lr(name: str, d_sae: int) -> float:
    """Its defaults; gated and jumprelu, whose own are 5e-5 and 7e-5, as in its demo."""
    if "topk" in name or name == "matryoshka":
        return 2e-4 / (d_sae / 2**14) ** 0.5
    return 3e-4 if name in ("gated", "jumprelu") else 1e-3


def _fit(name: str, data: Data, d_sae: int, setting: Setting) -> Fitted:
    _without_nnsight()
    module, kind, _, control, option = NAMES[name]
    trainers: Any = importlib.import_module(f"dictionary_learning.trainers.{module}")
    steps = data.steps
    settings: dict[str, Any] = {
        "steps": steps, "activation_dim": data.d_in, "dict_size": d_sae, "layer": 0,
        "lm_name": "", "lr": setting.lr, "seed": setting.seed, "device": "cpu",
        "warmup_steps": share(steps, 0.05, 1000), "decay_start": round(0.8 * steps),
        option: round(setting.value) if control == "k" else setting.value,
    }  # fmt: skip
    if control == "k":
        # its means over the last thousand steps, in a run that may be shorter than that
        settings["threshold_start_step"] = share(steps, 0.5, 1000)
        settings["threshold_beta"] = 1 - 1 / share(steps, 0.1, 1000)
    else:
        settings["sparsity_warmup_steps"] = share(steps, 0.1, 2000)
    if name == "p_anneal":  # as in its demo
        settings |= {"sparsity_function": "Lp^p", "p_end": 0.2, "n_sparsity_updates": 10}
        settings["anneal_start"] = share(steps, 0.2, 10_000)
    if name == "matryoshka":
        settings["group_fractions"] = [
            b - a for a, b in zip((0, *WIDTHS[:-1]), WIDTHS, strict=True)
        ]
    torch.manual_seed(setting.seed)  # its jumprelu does not use the seed that it is given
    trainer = getattr(trainers, kind)(**settings)
    trainer.dead_feature_threshold = DEAD_SHARE * steps * data.size.batch
    to_unit = data.d_in**-0.5
    for step, x in enumerate(data.batches()):
        trainer.update(step, x * to_unit)
    ae = trainer.ae
    atoms = ae.decoder.weight.T if hasattr(ae, "decoder") else ae.W_dec
    return Fitted(ae.encode, ae.decode, atoms.detach(), factor=data.scale * to_unit)
