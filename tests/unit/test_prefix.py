"""Prompts behind a prefix whose keys and values are kept, on tiny LMs of every family."""

import pytest
import torch
from _families import EVERY

from sae.errors import ConfigError
from sae.interventions import Intervention, intervene
from sae.language.prefix import Prefix
from sae.types import Point

POINT = Point("resid", 1)


@pytest.fixture(params=EVERY)
def lm(request, tiny_lm):
    return tiny_lm(request.param)


@pytest.fixture
def tokens():
    tokens = torch.randint(1, 250, (3, 11), generator=torch.Generator().manual_seed(0))
    tokens[:, :7] = tokens[:1, :7]
    return tokens


def test_logits_are_those_of_whole_passes_also_under_an_edit(lm, tokens):
    prefix = Prefix(lm, tokens[0, :7])
    for _ in range(2):  # a pass leaves the prefix as it is
        torch.testing.assert_close(
            prefix.logits(tokens[:, 7:]), lm.logits(tokens)[:, 7:], atol=1e-4, rtol=1e-4
        )

    def step(x):
        return x + 3

    late = torch.zeros(tokens.shape, dtype=torch.bool)
    late[:, 7:] = True
    with intervene(lm, Intervention(POINT, step)):
        edited = prefix.logits(tokens[:, 7:])
    with intervene(lm, Intervention(POINT, step, positions=late)):
        whole = lm.logits(tokens)[:, 7:]
    torch.testing.assert_close(edited, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("point", [POINT, Point("attn_out", 1), Point("mlp_in", 1)], ids=str)
def test_activations_are_those_of_whole_passes_and_no_block_above_runs(lm, tokens, point):
    whole = lm.capture(tokens, [point])[point][:, 7:]
    above = []
    name = f"{lm.family.blocks}.{lm.num_layers - 1}"
    handle = lm.model.get_submodule(name).register_forward_hook(lambda *_: above.append(1))
    prefix = Prefix(lm, tokens[0, :7], [point])
    for _ in range(2):
        found = prefix.capture(tokens[:, 7:])[point]
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    handle.remove()
    assert above == []


def test_prompts_longer_than_the_lm_allows_are_refused(tiny_lm):
    lm = tiny_lm("gpt2")
    prefix = Prefix(lm, torch.ones(500, dtype=torch.long))
    with pytest.raises(ConfigError, match="Prompts of 513 tokens are longer than"):
        prefix.logits(torch.ones(1, 13, dtype=torch.long))
