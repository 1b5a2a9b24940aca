"""The direct path of a direction, against the LM's own norm and unembedding."""

import pytest
import torch

from sae.language import LanguageModel, sites
from sae.language.logit_lens import direct_logits, has_direct_path
from sae.language.tiny import TINY
from sae.types import Point


@pytest.mark.parametrize("family", TINY)
def test_it_is_what_norm_and_unembedding_do_but_for_the_length(family, tiny_lm):
    lm = tiny_lm(family)
    x = torch.randn(5, lm.d_model, generator=torch.Generator().manual_seed(0))
    norm = lm.model.get_submodule(lm.family.final_norm)
    weight = lm.model.get_output_embeddings().weight
    with torch.no_grad():
        expected = (norm(x) - norm(torch.zeros_like(x))) @ weight.T
    found = direct_logits(lm, x, Point("resid", 0))
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=1)
    torch.testing.assert_close(cosine, torch.ones(5), atol=1e-4, rtol=0)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("family", TINY)
def test_directions_inside_a_block_go_through_its_projection(family, tiny_lm):
    lm = tiny_lm(family)
    for site, out in (("mlp", "mlp_out"), ("attn_z", "attn_out")):
        if site not in lm.family.sites:
            continue
        point = Point(site, 1)
        if not has_direct_path(lm, point):
            assert lm.family.modules[site] != lm.family.modules[out], "a norm stands between"
            continue
        z = torch.randn(3, lm.width(point), generator=torch.Generator().manual_seed(1))
        module = sites.module_at(lm.model, point)
        with torch.no_grad():
            added = module(z) - module(torch.zeros_like(z))
        factor = sites.factor_of(lm.model)
        torch.testing.assert_close(
            direct_logits(lm, z, point), direct_logits(lm, factor * added, Point(out, 1))
        )


def test_logits_of_no_token_are_left_out(tiny_lm):
    lm = tiny_lm("llama")
    short = LanguageModel(lm.model, FewTokens(lm.tokenizer), name="short", identity={})
    found = direct_logits(short, torch.ones(2, lm.d_model), Point("resid", 0))
    assert found.shape == (2, 200)


class FewTokens:
    """A tokenizer with fewer ids than the LM has logits."""

    def __init__(self, tokenizer):
        self.eos_token_id = 199
        self.vocabulary = {word: i for word, i in tokenizer.get_vocab().items() if i < 200}

    def __call__(self, text, **options):
        raise NotImplementedError

    def get_vocab(self):
        return self.vocabulary


def test_the_input_of_an_mlp_has_no_direct_path(tiny_lm):
    lm = tiny_lm("llama")
    assert not has_direct_path(lm, Point("mlp_in", 1))
    assert has_direct_path(lm, Point("attn_z", 1))
