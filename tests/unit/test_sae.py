"""The inference SAE: encoding by hand, shapes, dtypes, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from sae.dictionaries.sae import (
    ACTIVATIONS,
    SAE,
    WITH_K,
    WITH_STEPS,
    WITH_THRESHOLD,
    SAEConfig,
)
from sae.errors import ConfigError

D_IN, D_SAE = 3, 5


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator)
    tensors = {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator),
        "b_enc": torch.randn(D_SAE, generator=generator),
        "W_dec": W_dec / W_dec.norm(dim=1, keepdim=True),
        "b_dec": torch.randn(D_IN, generator=generator),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


CONFIG = SAEConfig("l1", "relu", D_IN, D_SAE)


def config(activation: str = "relu", k: int | None = None) -> SAEConfig:
    return SAEConfig("l1", activation, D_IN, D_SAE, k)


def test_relu_by_hand():
    w = weights()
    sae, x = SAE(**w, config=config()), torch.tensor([[1.0, -2.0, 0.5]])
    f = torch.clamp(x @ w["W_enc"] + w["b_enc"], min=0)
    assert torch.equal(sae.encode(x), f)
    assert torch.equal(sae(x), f @ w["W_dec"] + w["b_dec"])


def test_topk_keeps_the_largest_then_relu():
    sae = SAE(**weights(), config=config("topk", k=2))
    sae.W_enc.zero_()
    sae.b_enc.copy_(torch.tensor([3.0, -1.0, 5.0, 4.0, -2.0]))
    assert sae.encode(torch.zeros(1, D_IN)).tolist() == [[0, 0, 5, 4, 0]]
    sae.b_enc.copy_(torch.tensor([-3.0, -1.0, -5.0, 2.0, -2.0]))
    assert sae.encode(torch.zeros(1, D_IN)).tolist() == [[0, 0, 0, 2, 0]]  # -1 is kept, then cut


def test_jumprelu_keeps_what_exceeds_the_threshold_unchanged():
    threshold = torch.tensor([0.0, 1.0, 5.0, 3.0, 0.0])
    sae = SAE(**weights(), config=config("jumprelu"), threshold=threshold)
    sae.W_enc.zero_()
    sae.b_enc.copy_(torch.tensor([0.5, -1.0, 5.0, 4.0, -2.0]))
    assert sae.encode(torch.zeros(1, D_IN)).tolist() == [[0.5, 0, 0, 4, 0]]


@pytest.mark.parametrize(
    ("activation", "threshold", "message"),
    [
        ("jumprelu", None, "with no threshold. A threshold belongs to"),
        ("relu", torch.zeros(D_SAE), "with a threshold. A threshold belongs to"),
        ("jumprelu", torch.zeros(D_SAE + 1), "shape"),
        ("jumprelu", torch.full((D_SAE,), -1.0), "negative"),
    ],
)
def test_threshold_must_fit(activation, threshold, message):
    with pytest.raises(ConfigError, match=message):
        SAE(**weights(), config=config(activation), threshold=threshold)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (2, 3, 4), (0,)])
def test_any_leading_dimensions(activation, shape):
    threshold = torch.full((D_SAE,), 0.3) if activation in WITH_THRESHOLD else None
    chosen = replace(
        CONFIG, activation=activation, k=2 if activation in WITH_K else None,
        steps=2 if activation in WITH_STEPS else None,
    )  # fmt: skip
    sae = SAE(**weights(), config=chosen, threshold=threshold)
    x = torch.randn(*shape, D_IN)
    assert sae.encode(x).shape == (*shape, D_SAE)
    assert sae(x).shape == x.shape
    flat = torch.stack([sae(row) for row in x.reshape(-1, D_IN)]) if x.numel() else x
    torch.testing.assert_close(sae(x).reshape(-1, D_IN), flat.reshape(-1, D_IN))


def test_input_takes_the_dtype_of_the_weights():
    sae = SAE(**weights(), config=config())
    assert sae(torch.randn(2, D_IN).bfloat16()).dtype == torch.float32
    assert sae.to(torch.float64).dtype == torch.float64
    assert sae(torch.randn(2, D_IN)).dtype == torch.float64


def test_gradients_reach_the_input_and_not_the_weights():
    sae, x = SAE(**weights(), config=config()), torch.randn(2, D_IN, requires_grad=True)
    sae(x).sum().backward()
    assert x.grad is not None
    assert all(not parameter.requires_grad for parameter in sae.parameters())


def test_low_precision_weights_are_accepted():
    w = weights()
    big = torch.nn.functional.normalize(torch.randn(64, 512), dim=1)
    low = {"W_enc": big.T, "b_enc": torch.zeros(64), "W_dec": big, "b_dec": torch.zeros(512)}
    for dtype in (torch.bfloat16, torch.float16):
        tensors = {name: tensor.to(dtype) for name, tensor in low.items()}
        SAE(**tensors, config=SAEConfig("l1", "relu", 512, 64))
    assert set(SAE(**w, config=config()).state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("W_enc", lambda t: t.T, r"W_enc has shape \(5, 3\).*must have \(3, 5\)"),
        ("b_enc", lambda t: t[:-1], r"b_enc has shape \(4,\)"),
        ("b_dec", lambda t: t[None], r"b_dec has shape \(1, 3\)"),
        ("W_dec", lambda t: 2 * t, "has length 2.*Divide W_dec by its row norms"),
        ("W_dec", lambda t: t * torch.tensor([[1.0], [0], [1], [1], [1]]), "Row 1 .* length 0"),
        ("W_enc", lambda t: t.double(), "several dtypes"),
        ("b_enc", lambda t: t.long(), "floating-point"),
        ("b_dec", lambda t: t / 0, "NaN or infinite"),
    ],
)
def test_wrong_tensors_are_refused(name, change, message):
    tensors = weights()
    tensors[name] = change(tensors[name])
    with pytest.raises(ConfigError, match=message):
        SAE(**tensors, config=config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"activation": "gelu"},
            r"activation='gelu' is not known.*\['abs_topk', 'identity', 'jumprelu', .*\]",
        ),
        ({"activation": "topk"}, "k=None must be between 1 and d_sae=5"),
        ({"activation": "topk", "k": 6}, "k=6 must be between 1 and d_sae=5"),
        ({"activation": "relu", "k": 3}, "k=3 has no effect with activation=relu"),
        ({"activation": "relu", "d_sae": 0}, "at least 1"),
    ],
)
def test_wrong_configs_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SAEConfig(**{"architecture": "l1", "d_in": D_IN, "d_sae": D_SAE} | settings)
