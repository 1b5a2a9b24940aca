"""Effects of lower latents, against passes of a float64 copy of the LM that is edited by hand."""

import copy

import pytest
import torch
from _circuits import COMPANY, CTX, MIDDLE, UPSTREAM, place, planted, sae_at

from sae.features import records
from sae.features.upstream import Upstream, activation_of, difference_of
from sae.language import GivenLM
from sae.tasks.task import Prompt, Task


class Slow:
    """A float64 copy of an LM, edited by hooks of its own; nothing is shared or repeated."""

    def __init__(self, lm):
        self.model = copy.deepcopy(lm.model).double()
        self.blocks = self.model.transformer.h

    def run(self, tokens, layer, edit, until=None):
        """The last row of the output of block `until`, or of the logits."""
        seen = []

        def at(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            new = edit(hidden)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        def keep(module, inputs, output):
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [self.blocks[layer].register_forward_hook(at)]
        if until is not None:
            handles.append(self.blocks[until].register_forward_hook(keep))
        try:
            with torch.no_grad():
                logits = self.model(tokens[None], use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return (logits if until is None else seen[0])[0, -1]


def relu_code(sae, x):
    """Codes in float64, with no row that does not count: those of position 0."""
    f = (x @ sae.W_enc.double() + sae.b_enc.double()).relu()
    f[:, 0] = 0
    return f


@pytest.fixture(scope="module")
def pair(tiny_source, random_corpus):
    lm = tiny_source("gpt2")
    return [
        place(lm, random_corpus(), 0, lambda x: sae_at(x, 0, fires=0.2)),
        place(lm, random_corpus(), 2, lambda x: sae_at(x, 2, fires=0.7)),
    ]


@pytest.fixture
def contexts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(65, 91, (n,), generator=generator) for n in (5, 9, CTX)]


def slow_effect(slow, tokens, below, value, until, latent, part=1.0):
    """The value at the last token, less that with a part of a latent taken off."""
    sae = below.sae

    def off(x):
        f = relu_code(sae, x)[..., latent, None]
        return x - part * f * sae.W_dec[latent].double()

    clean = value(slow.run(tokens, 0, lambda x: x, until))
    return float(clean - value(slow.run(tokens, 0, off, until)))


def test_effects_are_finite_differences(pair, contexts):
    below, above = pair
    target = 4
    upstream = Upstream(below.lm, activation_of(above, target, contexts), below, batch_tokens=40)
    slow, sae = Slow(below.lm), above.sae

    def value(x):
        return (x @ sae.W_enc[:, target].double() + sae.b_enc[target].double()).relu()

    latents = list(range(sae.d_sae))
    effects, first = upstream.effects(latents), upstream.first_order()
    assert (first.clean > 0).any()
    assert effects.abs().max() > 1e-3
    for i, tokens in enumerate(contexts):
        for latent in latents:
            exact = slow_effect(slow, tokens, below, value, 2, latent)
            assert float(effects[i, latent]) == pytest.approx(exact, abs=2e-5)
            if first.clean[i] > 0:  # where it fires there is a slope
                small = slow_effect(slow, tokens, below, value, 2, latent, 1e-6) / 1e-6
                assert float(first.estimate[i, latent]) == pytest.approx(small, abs=2e-4)
            if not first.fires[i, latent]:
                assert effects[i, latent] == first.estimate[i, latent] == 0


def test_a_logit_difference_is_a_target(pair, contexts):
    below, _ = pair
    prompts = tuple(Prompt(tuple(tokens.tolist()), right=7, wrong=9) for tokens in contexts)
    upstream = Upstream(below.lm, difference_of(Task("toy", prompts)), below)
    slow = Slow(below.lm)
    effects, first = upstream.effects(range(8)), upstream.first_order()

    def value(logits):
        return logits[7] - logits[9]

    for i, tokens in enumerate(contexts):
        clean = value(slow.run(tokens, 0, lambda x: x))
        assert float(first.clean[i]) == pytest.approx(float(clean), abs=1e-5)
        for latent in range(8):
            exact = slow_effect(slow, tokens, below, value, None, latent)
            assert float(effects[i, latent]) == pytest.approx(exact, abs=2e-5)
            small = slow_effect(slow, tokens, below, value, None, latent, 1e-6) / 1e-6
            assert float(first.estimate[i, latent]) == pytest.approx(small, abs=2e-4)


def test_steps_in_other_directions_have_the_same_length(pair, contexts):
    below, above = pair
    upstream = Upstream(below.lm, activation_of(above, 4, contexts), below)
    latents = [1, 2, 3]
    same = upstream.effects(latents, below.sae.W_dec[latents])
    assert torch.equal(same, upstream.effects(latents))
    turned = upstream.effects(latents, -below.sae.W_dec[latents])
    assert not torch.allclose(turned, same)


@pytest.mark.slow
def test_a_planted_latent_is_found_and_its_company_is_not(tiny_source, random_corpus):
    below, above, _ = planted(tiny_source, random_corpus())
    found = records(above, split="test")
    strong = [one for one in found[MIDDLE].contexts if one.group == "top"]
    tokens = torch.from_numpy(found.text.tokens).long()
    contexts = [tokens[one.context, : one.peak + 1] for one in strong]
    upstream = Upstream(above.lm, activation_of(above, MIDDLE, contexts), below)
    first, effects = upstream.first_order(), upstream.effects(range(below.sae.d_sae))
    assert first.fires[:, [UPSTREAM, COMPANY]].all()  # both fire wherever the target does
    assert int(effects.mean(0).abs().argmax()) == UPSTREAM
    assert int(first.estimate.mean(0).abs().argmax()) == UPSTREAM
    assert float(effects[:, UPSTREAM].mean() / first.clean.mean()) == pytest.approx(1, abs=0.05)
    assert float(effects[:, COMPANY].abs().max()) < 0.02 * float(first.clean.mean())


@pytest.mark.slow
def test_massive_rows_are_never_edited(tiny_source, random_corpus):
    """Rows of the planted latent are the longest: with a lower limit none is left."""
    below, above, _ = planted(tiny_source, random_corpus())
    strict = place(GivenLM(below.lm), random_corpus(), 0, lambda x: below.sae, max_norm=1.5)
    found = records(above, split="test")
    tokens = torch.from_numpy(found.text.tokens).long()
    strong = [one for one in found[MIDDLE].contexts if one.group == "top"]
    contexts = [tokens[one.context, : one.peak + 1] for one in strong]
    target = activation_of(above, MIDDLE, contexts)
    edited, left = (Upstream(above.lm, target, one) for one in (below, strict))
    for i, context in enumerate(contexts):
        massive = (context >= 65) & (context < 70)  # the tokens a to e
        assert massive[-1]
        assert not left.code(i)[massive].any()
        assert torch.equal(left.code(i)[~massive], edited.code(i)[~massive])
    assert (edited.effects([UPSTREAM]) > 0).all()
    assert not left.effects([UPSTREAM]).any()
    assert not left.first_order().fires[:, UPSTREAM].any()
