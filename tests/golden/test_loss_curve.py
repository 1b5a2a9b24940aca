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
    "tied": [0.507471, 0.403126, 0.319807, 0.290561, 0.287471, 0.283318, 0.283585, 0.265641],
    "l1": [0.466809, 0.301491, 0.258684, 0.225294, 0.219384, 0.215864, 0.22881, 0.188868],
    "gated": [3.181217, 1.652924, 1.143517, 0.69321, 0.58356, 0.475978, 0.470609, 0.393343],
    "jumprelu": [0.637169, 0.591177, 0.579161, 0.537398, 0.425495, 0.385362, 0.350494, 0.310626],
    "matryoshka": [3.917682, 3.069074, 2.640632, 2.295784, 2.281152, 2.094281, 2.182594, 2.086068],
    "topk": [0.383585, 0.274736, 0.212292, 0.175896, 0.154061, 0.174024, 0.163395, 0.152575],
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
