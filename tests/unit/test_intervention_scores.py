"""Texts under a push at one KL, and the rise of explanations behind them, against slow loops."""

import numpy as np
import pytest
import torch
from _explanations import latent
from _explanations import placed as words_placed
from _steering import Z_LATENT, at_home, home, placed, slow_kl  # noqa: F401

from sae.explanations import pushed as module
from sae.explanations.explainers import Explanation
from sae.explanations.intervention import _QUESTION, Intervention, pushed_rows
from sae.explanations.log_probs import LocalJudge, LogProbs
from sae.explanations.pushed import NEW_TOKENS, OPENINGS, of_classes, of_latents
from sae.explanations.study import Row
from sae.features.steering import TOLERANCE, Gauge
from sae.language.logit_lens import direct_logits
from sae.metrics.bootstrap import Bootstrap
from sae.tasks.task import one_token
from sae.types import Point


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Openings and a KL that a tiny LM of letters has room for."""
    monkeypatch.setattr(module, "read_openings", lambda _, most: list("abcdefgh")[:most])
    monkeypatch.setattr(module, "NEW_TOKENS", 4)
    monkeypatch.setattr(module, "TARGET", 0.1)


def test_the_texts_of_a_latent_have_the_target_kl(placed, monkeypatch):  # noqa: F811
    seen = []
    search = module.sizes_at

    def spied(gauge, arm, targets, start):
        found = search(gauge, arm, targets, start)
        seen.append((arm, found[0]))
        return found

    monkeypatch.setattr(module, "sizes_at", spied)
    pushes = of_latents(placed)
    texts = pushes.texts(str(Z_LATENT))
    assert texts.made
    assert not pushes.texts(str(Z_LATENT)).made
    assert len(seen) == 2  # the latent and a random direction
    clean = [torch.tensor(one) for one in pushes.clean]
    for arm, size in seen:
        kls = []
        for one in clean:
            step = size.size * arm.direction / arm.direction.norm()

            def push(x, step=step):
                moved = x + step
                moved[:, 0] = x[:, 0]
                return moved

            tokens = one[None]
            both = placed.lm.logits(tokens), placed.lm.logits(tokens, {placed.point: push})
            kls.append(slow_kl(*(logits[0, 1:] for logits in both)))
        assert float(torch.cat(kls).mean()) == pytest.approx(0.1, rel=TOLERANCE + 0.01)
    direction = seen[0][0].direction
    torch.testing.assert_close(direction, placed.sae.W_dec[Z_LATENT])


def test_a_negative_latent_is_pushed_the_other_way(placed):  # noqa: F811
    pushes = of_latents(placed)
    torch.testing.assert_close(pushes._direction("-7"), -pushes._direction("7"))


def test_what_was_written_is_kept(placed, monkeypatch):  # noqa: F811
    first = of_latents(placed).texts("3")
    monkeypatch.setattr(Gauge, "kl", lambda *_: pytest.fail("a search was made again"))
    again = of_latents(placed).texts("3")
    assert again == first


def test_a_push_that_does_not_reach_the_target_has_no_texts(placed, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "TARGET", 1e9)
    texts = of_latents(placed).texts("3")
    assert texts.own is texts.random is None
    scorer = Intervention(LogProbs(LocalJudge(placed.lm)), of_latents(placed), lambda _: None)
    one = latent("3", words_placed(1, training=True), words_placed(2), " fish")
    assert np.isnan(scorer.score(one, 0, Explanation("z")).values["intervention"])


def test_classes_are_pushed_behind_the_last_block_and_come_up_in_the_text(
    placed,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(module, "TARGET", 0.5)
    monkeypatch.setattr(module, "NEW_TOKENS", 16)
    lm = placed.lm
    z = one_token(lm.tokenizer, "z")
    mask = np.arange(lm.vocab_size) == z
    pushes = of_classes(placed, {"z": mask})
    assert pushes._one.point == Point("resid", lm.num_layers - 1)
    direct = direct_logits(lm, pushes._direction("z")[None], Point("resid", lm.num_layers - 1))[0]
    assert int(direct.argmax()) == z
    texts = pushes.texts("z")
    own, clean = (sum(t[-16:].count(z) for t in of) for of in (texts.own, pushes.clean))
    assert own > clean


def test_the_rise_is_the_difference_of_whole_passes(placed):  # noqa: F811
    lm, judge = placed.lm, LocalJudge(placed.lm)
    pushes, spent = of_latents(placed), []
    scorer = Intervention(LogProbs(judge), pushes, spent.append)
    one = latent(str(Z_LATENT), words_placed(1, training=True), words_placed(2), " fish")
    found = scorer.score(one, 0, Explanation("zed")).values
    texts = pushes.texts(str(Z_LATENT))
    answer = judge.ids(" zed")

    def log_p(text):
        ids = [*text, *judge.ids(_QUESTION), *answer]
        logs = torch.log_softmax(lm.logits(torch.tensor([ids]))[0].double(), -1)
        return sum(float(logs[-len(answer) - 1 + t, i]) for t, i in enumerate(answer))

    for name, part in (("intervention", texts.own), ("intervention_random", texts.random)):
        rises = [log_p(a) - log_p(b) for a, b in zip(part, pushes.clean, strict=True)]
        assert found[name] == pytest.approx(np.mean(rises), abs=1e-4)
    assert spent == [module.TOKENS]  # once for a latent
    wrong = scorer.score(one, 0, Explanation("a"), without=one).values
    assert set(wrong) == {"intervention"}
    assert spent == [module.TOKENS]


def test_without_pushes_there_is_no_score(placed):  # noqa: F811
    scorer = Intervention(LogProbs(LocalJudge(placed.lm)), None, lambda _: None)
    one = latent("3", words_placed(1, training=True), words_placed(2), " fish")
    assert scorer.score(one, 0, Explanation("z")).values == {}


def test_means_stand_beside_both_controls():
    rows = [
        Row(str(i), "output", "explained", "w", 0.1, 30,
            {"intervention": 2.0 + i, "intervention_random": 1.0, "intervention_deranged": i}, {})
        for i in range(3)
    ]  # fmt: skip
    rows.append(Row("9", "rules", "explained", "w", 0.1, 30, {}, {}))
    (found,) = pushed_rows({"SAE": rows}, Bootstrap(num_resamples=20))
    assert (found["explainer"], found["latents"]) == ("output", 3)
    assert (found["rise"], found["random"], found["over_random"]) == (3.0, 1.0, 2.0)
    assert found["over_deranged"] == 2.0
    assert NEW_TOKENS > OPENINGS
