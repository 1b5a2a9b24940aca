"""The evaluation `steer` from its settings to its page, its latents and its steering file."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from _evals import values
from _features import POINT, make_sae, placed_on
from _steering import (  # noqa: F401
    OPENINGS,
    Z_LATENT,
    about_z,
    at_home,
    csv_file,
    home,
    placed,
    settings,
    text_file,
)

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, SourceError
from sae.evals import steer
from sae.evals.steer import SteerEval
from sae.features import steered
from sae.features.output_effects import Contrast
from sae.features.prompted import on_text
from sae.features.sets import feature_set, read_features
from sae.features.steered import ARMS, OF_FEATURE, UNPUSHED, arms_of
from sae.features.steered_rows import arm_rows
from sae.features.steered_studies import CEILING, Studied
from sae.metrics.bootstrap import Bootstrap
from sae.reports.pages import write_pages
from sae.tasks.concept import Concept, read_concept, read_openings
from sae.tasks.task import ids_of


@pytest.fixture(scope="module")
def result(placed, settings):  # noqa: F811
    return SteerEval(**settings).run(placed)


def test_a_planted_feature_writes_its_letter_and_the_wrong_sign_does_not(
    placed, settings  # noqa: F811
):  # fmt: skip
    result = SteerEval(**settings | {"kl": [2.0]}).run(placed)
    assert values(result)["concept_feature"] > 1
    texts = result.tables["texts"].rows()
    counts = {
        arm: sum(row["text"].count("z") for row in texts if row["arm"] == arm) for arm in ARMS
    }
    assert counts["feature"] > 8
    assert counts["feature"] > 3 * max(counts["wrong sign"], counts["unsteered"])


def test_every_arm_is_at_the_same_kl_and_has_its_numbers(result):
    arms = {row["arm"]: row for row in result.tables["arms"].rows()}
    assert list(arms) == [*ARMS, CEILING]
    target = result.tables["features"].rows()[0]["target"]
    for name, row in arms.items():
        assert 0 <= row["score_low"] <= row["score"] <= row["score_high"] <= 2
        if name in ("prompt", "unsteered"):
            assert row["kl"] is row["size"] is row["neutral_kl"] is None
        elif name != CEILING:
            assert row["kl"] == pytest.approx(target, rel=0.05)
            assert row["neutral_kl"] > 0
        if name != "feature":
            less = arms["feature"]["score"] - row["score"]
            assert row["feature_less_arm"] == pytest.approx(less)
    curves = result.tables["curves"].rows()
    assert [(row["arm"], row["target"]) for row in curves] == [
        ("feature", 0.3), ("DiffMean", 0.3), ("unsteered", None),
    ]  # fmt: skip
    (row,) = (row for row in result.tables["features"].rows() if row["chosen"])
    assert row["choosing"] == curves[0]["score"]
    assert row["reporting"] == pytest.approx(arms["feature"]["score"])
    assert row["reporting_low"] <= row["reporting"] <= row["reporting_high"]
    texts = result.tables["texts"].rows()
    assert len(texts) == len(ARMS) * 2 * 2  # prompts, draws
    assert {row["draw"] for row in texts} == {0, 1}
    of_feature = [row["score"] for row in texts if row["arm"] == "feature"]
    assert np.mean(of_feature) == pytest.approx(values(result)["score_feature"])
    assert "instruction" in result.details["missing"]


@pytest.mark.slow
def test_arms_that_miss_the_kl_are_not_compared(placed, settings, tmp_path):  # noqa: F811
    missed = SteerEval(**settings | {"kl": [50.0]}).run(placed)
    for row in missed.tables["arms"].rows():
        if row["arm"] in ("wrong sign", "noise", "DiffMean"):
            assert row["reached"] == 0
            assert row["feature_less_arm"] is None
    assert write_pages(missed, tmp_path)
    assert "not the KL that was asked for" in (tmp_path / "index.html").read_text()


def test_a_kl_that_was_not_reached_is_not_chosen():
    scores = [(0.5, True), (0.7, True), (0.7, True), (0.9, False)]
    records = [{"score": [[score, score]], "reached": reached} for score, reached in scores]
    assert steered.best(records) == 1
    assert steered.best([record | {"reached": False} for record in records]) == 3


def test_the_cost_is_a_mean_over_predictions(placed):  # noqa: F811
    """A document of one prediction counts as one prediction, and one alone has no interval."""
    cost = {"predictions": [9.0, 1.0], "kl": [9.0, 5.0], "ce": [0.0, 0.0]}
    one = {"score": [[1.0]], "concept": [[1.0]], "fluency": [[1.0]], "kl": 0.5, "size": 1.0,
           "reached": True}  # fmt: skip
    study = {"report": {name: one for name in OF_FEATURE}, "at": 0, "choose": [one]}
    shared = {"report": {name: one for name in UNPUSHED}, "at": 0, "choose": [one]}
    shared_at = {(name, 0): one for name in ("noise", "DiffMean")}

    def first(cost):
        neutral = {(3, name, 0): cost for name in OF_FEATURE}
        neutral |= {(None, name, 0): cost for name in ("noise", "DiffMean")}
        studied = Studied({3: study}, shared, shared_at, neutral)
        return arm_rows(studied, Bootstrap(num_resamples=20))[0]

    assert first(cost)["neutral_kl"] == pytest.approx(14 / 10)
    assert first(cost)["neutral_kl_low"] < 14 / 10 < first(cost)["neutral_kl_high"]
    alone = first({name: sums[:1] for name, sums in cost.items()})
    assert alone["neutral_kl"] == 1
    assert alone["neutral_kl_low"] is alone["neutral_kl_high"] is None


@pytest.mark.slow
def test_neutral_text_is_read_once_without_a_push(placed, settings, monkeypatch):  # noqa: F811
    """Two features, four arms each, and two arms of all, beside one clean pass."""
    counted = []

    def counting(one, on, edits, **more):
        counted.append(len(edits))
        return on_text(one, on, edits, **more)

    monkeypatch.setattr(steered, "on_text", counting)
    SteerEval(**settings | {"features": [Z_LATENT, 5], "seed": 2}).run(placed)
    assert counted == [2 * 4 + 2]


def test_what_cannot_be_written_is_refused_before_anything_is(
    placed, settings, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(steer, "contrast", None)  # the first thing that is computed
    refuse(placed, "behind the text 'The following", **settings | {"words": "z" * 3000})


def test_latents_that_cannot_be_studied_are_refused(placed):  # noqa: F811
    """Without another live latent there is no control, and a row of zeros gives no direction."""
    for live in ([3], []):
        alone = Contrast(torch.ones(16), torch.ones(placed.sae.d_sae), torch.tensor(live), 1.0)
        with pytest.raises(ConfigError, match="No other latent than 3 fires"):
            arms_of(placed, 3, alone, 2, 0)
    empty = make_sae(placed.source)
    empty.W_dec[4] = 0
    with pytest.raises(ConfigError, match="decoder row of latent 4 is zero"):
        arms_of(placed_on(placed.source, empty), 4, alone._replace(live=torch.arange(9)), 2, 0)


def test_candidates_are_chosen_by_their_effect(placed, settings):  # noqa: F811
    asked = settings | {"features": [], "candidates": 5, "num_features": 2}
    texts, by = about_z(), {}
    for select in ("output", "confidence", "activation"):
        made = SteerEval(**asked | {"select": select})
        chosen = made._choose(
            placed, Concept("z", texts), range(120), made._pen(placed, OPENINGS), []
        )
        key = {"output": "output_score", "activation": "difference"}.get(select, select)
        best = sorted(chosen.every, key=lambda one, key=key: -getattr(one, key))[:2]
        assert chosen.latents == [one.latent for one in best]
        assert len(chosen.every) == 5
        by[select] = frozenset(chosen.latents)
    assert len(set(by.values())) > 1


def test_a_latent_that_never_fires_can_be_pushed(placed, settings):  # noqa: F811
    found = SteerEval(**settings | {"features": [placed.sae.d_sae - 1]}).run(placed)
    (row,) = found.tables["features"].rows()
    assert (row["chosen"], row["difference"]) == (True, 0)
    assert found.tables["arms"].rows()[0]["reached"] == 1


def test_a_concept_without_a_latent_is_refused(placed, settings, monkeypatch):  # noqa: F811
    less = Contrast(torch.ones(32), -torch.ones(placed.sae.d_sae), torch.arange(9), 1.0)
    monkeypatch.setattr(steer, "contrast", lambda *_, **__: less)
    refuse(placed, "No latent is more active on texts about zed", **settings | {"features": []})


def test_the_files_beside_the_page(result, placed, tmp_path):  # noqa: F811
    assert write_pages(result, tmp_path)
    page = (tmp_path / "index.html").read_text()
    for words in ("Score against KL", "wrong sign", "held-out snippets", f"Latent {Z_LATENT}",
                  "1 feature,", "intervals over prompts and texts",
                  "judge of words: balanced accuracy"):  # fmt: skip
        assert words in page
    found = read_features(tmp_path / "features.json", placed)
    assert found.latents == (Z_LATENT,)
    asked = {"features": [], "features_file": str(tmp_path / "features.json")}
    assert SteerEval(**asked)._given(placed) == [Z_LATENT]


@pytest.mark.slow
def test_the_file_begins_with_the_latent_of_the_best_score(placed, settings, tmp_path):  # noqa: F811
    """As every file of latents does: a circuit or a case study takes the first one."""
    asked = {"features": [3, Z_LATENT, 5], "kl": [2.0]}
    found = SteerEval(**settings | asked).run(placed)
    rows = {row["latent"]: row for row in found.tables["features"].rows()}
    made, scores = found.details["features"], {i: row["choosing"] for i, row in rows.items()}
    assert made["latents"][0] == found.details["steering"]["latent"] == Z_LATENT
    assert list(made["weights"]) == sorted(scores.values(), reverse=True)
    assert [scores[latent] for latent in made["latents"]] == list(made["weights"])
    chosen_by = sorted(rows, key=lambda latent: -rows[latent]["difference"])
    assert list(made["latents"]) != chosen_by


def test_the_steering_file_steers_as_lm_evaluation_harness_reads_it(
    result, placed, tmp_path  # noqa: F811
):  # fmt: skip
    """Its reader hooks named modules of the base model and adds coefficient times vector."""
    write_pages(result, tmp_path)
    content = torch.load(tmp_path / "steering.pt", weights_only=True)
    ((hookpoint, one),) = content.items()
    assert set(one) == {
        "steering_vector", "steering_coefficient", "action", "bias", "head_index",
    }  # fmt: skip
    assert (one["action"], one["bias"], one["head_index"]) == ("add", None, None)
    step = one["steering_coefficient"] * one["steering_vector"]
    lm = placed.lm
    tokens = torch.tensor([ids_of(lm.tokenizer, "abcdef")])
    module = dict(lm.model.base_model.named_modules())[hookpoint]

    def hook(module, inputs, output):
        return (output[0] + step, *output[1:]) if isinstance(output, tuple) else output + step

    handle = module.register_forward_hook(hook)
    found = lm.model(tokens).logits
    handle.remove()
    torch.testing.assert_close(found, lm.logits(tokens, {POINT: lambda x: x + step}))
    direction = torch.nn.functional.normalize(step, dim=0)
    torch.testing.assert_close(direction, placed.sae.W_dec[Z_LATENT], atol=1e-5, rtol=1e-5)


def test_without_a_module_to_hook_there_is_no_steering_file(result, tmp_path):
    found = result.details | {"steering": result.details["steering"] | {"hookpoint": None}}
    assert write_pages(replace(result, details=found), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"index.html", "features.json"}


def test_text_from_outside_is_escaped(result, tmp_path):
    for row in ("text", "prompt"):
        values = result.tables["texts"].columns[row].values
        values[:] = ["<script>alert(1)</script>"] * len(values)
    write_pages(result, tmp_path)
    assert "<script>alert(1)" not in (tmp_path / "index.html").read_text()


def refuse(one, match, **given):
    with pytest.raises(ConfigError, match=match):
        SteerEval(**given).run(one)


def test_bad_latents_are_refused(placed, settings, tmp_path):  # noqa: F811
    refuse(placed, "not all among the SAE's 48", **settings | {"features": [48]})
    refuse(placed, "not all among the SAE's 48", **settings | {"features": [-1]})
    refuse(placed, "not all among the SAE's 48", **settings | {"features": [10**30]})
    refuse(placed, "There is no file", **settings | {"features": [], "features_file": "no.json"})
    other = placed_on(placed.source, make_sae(placed.source, seed=5))
    file = tmp_path / "features.json"
    feature_set(other, [1], [1.0]).save(file)
    refuse(placed, "another SAE", **settings | {"features": [], "features_file": str(file)})
    refuse(placed, "both name latents", **settings | {"features_file": str(file)})
    feature_set(placed, [], []).save(file)
    refuse(placed, "holds no latent", **settings | {"features": [], "features_file": str(file)})


def test_bad_settings_are_refused():
    for given in ([0.0], [0.5, 0.5]):
        with pytest.raises(ConfigError, match="different numbers above 0"):
            SteerEval(kl=given)
    with pytest.raises(ConfigError, match="output, confidence, activation"):
        SteerEval(select="best")
    assert SteerEval(kl=[1.0, 0.5]).kl == (0.5, 1.0)


def test_saes_that_cannot_steer_are_refused(placed, settings, monkeypatch):  # noqa: F811
    d = placed.sae.d_in
    config = SAEConfig("test", "relu", d, 4, d_out=d + 1)
    shape = torch.zeros(d, 4), torch.zeros(4), torch.eye(d + 1)[:4], torch.zeros(d + 1)
    refuse(placed_on(placed.source, SAE(*shape, config)), "a transcoder", **settings)
    big = {"lm": {"kind": "random", "name": "big", "family": "phi"}}
    monkeypatch.setitem(placed.sae.metadata, "activations", big)
    refuse(placed, "trained on big, and the LM is tiny-gpt2", **settings)


def test_other_prompts_make_another_result(result, placed, settings, tmp_path):  # noqa: F811
    """`text_file` decides the numbers here, and only adds a page in `dashboard`."""
    from sae.reports.results import _deciding

    assert "text_file" in _deciding("steer", result.settings)
    assert "text_file" not in _deciding("dashboard", {"text_file": "x"})


def test_openings_out_of_a_pipe_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"pipe cannot be read \(.*not a regular file"):
        read_openings(str(tmp_path / "pipe"), 16)


def test_sets_beside_a_file_that_takes_their_place_are_refused(csv_file):  # noqa: F811
    with pytest.raises(ConfigError, match=r"eval\.steer\.sets has no effect"):
        read_concept(("162_agnews_1",), csv_file, "yes")
