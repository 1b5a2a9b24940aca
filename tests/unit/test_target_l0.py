"""`target_l0` reaches what was asked for, with every penalised architecture as it is by default."""

import lightning as L
import pytest
import torch
from _architectures import PENALISED

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.dictionaries import ARCHITECTURES, build_dictionary
from sae.synthetic import World
from sae.training.module import RunLength, SAEModule
from sae.training.optimizers import OptimizerSettings

pytestmark = pytest.mark.slow

BATCH, STEPS = 128, 600
START = {"jumprelu": 3e-3}


@pytest.fixture(scope="module")
def data():
    world = World(d_in=32, num_features=64, active=4.0, rescale=True, seed=5)
    rows = world.sample(BATCH * STEPS, 1)[1]
    data = ActivationDataModule(TensorActivations(rows), batch_size=BATCH)
    data.prepare_data()
    return data, world.sample(4096, 2)[1] * data.scale


@pytest.mark.parametrize("word", PENALISED)
def test_reaches_the_asked_l0(data, word):
    (data, held_out), target = data, 5.0
    config = {
        "architecture": word,
        "dict_ratio": 3,
        ARCHITECTURES[word].coefficient: START.get(word, 1e-2),
    }
    module = SAEModule(
        build_dictionary(config, d_in=32, mean=data.mean * data.scale),
        length=RunLength(data.steps, BATCH),
        optimizer=OptimizerSettings(lr=3e-3, warmup_tokens="5%", decay_tokens="20%"),
        sparsity_warmup_tokens="5%",
        target_l0=target,
        gradient_norm=ARCHITECTURES[word].gradient_norm,
        scale=data.scale,
    )
    trainer = L.Trainer(
        max_steps=data.steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        l0 = module.dictionary.encode_code(held_out).l0().float().mean().item()
    assert l0 == pytest.approx(target, rel=0.05)
