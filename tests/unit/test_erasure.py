"""The evaluation `erasure` on a tiny LM with a vocabulary of words; planted answers; its page."""

import json

import numpy as np
import pytest
import torch
from _features import make_sae
from _named import POINT, census, worded, worded_source

from sae.activations.counted import Counted, RowRule
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.erasure import ErasureEval
from sae.features.erased import Ground, Side, on_texts
from sae.features.erasing import Ranked, controls
from sae.features.grounds import Named, split_texts
from sae.features.prompted import Prompted, on_text
from sae.features.sets import read_features
from sae.interventions import projected_out
from sae.metrics.two_way import answers, area
from sae.probing import fresh
from sae.reports.pages import write_pages
from sae.tasks.biographies import biographies
from sae.tasks.gender import name_to_gender
from sae.tasks.labelled import LabelledTexts
from sae.tasks.names import single_token_names
from sae.tasks.task import Prompt, Task
from sae.types import Point

__all__ = ["census", "worded", "worded_source"]  # fixtures
SETTINGS = {"names": 10, "prompts": 1, "ks": (1, 2), "num_tokens": 64, "resamples": 20}


@pytest.fixture
def one(census, worded_source, monkeypatch):
    monkeypatch.setattr(fresh, "STANDARDISED", fresh.STANDARDISED._replace(epochs=2))
    monkeypatch.setattr(fresh, "_STEPS", 5)
    return PlacedSAE(make_sae(worded_source), worded_source, "mine")


@pytest.fixture
def names(census, worded):
    return single_token_names(worded.tokenizer, 10, test=0.4, seed=0)


def rows_of(result, **wanted):
    found = result.tables["edits"].rows()
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


@pytest.mark.slow
def test_from_names_to_a_page(one, tmp_path):
    settings = SETTINGS | {"tasks": ("gender", "pronoun", "transfer"), "least_auc": 0.0}
    result = ErasureEval(**settings).run(one)
    (clean,) = rows_of(result, task="gender", method="none")
    assert clean["drop_probability"] == clean["size"] == clean["kl"] == 0
    for task in settings["tasks"]:
        fitted_on = "pronoun" if task == "pronoun" else "gender"
        assert {row["fitted_on"] for row in rows_of(result, task=task)} == {fitted_on}
        for form in ("projection", "delta", "zeroing", "random latents", "random directions"):
            assert [row["latents"] for row in rows_of(result, task=task, method=form)] == [1, 2]
        for row in rows_of(result, task=task):
            assert row["probability_low"] <= row["probability"] <= row["probability_high"]
    # what edits cost on neutral text does not depend on where they are measured
    for gender, transfer in zip(
        rows_of(result, task="gender"), rows_of(result, task="transfer"), strict=True
    ):
        assert gender["kl"] == transfer["kl"]
    assert rows_of(result, task="gender", method="SPLINCE") == []
    assert result.details["fits"]["gender"]["training rows"] > 10 * one.sae.d_in
    again = ErasureEval(**settings).run(one)
    assert again.tables["edits"].rows() == result.tables["edits"].rows()
    result.save(tmp_path / "erasure.json")
    assert json.loads((tmp_path / "erasure.json").read_text())["eval"] == "erasure"
    assert write_pages(result, tmp_path / "erasure")
    page = (tmp_path / "erasure" / "index.html").read_text()
    assert "Fitted on gender, measured on the pronoun" in page
    found = read_features(tmp_path / "erasure" / "features.json", one)
    assert len(found.latents) == 2
    assert found.made_by["fitted_on"] == "gender"
    other = read_features(tmp_path / "erasure" / "features-pronoun.json", one)
    assert other.made_by["fitted_on"] == "pronoun"


def test_splince_keeps_the_profession(one):
    result = ErasureEval(**SETTINGS | {"tasks": ("biographies",), "least_auc": 0.0}).run(one)
    (leace,) = rows_of(result, method="LEACE")
    (splince,) = rows_of(result, method="SPLINCE")
    assert leace["probability"] is None
    assert splince["kept_linear_probe"] is not None
    assert "biographies_drop_linear_probe_splince" in result.metrics


