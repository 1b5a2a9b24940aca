"""What latents do, against a pass of the LM that is edited by hand."""

from dataclasses import replace

import pytest
import torch

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.case_study import CaseStudyEval, _by_token
from sae.features import records
from sae.features.effects import ablate, on_last_token, strongest
from sae.features.upstream import feeding
from sae.types import Point

CTX = 16


@pytest.fixture
def placed(tiny_source, random_corpus):
    """An SAE on each of two layers of one LM."""

    def make(layer, seed=0):
        source = LMActivations(
            tiny_source("gpt2"), random_corpus(), Point("resid", layer), tokens=4096,
            val_tokens=256, test_tokens=1024, ctx=CTX, dtype="float32",
        )  # fmt: skip
        source.prepare()
        rows = source.split("train")
        x = torch.cat([rows.read(i) for i in range(rows.num_chunks)]).float()
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(24, x.shape[1], generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        b_enc = -(x @ W_dec.T).quantile(0.9, dim=0)
        config = SAEConfig("test", "relu", x.shape[1], 24)
        return PlacedSAE(SAE(W_dec.T.contiguous(), b_enc, W_dec, x.mean(0), config), source)

    return make


@pytest.mark.slow
def test_ablation_is_an_edited_pass(placed):
    one = placed(1)
    record = records(one)[5]
    contexts = strongest(record, 6)
    effect = ablate(one, one.lm, record, contexts)
    total, kl, count = 0, 0.0, 0
    for tokens, fires in zip(contexts.tokens, contexts.fires, strict=True):
        clean = one.lm.logits(tokens[None])[0]

        def without(x, fires=fires):
            f = one.sae.encode(x)[..., 5, None] * fires[None, :, None]
            return x - f * one.sae.W_dec[5]

        off = one.lm.logits(tokens[None], {Point("resid", 1): without})[0]
        log_p, log_q = clean[fires].log_softmax(-1), off[fires].log_softmax(-1)
        total = total + (off - clean)[fires].sum(0)
        kl += (log_p.exp() * (log_p - log_q)).sum().item()
        count += int(fires.sum())
    assert effect.positions == count
    torch.testing.assert_close(effect.logits, total / count, atol=1e-5, rtol=1e-4)
    assert effect.kl == pytest.approx(kl / count, rel=1e-3)
    assert effect.kl_random > 0


@pytest.mark.slow
def test_what_feeds_a_latent_is_an_edited_pass_too(placed):
    below, one = placed(0), placed(1, seed=1)
    record = records(one)[5]
    contexts = strongest(record, 5)
    feeds = feeding(one, below, one.lm, record, contexts, count=4)
    sizes = [abs(feed.change) for feed in feeds]
    assert sizes == sorted(sizes, reverse=True)
    rows = torch.arange(len(contexts.tokens))

    def value(edit):
        replaced = {} if edit is None else {Point("resid", 0): edit}
        seen = []
        replaced[Point("resid", 1)] = lambda x: seen.append(x) or x
        one.lm.logits(contexts.tokens, replaced)
        return one.sae.encode(seen[0][rows, contexts.peak])[:, 5].mean().item()

    for feed in feeds:

        def off(x, latent=feed.latent):
            f = below.sae.encode(x)[..., latent, None]
            f[:, 0] = 0  # position 0 is left alone
            return x - f * below.sae.W_dec[latent]

        assert feed.change == pytest.approx(value(off) - value(None), abs=1e-4)
        straight = below.sae.W_dec[feed.latent] @ one.sae.W_enc[:, 5]
        assert feed.product == pytest.approx(feed.activation * straight.item(), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_sae_below_is_below(placed):
    one = placed(0)
    record = records(one)[5]
    with pytest.raises(ConfigError, match=r"resid\.1.*resid\.0"):
        feeding(one, placed(1), one.lm, record, strongest(record, 2))


def test_latents_on_the_last_token(placed):
    one = placed(1)
    found = on_last_token(one, one.lm, "abc def", 5)
    ids = [256, *one.lm.tokenizer("abc def")["input_ids"]]
    x = one.lm.capture(torch.tensor([ids]), [one.point])[one.point][0, -1]
    f = one.sae.encode(x)
    assert [latent for latent, _ in found] == f.topk(5).indices[f.topk(5).values > 0].tolist()


@pytest.mark.slow
def test_a_case_study_has_three_views(placed):
    result = CaseStudyEval(feature=5, contexts=3).run(placed(1))
    details = result.details
    assert result.metrics["kl_ablated"].value > 0
    assert details["latent"] == "5"
    assert len(details["record"]["contexts"]) == 3
    counts = [*details["by_token"]["counts"], details["by_token"]["others"]]
    assert sum(map(sum, counts)) == records(placed(1), split="test")[5].firings
    lowered = [change for _, change in details["logits"]["lowered"]]
    assert lowered == sorted(lowered)


@pytest.mark.slow
def test_tokens_of_the_same_text_keep_their_bars(placed, tmp_path):
    one = placed(1)
    found = records(one, split="test")
    record = found[5]
    same = replace(record.text, vocabulary=[b"\xe2"] * len(record.text.vocabulary))
    stacks = _by_token(replace(record, text=same))
    assert len(stacks["counts"]) == len(stacks["tokens"]) == len(record.histogram_tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "feature"), ({"feature": 24}, "0 to 23"), ({"feature": "-3"}, "-3"),
     ({"find": "abc", "max_density": 1e-9}, "max_density|1e-09")],
)  # fmt: skip
def test_wrong_latents_are_refused(placed, settings, said):
    with pytest.raises(ConfigError, match=said):
        CaseStudyEval(**settings).run(placed(1))
