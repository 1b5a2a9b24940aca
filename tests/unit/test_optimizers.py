"""Adam by word, the authors' frozen count, and the schedules."""

import copy

import pytest
import torch

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.errors import ConfigError
from sae.training.from_config import build_module
from sae.training.optimizers import AuthorsAdam, OptimizerSettings
from train import compose

K = {"topk": ["k=4"], "batch_topk": ["k=4"]}


@pytest.mark.slow
def test_authors_adam_step_sizes():
    """Measured on the authors' own code with a constant gradient (torchopt 0.7.3)."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AuthorsAdam([parameter], lr=1e-3)
    expected = {1: 1.00, 10: 2.06, 100: 1.02, 300: 0.62, 1000: 0.40, 3000: 0.32}
    seen, before = {}, 0.0
    for step in range(1, 20_001):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        if step in expected or step == 20_000:
            seen[step] = (before - parameter.item()) / 1e-3
        before = parameter.item()
    for step, ratio in expected.items():
        assert seen[step] == pytest.approx(ratio, abs=0.006)
    assert seen[20_000] == pytest.approx(0.1**0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "betas"),
    [
        (["sae=tied"], (0.9, 0.999)),
        (["sae=l1"], (0.5, 0.99)),
        (["sae=topk"], (0.5, 0.999)),
        (["sae=batch_topk"], (0.5, 0.99)),
        (["sae=l1", "optimizer.beta1=0.8"], (0.8, 0.99)),
        (["sae=topk", "optimizer.beta2=0.98"], (0.5, 0.98)),
        (["sae=l1", "optimizer=authors_adam"], (0.9, 0.999)),
        (["experiment=april2024"], (0.9, 0.999)),
        (["experiment=paper"], (0.9, 0.999)),
    ],
)
def test_betas_are_the_users_or_else_the_architectures(words, betas):
    config = compose([*words, "k=4"] if "topk" in words[0] else words)
    data = ActivationDataModule(TensorActivations(torch.randn(200, 8)), batch_size=10)
    data.prepare_data()
    module = build_module(config, data)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["betas"] for group in groups] == [betas] * len(groups)


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        (["sae=l1"], {"b_enc": 5}),
        (["sae=tied"], {}),
        (["sae=gated", "optimizer.bias_rate=3"], {"b_enc": 3, "b_mag": 3}),
        (["sae=tied", "optimizer.bias_rate=2"], {"b_enc": 2}),
        (["sae=jumprelu", "optimizer=authors_adam"], {}),
        (["experiment=april2024"], {}),
    ],
)
def test_biases_move_at_the_users_rate_or_else_the_architectures(words, rates):
    data = ActivationDataModule(TensorActivations(torch.randn(200, 8)), batch_size=10)
    data.prepare_data()
    module = build_module(compose([*words, "optimizer.lr=1e-2"]), data)
    optimizer = module.configure_optimizers()["optimizer"]
    found = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    expected = {name: rates.get(name, 1) * 1e-2 for name, _ in module.dictionary.named_parameters()}
    assert {n: found[id(p)] for n, p in module.dictionary.named_parameters()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("word", ["l1", "gated", "jumprelu", "topk", "batch_topk", "tied"])
def test_a_long_run_starts_and_steps_as_published(word, monkeypatch):
    """Nothing that only helps a short run is left in it, but for what the user asks for."""
    data = ActivationDataModule(TensorActivations(torch.randn(200, 8)), batch_size=10)
    data.prepare_data()
    config = compose([f"sae={word}", "trainer.batch_size=10", "dict_ratio=2", *K.get(word, [])])
    short = build_module(config, data)
    for module in ("from_config", "optimizers"):
        monkeypatch.setattr(f"sae.training.{module}.LONG_RUN_STEPS", data.steps)
    long = build_module(config, data)
    optimizer = long.configure_optimizers()["optimizer"]
    assert {(one["betas"], one["initial_lr"]) for one in optimizer.param_groups} == {
        ((0.9, 0.999), 1e-3)
    }
    optimizer.load_state_dict(short.configure_optimizers()["optimizer"].state_dict())
    assert long.gradient_norm is None
    assert short.gradient_norm == short.dictionary.gradient_norm
    assert not long.dictionary.b_enc.any()
    if word != "tied":
        lengths = long.dictionary.encoder_rows.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(16))
        assert short.dictionary.encoder_rows.norm(dim=1).mean() <= 1
    given = compose([f"sae={word}", "optimizer.beta1=0.3", "optimizer.bias_rate=2",
                     "trainer.batch_size=10", "dict_ratio=2", *K.get(word, [])])  # fmt: skip
    groups = build_module(given, data).configure_optimizers()["optimizer"].param_groups
    assert [one["betas"] for one in groups] == [(0.3, 0.999)] * 2


def test_authors_adam_is_adam_at_the_first_step():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    for parameter, kind in ((a, AuthorsAdam), (b, torch.optim.Adam)):
        parameter.grad = torch.tensor([0.5, -2.0, 0.0])
        kind([parameter], lr=0.1).step()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["adam", "authors_adam"])
def test_optimizers_by_word_lower_a_loss_and_round_trip_their_state(name):
    settings = OptimizerSettings(name=name, lr=0.05)
    parameter = torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer = settings.build([parameter])
    for _ in range(100):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.abs().max() < 0.5
    other = settings.build([torch.nn.Parameter(parameter.detach().clone())])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = other.param_groups[0]["params"][0]
    for opt, p in ((optimizer, parameter), (other, twin)):
        p.grad = torch.ones(4)
        opt.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "sgd"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"beta1": 1.0},
        {"eps": -1.0},
        {"bias_rate": 0.0},
    ],  # fmt: skip
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ConfigError, match="optimizer"):
        OptimizerSettings(**wrong)