def test_a_file_of_two_classes(one, tmp_path):
    file = tmp_path / "texts.csv"
    lines = [f"{word} {word} {word} {word} went to the {place} {when},{word}"
             for word in ("James", "Mary") for place in ("store", "park", "beach", "bank")
             for when in ("today", "now", "then")]  # fmt: skip
    file.write_text("text,label\n" + "\n".join(lines))
    settings = SETTINGS | {"tasks": (), "csv": str(file)}
    result = ErasureEval(**settings).run(one)
    (clean,) = rows_of(result, task="csv", method="none")
    assert clean["linear_probe"] > 0.9  # a word tells, also in other sentences
    file.write_text("text,label\n" + "\n".join([lines[0], lines[0], *lines[-3:]]))
    with pytest.raises(ConfigError, match="texts has one text of James. Give two different ones"):
        ErasureEval(**settings).run(one)
    file.write_text("text,label\n" + "\n".join([*lines, "so he went,third"]))
    with pytest.raises(ConfigError, match=r"texts has 3 classes \(James, Mary, third\)"):
        ErasureEval(**settings).run(one)


def test_a_task_that_the_lm_fails_is_refused(one):
    with pytest.raises(ConfigError, match=r"worded does not solve gender: .*least_auc=0.99"):
        ErasureEval(**SETTINGS | {"tasks": ("gender",), "least_auc": 0.99}).run(one)


def test_more_latents_than_there_are_is_an_error(one):
    with pytest.raises(ConfigError, match="ks has 49; numbers must be at most 48"):
        ErasureEval(ks=(1, 49)).run(one)


def test_nothing_to_measure_is_an_error(one):
    with pytest.raises(ConfigError, match="tasks is empty"):
        ErasureEval(tasks=()).run(one)


def test_professions_that_are_not_there_are_an_error():
    with pytest.raises(ConfigError, match="pair=nurse/nurse must be two different of professor"):
        ErasureEval(pair="nurse/nurse")


def test_an_sae_of_another_lm_is_refused(one):
    lm = {"kind": "folder", "path": "elsewhere", "name": "their-lm", "dtype": "float32"}
    one.sae.metadata["activations"] = {"lm": lm, "identities": {"lm": "another"}}
    with pytest.raises(ConfigError, match="trained on their-lm, and the LM is worded"):
        ErasureEval(**SETTINGS).run(one)
    own = one.source.describe()
    one.sae.metadata["activations"] = {"lm": {**own["lm"], "dtype": "bfloat16"}}
    ErasureEval(**SETTINGS)._check(one)  # another dtype is the same LM


def test_a_site_that_the_sae_was_not_trained_on_is_refused(one, worded_source):
    from sae.activations.sources import LMActivations

    wide = LMActivations(
        worded_source.source, worded_source.corpus, Point("mlp", 1), tokens=4096, val_tokens=256,
        test_tokens=512, ctx=16, dtype="float32",
    )  # fmt: skip
    wide.prepare()
    with pytest.raises(ConfigError, match="Choose the lm, layer and site that it was trained on"):
        ErasureEval(**SETTINGS).run(PlacedSAE(one.sae, wide, "mine"))


def planted(lm, direction):
    """Prompts that end with a name, whose row at the last block tells the answer alone."""
    first, second = (lm.tokenizer(f" {name}")["input_ids"][0] for name in ("James", "Mary"))
    readout = lm.model.get_output_embeddings().weight
    readout.data[1], readout.data[2] = 5 * direction, -5 * direction
    return Task("planted", tuple(
        Prompt((256, word, name), *answer, places={"name": 2}, group=str(name), label=label)
        for word in range(3, 20)
        for name, answer, label in ((first, (1, 2), 1), (second, (2, 1), 0))
    ))  # fmt: skip


