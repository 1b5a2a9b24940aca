"""Fifty steps on synthetic data: a refactor must not move the loss."""

import pytest
import torch

SETTINGS = {
    "tied": {"l1": 1e-2, "centre": "none"},
    "l1": {"l1": 1e-2},
    "gated": {"l1": 1e-2},
    "jumprelu": {"l0_coefficient": 1e-2},
    "topk": {"k": 4, "auxk": 0},
    "matryoshka": {"k": 4, "auxk": 1 / 32},
}

# python -m pytest tests/golden prints the curve it saw when it differs. Float32 on a CPU; other
# machines sum in another order, so 1e-4 relative is allowed, not more.
GOLDEN = {
    "tied": [0.507471, 0.403126, 0.319807, 0.290561, 0.287471, 0.283318, 0.283585, 0.265641],
    "l1": [0.466809, 0.306542, 0.275016, 0.229669, 0.225192, 0.214797, 0.229517, 0.187407],
    "gated": [3.181217, 1.693453, 1.316465, 0.844792, 0.725098, 0.548967, 0.537698, 0.455375],
    "jumprelu": [0.637169, 0.589492, 0.585624, 0.520136, 0.415616, 0.381352, 0.36636, 0.320453],
    "matryoshka": [3.917682, 3.072228, 2.726573, 2.391409, 2.380777, 2.150864, 2.234842, 2.141468],
    "topk": [0.383585, 0.276425, 0.22175, 0.185259, 0.158586, 0.176093, 0.16441, 0.1474],
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
    data = ActivationDataModule(
        TensorActivations(rows), batch_size=80, normalize="mean_square"
    )  # fmt: skip
    data.prepare_data()
    config = {"architecture": word, "dict_ratio": 4, **SETTINGS[word]}
    dictionary = build_dictionary(config, d_in=16, mean=data.mean * data.scale, seed=0)
    module = SAEModule(
        dictionary,
        length=RunLength(50, 80),
        optimizer=OptimizerSettings(lr=3e-3, warmup_tokens="5%", decay_tokens="20%"),
        resampling=ResampleSettings(at_tokens=["40%"], dead_after_tokens="10%", sample_tokens=500),
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


@pytest.mark.parametrize(
    "word",
    [
        word if word in ("tied", "topk") else pytest.param(word, marks=pytest.mark.slow)
        for word in sorted(GOLDEN)
    ],
)
def test_loss_curve(word):
    seen = losses(word)
    assert len(seen) == 50
    assert seen[::7] == pytest.approx(GOLDEN[word], rel=1e-4), [round(v, 7) for v in seen[::7]]
