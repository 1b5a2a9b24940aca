"""Training of the architectures: resumed runs, constraints, and steering to an L0."""

from math import exp

import lightning as L
import pytest
import torch
from _architectures import CASES, D_SAE, PENALISED, build, x_of

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.errors import ConfigError
from sae.training.module import RunLength, SAEModule
from sae.training.resampling import ResampleSettings
from sae.training.target_l0 import PROPORTIONAL

STEPS, BATCH, DEAD = 40, 20, 4


def train(word, steps=STEPS, ckpt_path=None, folder=None, **settings):
    rows = x_of(BATCH * STEPS * 2, seed=5)
    data = ActivationDataModule(TensorActivations(rows), batch_size=BATCH)
    data.prepare_data()
    dictionary = build(word)
    dictionary.b_enc.data[:DEAD] = -100.0
    module = SAEModule(
        dictionary,
        length=RunLength(STEPS, BATCH),
        resampling=ResampleSettings(
            at_tokens=["30%", "70%"], dead_after_tokens=3 * BATCH, sample_tokens=100
        ),
        scale=data.scale,
        **settings,
    )
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if folder:
        trainer.save_checkpoint(folder / "half.ckpt")
    return module


@pytest.mark.parametrize(
    "word", [w if w in ("tied", "topk") else pytest.param(w, marks=pytest.mark.slow) for w in CASES]
)
@pytest.mark.parametrize("stop", [10, pytest.param(17, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(word, stop, tmp_path):
    """Weights, buffers, moments, counters and steering, bit for bit; step 12 revives latents."""
    steered = {"target_l0": 3.0} if word in PENALISED else {}
    whole = train(word, **steered)
    train(word, steps=stop, folder=tmp_path, **steered)
    resumed = train(word, ckpt_path=tmp_path / "half.ckpt", **steered)
    assert whole.revived > 0
    for expected, found in zip(_states(whole), _states(resumed), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def _states(module):
    moments = module.trainer.optimizers[0].state_dict()["state"]
    return module.state_dict(), *(moments[i] for i in sorted(moments))


@pytest.mark.parametrize("word", ["l1", "p_anneal", "gated", "jumprelu", "topk", "batch_topk"])
def test_unit_rows_follow_the_step(word):
    """Another library brings the rows to length 1 before Adam moves them."""
    module = train(word, steps=3)
    lengths = module.dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(D_SAE), atol=1e-6, rtol=0)


def test_positive_weights_stay_positive_and_codes_too():
    module = train("positive_tied")
    assert (module.dictionary.W >= 0).all()
    assert (module.dictionary.W > 0).any(1).all()


@pytest.mark.slow
@pytest.mark.parametrize("word", PENALISED)
def test_target_l0_turns_the_right_way(word):
    """Where more fires than asked for, the penalty grows, and the other way round."""
    for target, sign in ((1e-3, 1), (D_SAE - 1e-3, -1)):
        module = train(word, target_l0=target, sparsity_warmup_tokens=0)
        ((name, value),) = module.coefficient.items()
        assert sign * value > sign * 1e-2, name
        assert module.target_l0.gain().item() == pytest.approx(
            exp(module.target_l0.integral + PROPORTIONAL * module.target_l0.error), rel=1e-5
        )


@pytest.mark.parametrize(
    ("word", "settings", "target", "message"),
    [
        ("topk", {}, 4.0, "no penalty to steer"),
        ("l1", {"l1": 0.0}, 4.0, "Give a l1 above 0"),
        ("l1", {}, float(D_SAE), "below d_sae=24"),
    ],
)
def test_target_l0_refuses_what_cannot_be(word, settings, target, message):
    with pytest.raises(ConfigError, match=message):
        SAEModule(build(word, **settings), length=RunLength(5, 5), target_l0=target)