def test_projecting_out_what_the_answer_is_read_from_leaves_no_answer(worded):
    last = Point("resid", worded.num_layers - 1)
    direction = torch.randn(worded.d_model, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean()  # the last norm takes means out
    prompted = Prompted(worded, last, None, planted(worded, direction))
    clean = prompted.clean()
    tokens = torch.tensor([prompt.tokens for prompt in prompted.task.prompts])
    sides = torch.tensor([(prompt.right, prompt.wrong) for prompt in prompted.task.prompts])
    whole = worded.logits(tokens)[:, -1].gather(1, sides)
    torch.testing.assert_close(clean.difference, whole[:, 0] - whole[:, 1], atol=1e-4, rtol=1e-4)
    assert clean.difference.abs().mean() > 1
    assert prompted.under(projected_out(direction[None])).abs().max() < 1e-3
    torch.testing.assert_close(prompted.under(lambda x: x), clean.difference)
    x = worded.capture(tokens, [last])[last][:, -1]
    torch.testing.assert_close(clean.x, x, atol=1e-4, rtol=1e-4)


def test_edited_rows_that_do_not_count_are_refused(worded, names):
    task = name_to_gender(worded.tokenizer, names, train=1, test=1, seed=0).test
    colon = task.prompts[0].tokens[-1]
    counted = Counted(RowRule(), (colon,), {str(POINT): float("inf")})
    message = rf"token 3 after the name of prompt \d+ is token \d+ \({colon}\), whose row at"
    with pytest.raises(ConfigError, match=message):
        Prompted(worded, POINT, counted, task).clean()


def test_neutral_text_is_edited_where_rows_count_and_nowhere_else(one):
    store = one.source.store("test")
    sums = on_text(one, "test", [lambda x: x, lambda x: 2 * x], num_tokens=64, batch_contexts=3)
    chosen = [i * len(store.tokens) // 4 for i in range(4)]
    tokens = torch.from_numpy(np.stack([store.tokens[i] for i in chosen])).long()
    document = torch.from_numpy(np.stack([store.document[i] for i in chosen]))
    units = document.unique()
    assert sums.shape == (len(units), 3, 6)
    assert torch.equal(sums[:, 0, 0], sums[:, 2, 0])
    assert sums[:, 1, 2].abs().max() < 1e-4
    assert sums[:, 2, 2].min() > 1e-3
    x = one.lm.capture(tokens, [POINT])[POINT]
    counts = one.counted.at([POINT]).mask([x], tokens)
    counts[:, 0] = False
    norm, alike = x.norm(dim=-1).double(), {"rtol": 1e-4, "atol": 1e-4}
    follows = torch.zeros_like(counts)
    follows[:, :-1] = (document[:, 1:] == document[:, :-1]) & counts[:, :-1]
    for n, unit in enumerate(units):
        own = (document == unit) & counts
        assert sums[n, 2, 3] == own.sum()
        assert sums[n, 2, 0] == (follows & own).sum()
        torch.testing.assert_close(sums[n, 2, 4], norm[own].sum(), **alike)
        torch.testing.assert_close(sums[n, 2, 5], own.sum().double(), **alike)


def test_answers_by_a_slow_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    score = rng.normal(size=40) + labels
    found = answers(score, labels, 0.3, np.ones((1, 40)))
    right = [s if y else -s for s, y in zip(score, labels, strict=True)]
    assert found["probability"][0] == pytest.approx(np.mean([1 / (1 + np.exp(-r)) for r in right]))
    assert found["logit_difference"][0] == pytest.approx(np.mean(right))
    for name, threshold in (("balanced_accuracy", 0), ("calibrated_accuracy", 0.3)):
        shares = [np.mean((score[labels == y] > threshold) == y) for y in (0, 1)]
        assert found[name][0] == pytest.approx(np.mean(shares))
    pairs = [a > b for a in score[labels == 1] for b in score[labels == 0]]
    assert found["auc"][0] == pytest.approx(np.mean(pairs))


def test_the_area_of_a_curve():
    gains = [np.array([0.2]), np.array([0.4]), np.array([0.1])]
    assert area([2.0, 4.0, 5.0], gains, 4.0)[0] == pytest.approx((0.2 + 0.6) / 4)
    assert area([2.0, 4.0, 5.0], gains, 3.0)[0] == pytest.approx((0.2 + 0.25) / 3)
    assert area([2.0], gains[:1], 8.0)[0] == pytest.approx((0.2 + 0.2 * 6) / 8)  # flat after
    assert area([2.0], [np.array([-0.2])], 8.0)[0] == 0.0


def test_biographies_whose_attributes_go_together():
    made = biographies(("professor", "nurse"))
    chosen = made.correlated(0.9, seed=0)
    agree = [made.profession[i] == made.gender[i] for i in chosen]
    assert np.mean(agree) == pytest.approx(0.9, abs=0.005)
    assert all(made.train[i] for i in chosen)
    assert sum(agree) == 400
    assert len(made.correlated(0.5, seed=0)) == 800


def test_rows_of_texts_that_do_not_count_are_left_out():
    from sae.activations.labelled import TextActivations

    x = torch.tensor([[1.0], [9.0], [2.0], [3.0]])
    activations = TextActivations(x, torch.tensor([2, 1, 1]))
    counted = Counted(RowRule(), (), {"x": 5.0})
    side = on_texts(activations, counted, [2, 0], [1, 0, 0], ["a", "b", "c"])
    assert side.x[:, 0].tolist() == [1.0, 3.0]
    assert side.example.tolist() == [1, 0]
    assert side.z.tolist() == [0, 1]
    assert side.pooled(side.x)[:, 0].tolist() == [3.0, 1.0]


def test_equal_texts_stay_on_one_side():
    words = ["a b", "a b", "a c", "a d", "b e", "b f", "b f", "b g", "b h"]
    texts = LabelledTexts.of("own", words, [word[0] for word in words])
    for seed in range(5):
        train, test = split_texts(texts, seed)
        assert sorted([*train, *test]) == list(range(9))
        assert not {words[i] for i in train} & {words[i] for i in test}
        assert {words[i][0] for i in train} == {words[i][0] for i in test} == {"a", "b"}


def test_latents_and_closed_forms_know_nothing_of_test_names(one):
    """Other test names: the same latents and the same maps, bit for bit."""
    evaluation = ErasureEval(**SETTINGS)
    named = evaluation._read(one, "gender")
    fit = evaluation._fit(one, named, "test")
    ground = named.ground
    others = Side(
        ground.test.x + 3.0, ground.test.example, 1 - ground.test.z, None, ground.test.unit
    )  # fmt: skip
    moved = Ground(ground.train, others, by_row=True, bootstrap=evaluation.bootstrap, seed=0)
    again = evaluation._fit(one, Named(moved, "other", {}), "test")
    assert torch.equal(fit.ranked.latents, again.ranked.latents)
    x = ground.train.x[:8][None]
    for edit, other in zip(fit.edits, again.edits, strict=True):
        assert torch.equal(edit.replacement(x), other.replacement(x))


def test_the_threshold_follows_training_answers_alone(one):
    """Shifted training scores shift the threshold; test scores decide none."""
    evaluation = ErasureEval(**SETTINGS)
    ground = evaluation._read(one, "gender").ground
    of_train, of_test = ground.answers(None)
    for shift, expected in ((-1e3, 0.5), (1e3, 0.5), (0.0, None)):
        ground.answers = lambda edit, by=shift: (of_train + by, of_test)
        found = float(ground.scores(None)["calibrated_accuracy"][0])
        above = (of_test > (of_train + shift).median()).long()
        slow = sum(float((above[ground.test.z == c] == c).float().mean()) for c in (0, 1)) / 2
        assert found == pytest.approx(slow, abs=0.02)
        assert expected is None or found == expected


def test_random_latents_are_none_of_the_chosen(one):
    found = Ranked(torch.arange(8), torch.ones(8), torch.arange(6))
    made = controls(one.sae, found, (1, 2, 4), seed=0)
    drawn = [edit for edit in made if edit.method == "random latents"]
    assert [edit.latents for edit in drawn] == [1, 2]  # 4 and 5 are left
    x = torch.randn(1, 3, one.sae.d_in)
    span = one.sae.W_dec[[4, 5]]
    torch.testing.assert_close(drawn[1].replacement(x), projected_out(span)(x))
