"""SAEModule step by step: counters, resampling times, schedules, logged numbers."""

import lightning as L
import pytest
import torch

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.dictionaries import build_dictionary
from sae.dictionaries.step import StepState
from sae.errors import DivergedError
from sae.training.module import RunLength, SAEModule
from sae.training.optimizers import OptimizerSettings
from sae.training.resampling import ResampleSettings
from sae.training.schedules import linear_decay, warmup

BATCH, STEPS = 20, 30


class Watch(L.Callback):
    """Notes what the module looks like after every step."""

    def __init__(self):
        self.lr, self.since, self.revived, self.loss = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.since.append(pl_module.tokens_since_fired.clone())
        self.revived.append(int(pl_module.revived))
        self.loss.append(float(outputs["loss"]))


def train(word="l1", rows=None, dead=(), resampling=None, **settings):
    rows = torch.randn(BATCH * STEPS * 2, 8, generator=torch.Generator().manual_seed(0))
    data = ActivationDataModule(TensorActivations(rows), batch_size=BATCH, epochs=1)
    data.prepare_data()
    own = {"l1": {"l1": 1e-3}, "tied": {"l1": 1e-3, "centre": "none"}, "topk": {"k": 2}}[word]
    dictionary = build_dictionary({"architecture": word, "dict_ratio": 2, **own}, d_in=8)
    with torch.no_grad():
        dictionary.b_enc[list(dead)] = -1e6  # these can never fire
    module = SAEModule(
        dictionary,
        length=RunLength(STEPS, BATCH),
        optimizer=OptimizerSettings(lr=1e-2, warmup_tokens=5 * BATCH, decay_tokens="50%"),
        resampling=resampling
        or ResampleSettings(at_tokens=[], dead_after_tokens=10 * BATCH, sample_tokens=100),
        scale=data.scale,
        **settings,
    )
    watch = Watch()
    trainer = L.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[watch], log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, watch


def test_learning_rate_rises_and_falls_by_tokens():
    _, watch = train()
    expected = [1e-2 * warmup(s, 5) * linear_decay(s, STEPS, 15) for s in range(STEPS)]
    assert watch.lr == pytest.approx(expected)
    assert watch.lr[0] == pytest.approx(2e-3)
    assert watch.lr[-1] == pytest.approx(1e-2 / 15)


def test_counters_count_tokens_since_the_last_firing():
    module, watch = train(dead=[3])
    for step, since in enumerate(watch.since, start=1):
        assert since[3] == step * BATCH
        assert since.min() == 0
    assert module.dead_share() == pytest.approx((watch.since[-1] >= 200).double().mean().item())
    assert module.tokens_seen == STEPS * BATCH


@pytest.mark.parametrize("word", ["l1", "tied", "topk"])
def test_dead_latents_are_revived_at_the_set_time_and_only_then(word):
    settings = ResampleSettings(
        at_tokens=[12 * BATCH], dead_after_tokens=10 * BATCH, sample_tokens=100, toward="residual"
    )
    module, watch = train(word, dead=[3, 5], resampling=settings)
    assert watch.revived[10] == 0
    assert watch.revived[11] >= 2  # at the end of the twelfth step
    assert watch.revived[11] == watch.revived[-1]
    assert watch.since[11][3] == 0
    assert watch.since[11][5] == 0
    assert module.dictionary.b_enc[3] > -1e3


def test_latents_that_are_silent_for_less_than_the_window_are_left_alone():
    settings = ResampleSettings(
        at_tokens=[9 * BATCH], dead_after_tokens=10 * BATCH, sample_tokens=100
    )
    _, watch = train(dead=[3], resampling=settings)
    assert watch.revived[-1] == 0


def test_sparsity_warms_up_linearly():
    module, _ = train(sparsity_warmup_tokens=4 * BATCH)
    x = torch.randn(50, 8)
    full = module.dictionary.training_output(x).terms["sparsity"]
    half = module.dictionary.training_output(x, StepState(warmup(1, 4))).terms["sparsity"]
    torch.testing.assert_close(half, full / 2)
    assert module.sparsity_warmup_steps == 4


def test_a_loss_that_is_not_finite_stops_training():
    module, _ = train()
    module.dictionary.b_enc.data[0] = float("nan")
    with pytest.raises(DivergedError, match="b_enc holds NaN"):
        module.on_save_checkpoint({})


@pytest.mark.parametrize("word", ["l1", "tied", "topk"])
def test_bfloat16_products_stay_close_to_float32(word):
    own = {"l1": {"l1": 1e-3}, "tied": {"l1": 1e-3, "centre": "none"}, "topk": {"k": 8}}[word]
    dictionary = build_dictionary({"architecture": word, "dict_ratio": 4, **own}, d_in=64)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    exact = dictionary.training_output(x)
    with torch.autocast("cpu", torch.bfloat16):
        fast = dictionary.training_output(x)
    assert fast.x_hat.dtype == torch.float32
    for name, term in exact.terms.items():
        torch.testing.assert_close(fast.terms[name], term, rtol=0.03, atol=1e-4)
    assert (
        fast.code.l0() - exact.code.l0()
    ).abs().float().mean() < 0.02 * exact.code.l0().float().mean() + 0.1


@pytest.mark.parametrize(
    ("clip", "norm", "factor"), [(1e-3, None, 1), (None, 1e-3, 1e3), (1, 1e-3, 1e-3)]
)
def test_gradients_get_their_norm_with_a_fused_adam_under_autocast(clip, norm, factor):
    """Lightning refuses this by itself; the norm is that of all parameters together.

    A clip only cuts; `gradient_norm` makes small gradients longer, too, as those of wide
    activations and large batches are.
    """
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    data = ActivationDataModule(TensorActivations(rows), batch_size=BATCH)
    data.prepare_data()
    dictionary = build_dictionary({"architecture": "l1", "dict_ratio": 2, "l1": 1e-3}, d_in=8)
    module = SAEModule(
        dictionary,
        length=RunLength(5, BATCH),
        resampling=ResampleSettings(at_tokens=[], dead_after_tokens=BATCH, sample_tokens=100),
        gradient_norm=norm,
    )  # fmt: skip
    loss = module.training_step
    module.training_step = lambda *args: loss(*args) * factor  # pyright: ignore
    norms = []

    class Norms(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad.flatten() for p in dictionary.parameters() if p.grad is not None]
            norms.extend([torch.cat(grads).norm().item()] if grads else [])

    trainer = L.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[Norms()], precision="bf16-mixed", gradient_clip_val=clip,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert len(norms) >= 4
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)


def test_encoder_biases_of_untied_dictionaries_have_their_own_rate():
    for word, settings, expected in (
        ("l1", {"l1": 1e-3}, {"b_enc": 5.0}), ("topk", {"k": 2}, {"b_enc": 5.0}),
        ("tied", {"l1": 1e-3}, {}),
        ("gated", {"l1": 1e-3}, {"b_enc": 5.0, "b_mag": 5.0}),
    ):  # fmt: skip
        config = {"architecture": word, "dict_ratio": 2, **settings}
        dictionary = build_dictionary(config, d_in=8)
        module = SAEModule(dictionary, length=RunLength(30, BATCH))
        groups = module.configure_optimizers()["optimizer"].param_groups
        rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
        for name, parameter in dictionary.named_parameters():
            assert rate[id(parameter)] == pytest.approx(1e-3 * expected.get(name, 1.0)), name
