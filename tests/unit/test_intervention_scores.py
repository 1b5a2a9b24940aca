"""Texts under a push at one KL, and the rise of explanations behind them, against slow loops."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from _explanations import bench_of, latent
from _explanations import placed as words_placed
from _steering import Z_LATENT, at_home, home, placed, slow_kl  # noqa: F401
from scipy import stats

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.autointerp import AutointerpEval
from sae.evals.controls import RANDOM_LM, Control
from sae.explanations import narrow as narrow_module
from sae.explanations import pushed as module
from sae.explanations.budget import Budget
from sae.explanations.explainers import Explanation
from sae.explanations.intervention import _QUESTION, Intervention, pushed_rows
from sae.explanations.latents import Subject
from sae.explanations.log_probs import LocalJudge, LogProbs
from sae.explanations.narrow import Narrow
from sae.explanations.pushed import NEW_TOKENS, OPENINGS, Writing, of_classes, of_latents
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
    pushes = of_latents(Writing(placed), placed.sae)
    texts = pushes.texts(str(Z_LATENT))
    assert texts.tokens > 0
    assert pushes.texts(str(Z_LATENT)).tokens == 0
    assert len(seen) == 2  # the latent and a random direction
    clean = [torch.tensor(one) for one in pushes.writing.clean]
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
    pushes = of_latents(Writing(placed), placed.sae)
    torch.testing.assert_close(pushes._direction("-7"), -pushes._direction("7"))


def test_bases_are_pushed_both_ways_and_what_has_no_direction_is_not(placed):  # noqa: F811
    d, eye = placed.sae.d_in, torch.eye(placed.sae.d_in)
    basis = SAE(eye, torch.zeros(d), eye, torch.zeros(d), SAEConfig("identity", "identity", d, d))
    pushes = of_latents(Writing(placed), basis)
    torch.testing.assert_close(pushes._direction("-3"), -eye[3])
    both = [pushes.texts(name).own for name in ("3", "-3")]
    assert None not in both
    assert both[0] != both[1]
    controls = [Control("SAE", placed), Control("neurons", placed, dense=True, facts={"k": None}),
                Control(RANDOM_LM, placed)]  # fmt: skip
    read = list(AutointerpEval()._to_come(placed, controls, False))
    assert ["intervention" in one for one in read] == [True, True, False, False]  # last: the lookup
    assert [one.get("surprisal") for one in read] == [3, None, 1, 1]  # rules, output and tokens
    some = list(AutointerpEval(lm_dictionaries=["neurons"])._to_come(placed, controls, True))
    assert some == [dict.fromkeys(read[0], 4), read[1], {}, {}]
    with pytest.raises(ConfigError, match="lm_dictionaries has no effect without .*scorers"):
        AutointerpEval(lm_dictionaries=["neurons"]).measure([placed], "test")


def test_what_was_written_is_kept(placed, monkeypatch):  # noqa: F811
    first = of_latents(Writing(placed), placed.sae).texts("3")
    monkeypatch.setattr(Gauge, "kl", lambda *_: pytest.fail("a search was made again"))
    again = of_latents(Writing(placed), placed.sae).texts("3")
    assert again == first  # what is kept counts as read


def test_a_push_that_does_not_reach_the_target_has_no_texts(placed, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "TARGET", 1e9)
    pushes = of_latents(Writing(placed), placed.sae)
    texts = pushes.texts("3")
    assert texts.own is texts.random is None
    scorer = Intervention(LogProbs(LocalJudge(placed.lm)), pushes)
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
    assert pushes.writing.point == Point("resid", lm.num_layers - 1)
    direct = direct_logits(lm, pushes._direction("z")[None], Point("resid", lm.num_layers - 1))[0]
    assert int(direct.argmax()) == z
    texts = pushes.texts("z")
    own, clean = (sum(t[-16:].count(z) for t in of) for of in (texts.own, pushes.writing.clean))
    assert own > clean


def test_the_rise_is_the_difference_of_whole_passes(placed):  # noqa: F811
    lm, judge = placed.lm, LocalJudge(placed.lm)
    pushes = of_latents(Writing(placed), placed.sae)
    scorer = Intervention(LogProbs(judge), pushes)
    one = latent(str(Z_LATENT), words_placed(1, training=True), words_placed(2), " fish")
    found = scorer.score(one, 0, Explanation("zed")).values
    texts = pushes.texts(str(Z_LATENT))
    answer = judge.ids(" zed")

    def log_p(text):
        ids = [*text, *judge.ids(_QUESTION), *answer]
        logs = torch.log_softmax(lm.logits(torch.tensor([ids]))[0].double(), -1)
        return sum(float(logs[-len(answer) - 1 + t, i]) for t, i in enumerate(answer))

    for name, part in (("intervention", texts.own), ("intervention_random", texts.random)):
        rises = [log_p(a) - log_p(b) for a, b in zip(part, pushes.writing.clean, strict=True)]
        assert found[name] == pytest.approx(np.mean(rises), abs=1e-4)
    wrong = scorer.score(one, 0, Explanation("a"), without=one).values
    assert set(wrong) == {"intervention"}


def pushed_subject(placed, name, numbers):  # noqa: F811
    """Latents that can be pushed, each with a letter as its words."""
    texts = words_placed(1, training=True), words_placed(2)
    latents = [latent(number, *texts, " fish") for number in numbers]
    words = {
        "output": [Explanation(letter) for letter, _ in zip("abcdefgh", latents, strict=False)]
    }
    rows = [Row(one.name, "output", "explained", "", 0.1, 30, {}, {}) for one in latents]
    subject = Subject(name, latents, pushes=of_latents(Writing(placed), placed.sae))
    return subject, words, bench_of(texts[1]), rows


@contextmanager
def counted(lm):
    """The tokens of every pass of an LM, counted at its embedding."""
    found = [0]

    def count(module, inputs, output):
        found[0] += inputs[0].numel()

    handle = lm.model.get_input_embeddings().register_forward_hook(count)
    try:
        yield found
    finally:
        handle.remove()


def test_no_latent_is_begun_once_the_budget_is_spent(placed, monkeypatch, tmp_path):  # noqa: F811
    """The estimate is far too low, so that the plan alone would read all."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path))  # nothing is known yet
    monkeypatch.setitem(narrow_module.TOKENS, "intervention", 10)
    monkeypatch.setitem(narrow_module.ONCE, "intervention", 10)

    def read(tokens):
        narrow = Narrow(LocalJudge(placed.lm), ["intervention"], Budget(tokens))
        narrow.plan({}, [{"intervention": 1}] * 2)
        found = []
        for name, numbers in (("SAE", "12345"), ("neurons", ["6", "-6", "-9", "11", "12"])):
            rows = narrow.read(*pushed_subject(placed, name, numbers))
            found.append(sum("intervention" in row.values for row in rows))
        return narrow, found

    with counted(placed.lm) as tokens:
        whole, found = read(10**6)
    assert found == [5, 5]
    assert tokens == [whole.budget.spent]  # all that it reads and writes
    assert whole.facts()["unasked"] == {}
    most = whole.budget.spent // 8
    for limit in (whole.budget.spent // 2, whole.budget.spent // 3):
        narrow, found = read(limit)
        assert limit < narrow.budget.spent < limit + most  # the last one is finished
        left = narrow.facts()["unasked"]["intervention"]
        assert [5 - left["SAE"], 5 - left["neurons"]] == found
        assert min(found) >= 1  # each dictionary has its share
        assert max(found) < 5


def test_a_part_of_a_budget_ends_before_the_whole():
    budget = Budget(100)
    with budget.part(0.5):
        budget.spend(60)  # begun work is finished
        assert budget.left == 0
    assert budget.left == 40
    with budget.part(0.5), budget.part(0.5):
        assert budget.left == 10


def test_means_stand_beside_both_controls():
    rows = [
        Row(str(i), "output", "explained", "w", 0.1, 30,
            {"intervention": 2.0 + i, "intervention_random": 1.0,
             "intervention_deranged": float(i)}, {})
        for i in range(3)
    ]  # fmt: skip
    rows.append(Row("9", "rules", "explained", "w", 0.1, 30, {}, {}))
    (found,) = pushed_rows({"SAE": rows}, Bootstrap(num_resamples=20))
    assert (found["explainer"], found["latents"], found["seeds"]) == ("output", 3, 1)
    assert (found["rise"], found["random"], found["over_random"]) == (3.0, 1.0, 2.0)
    assert found["over_deranged"] == 2.0
    assert found["over_random_low"] is None  # three latents are too few for an interval
    assert found["over_random_seed_low"] is None  # and a single seed for one over seeds
    assert NEW_TOKENS > OPENINGS


def test_the_sae_is_held_against_another_dictionary_and_its_seeds():
    def rows(rise, seed=0):
        return [
            Row(str(i), "output", "explained", "w", 0.1, 30,
                {"intervention": rise + 0.1 * i, "intervention_random": 0.5,
                 "intervention_deranged": 0.1 * i}, {}, seed=seed)
            for i in range(10)
        ]  # fmt: skip

    studies = {"SAE": [*rows(2.0), *rows(3.0, seed=1)], "neurons": rows(1.0)}
    ours, other = pushed_rows(studies, Bootstrap(num_resamples=50))
    assert (ours["latents"], ours["seeds"]) == (20, 2)
    assert ours["over_random"] == pytest.approx(2.45)
    # Student's half width of two means, 1.95 and 2.95, over seeds
    half = stats.t.ppf(0.975, 1) * np.std([1.95, 2.95], ddof=1) / np.sqrt(2)
    assert ours["over_random_seed_low"] == pytest.approx(2.45 - half)
    assert "sae_less_this_over_random" not in ours
    assert other["sae_less_this_over_random"] == pytest.approx(1.5)
    assert other["sae_less_this_over_random_low"] > 1.0
    assert other["sae_less_this_over_deranged"] == pytest.approx(1.5)
