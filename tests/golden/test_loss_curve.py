"""Fifty steps on synthetic data: a refactor must not move the loss."""

import pytest
import torch

SETTINGS = {
    "tied": {"l1": 1e-2, "centre": "none"},
    "l1": {"l1": 1e-2},
    "gated": {"l1": 1e-2},
    "jumprelu": {"l0_coefficient": 1e-2},
    "topk": {"k": 4},
    "matryoshka": {"k": 4, "auxk": 1 / 32},
}

# python -m pytest tests/golden prints the curve it saw when it differs. Float32 on a CPU; other
# machines sum in another order, so 1e-4 relative is allowed, not more.
GOLDEN = {
    "tied": [1.829414, 1.004102, 0.635731, 0.537548, 0.389402, 0.330877, 0.315398, 0.31405],
    "l1": [4.09627, 2.279539, 1.48592, 0.76835, 0.523672, 0.32809, 0.294942, 0.263302],
    "gated": [8.081062, 4.270909, 2.669818, 1.313638, 0.872042, 0.531838, 0.484315, 0.425427],
    "jumprelu": [4.127682, 2.750918, 2.160596, 1.402669, 1.08067, 0.793775, 0.677169, 0.639615],
    "matryoshka": [3.917682, 3.218514, 2.875324, 2.512401, 2.513165, 2.262851, 2.368868, 2.263843],
    "topk": [0.656169, 0.445102, 0.370445, 0.246191, 0.231645, 0.174358, 0.1709, 0.149379],
}


def losses(word):
    import lightning as L

    from sae.activations.datamodule import ActivationDataModule
    from sae.activations.folder import TensorActivations
    from sae.dictionaries import build_dictionary
    from sae.training.module import RunLength, SAEModule
    from sae.training.optimizers import OptimizerSettings
    from sae.training.resampling import ResampleSettings

    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1)
    active = (torch.rand(5000, 32, generator=generator) < 0.1).float()
    rows = (active * torch.rand(5000, 32, generator=generator)) @ features + 0.1
    data = ActivationDataModule(TensorActivations(rows), batch_size=80)
    data.prepare_data()
    config = {"architecture": word, "dict_ratio": 4, **SETTINGS[word]}
    dictionary = build_dictionary(config, d_in=16, mean=data.mean * data.scale, seed=0)
    module = SAEModule(
        dictionary,
        length=RunLength(50, 80),
        optimizer=OptimizerSettings(lr=3e-3, warmup_tokens="5%", decay_tokens="20%"),
        resampling=ResampleSettings(["40%"], "10%", 500),
        scale=data.scale,
    )
    seen = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            seen.append(float(outputs["loss"]))

    trainer = L.Trainer(
        max_steps=50, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Note()],
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return seen


@pytest.mark.parametrize("word", sorted(GOLDEN))
def test_loss_curve(word):
    seen = losses(word)
    assert len(seen) == 50
    assert seen[::7] == pytest.approx(GOLDEN[word], rel=1e-4), [round(v, 7) for v in seen[::7]]
