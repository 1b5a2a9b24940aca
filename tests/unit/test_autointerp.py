"""The evaluation `autointerp` from run folders to pages, with an encoder that counts words."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from _chat import KEY, serving
from _explanations import CountedWords
from _features import CTX, POINT, make_sae

from sae.activations.sources import LMActivations
from sae.artifacts import save_sae
from sae.errors import ConfigError
from sae.evals import explaining as module
from sae.evals.autointerp import AutointerpEval
from sae.evals.base import EvalResult
from sae.evals.controls import FROZEN, RANDOM_LM
from sae.evals.explaining import LOOKUP
from sae.evals.interpretability import InterpretabilityEval
from sae.evaluation import evaluate, evaluate_all, place
from sae.explanations import pushed, rule_texts, truth
from sae.explanations.files import read_explanations, write_explanations
from sae.explanations.truth import TOPICS
from sae.features.sets import feature_set
from sae.reports.explained import explanation_columns, explanations_of
from sae.tables import read_table
from sae.tasks.labelled import LabelledTexts

TOKENS = 4096
SETTINGS = {"num_latents": 12, "pool": 400, "resamples": 20}


def texts_of(names):
    """Topics of one word each among random ones."""
    random = np.random.default_rng(0)
    for name in names:
        labels = np.arange(60) % 2
        texts = [" ".join(f"word{i}" for i in random.integers(0, 40, 60)) for _ in labels]
        yield LabelledTexts(name, texts, labels, ("0", "1"))


@pytest.fixture
def encoder(monkeypatch):
    made = CountedWords()
    monkeypatch.setattr(module, "load_encoder", lambda device: made)
    monkeypatch.setattr(truth, "probe_sets", lambda names: list(texts_of(names)))

    def untagged():
        raise ConfigError("no tagger")

    monkeypatch.setattr(rule_texts, "require_tagger", untagged)
    return made


@pytest.fixture
def run(tmp_path, tiny_source, random_corpus):
    source = LMActivations(
        tiny_source("gpt2"), random_corpus(), POINT, tokens=TOKENS, val_tokens=256,
        test_tokens=TOKENS, ctx=CTX, dtype="float32",
    )  # fmt: skip
    source.prepare()
    sae = make_sae(source)
    sae.metadata.update(
        activations=dict(source.describe()), counted=source.counted.to_json(), normalize="spread",
        settings={"sae": {"architecture": "topk", "k": 4}, "seed": 0, "eval": {}},
    )  # fmt: skip
    folder = tmp_path / "run"
    save_sae(folder / "sae", sae)
    return folder


@pytest.mark.slow
def test_from_a_run_to_pages_and_the_dashboards_column(encoder, run):
    own = run.parent / "mine.csv"
    write_explanations(own, {str(i): f"latent {i}" for i in range(48)})
    settings = SETTINGS | {
        "explanations": str(own), "scorers": ["surprisal"], "lm_tokens": 1_500_000,
    }  # fmt: skip
    result = evaluate([str(run)], {"autointerp": settings})["autointerp"]
    names = list(result.details["states"])
    assert names == [
        "SAE", "neurons", "neurons top-k", "pca", "pca top-k", "ica", "ica top-k", "random",
        "random top-k", LOOKUP,
    ]  # fmt: skip
    assert list(result.details["missing"]) == [FROZEN, RANDOM_LM]
    rows = [row for row in result.tables["latents"].rows() if row["subject"] == "SAE"]
    assert {row["explainer"] for row in rows} == {"rules", "output", "tokens", "given"}
    explained = [row for row in rows if row["state"] == "explained"]
    assert len(explained) > 12
    for row in explained:
        for name in ("embedding", "embedding_near", "intruder"):
            assert row[name] is None or 0 <= row[name] <= 1
        assert (row["rules"] is not None) == (row["explainer"] in ("rules", "tokens"))
    subjects = result.tables["subjects"].rows()
    lookup = next(row for row in subjects if (row["subject"], row["explainer"], row["scorer"])
                  == (LOOKUP, "rules", "rules"))  # fmt: skip
    assert lookup["value"] == pytest.approx(1.0)  # a rule says what a token is
    assert lookup["low"] <= lookup["value"] <= lookup["high"]
    assert {row["kind"] for row in result.tables["qualification"].rows()} >= {"topics"}
    qualified = {name for name, kinds in result.details["qualified"].items() if kinds}
    assert {name.partition("_over_")[0] for name in result.metrics} <= qualified
    (file,) = (run / "evals").glob("autointerp*.json")
    page = (file.with_suffix("") / "index.html").read_text()
    narrow = result.details["narrow"]
    assert 0 < narrow["tokens"] < narrow["budget"]
    assert any(row["surprisal"] is not None for row in explained)
    assert "a budget of 1,500,000" in page
    assert "sae.frozen_decoder=true" in page
    back = read_explanations(file.with_suffix("") / "explanations-given.csv")
    assert set(back.values()) == {f"latent {i}" for i in map(int, back)}
    dashboard = EvalResult("dashboard", {}, {}, provenance=result.provenance)
    column = explanation_columns(dashboard, file.parent)["explanation"]
    assert column == {r["latent"]: r["explanation"] for r in rows if r["explainer"] == "given"}
    exported = explanations_of(dashboard, file.parent, 48)
    words = {(str(i), one.method): one.text for i, known in exported.items() for one in known}
    assert words == {(r["latent"], r["explainer"]): r["explanation"] for r in rows
                     if r["explanation"]}  # fmt: skip
    assert {one.model for known in exported.values() for one in known} == {"none"}
    other = replace(dashboard, provenance=result.provenance | {"point": "resid.7"})
    assert explanation_columns(other, file.parent) == {}
    assert explanations_of(other, file.parent, 48) == {}
    # what was embedded is found again
    seen = encoder.texts
    again = evaluate([str(run)], {"autointerp": settings})["autointerp"]
    assert encoder.texts == seen
    assert again.tables["latents"].rows() == result.tables["latents"].rows()


@pytest.fixture
def one(run):
    found = place(str(run), device="cpu")
    found.prepare()
    return found


def test_latents_are_named_or_read_from_a_file(one, tmp_path):
    assert AutointerpEval(features=[3, "7", "03"])._features(one, None) == ("3", "7")
    file = tmp_path / "features.json"
    feature_set(one, [5, 2], [1.0, 0.5]).save(file)
    assert AutointerpEval(features=str(file))._features(one, None) == ("5", "2")
    feature_set(one, [], []).save(file)
    with pytest.raises(ConfigError, match="holds no latent"):
        AutointerpEval(features=str(file))._features(one, None)


def test_explanations_of_the_users_choose_the_latents(one):
    given = {"5": "five", "2": "two"}
    assert AutointerpEval(explanations="mine.csv")._features(one, given) == ("5", "2")
    both = AutointerpEval(explanations="mine.csv", features=[2, 9])
    assert both._features(one, given) == ("2", "9")
    with pytest.raises(ConfigError, match=r"explanations=.*mine.csv: there is no latent 9999"):
        AutointerpEval(explanations="mine.csv")._features(one, given | {"9999": "none"})


@pytest.mark.parametrize("latent", [48, "-3", "x", "²", "１"])
def test_latents_that_are_not_there_are_refused(encoder, one, latent):
    with pytest.raises(ConfigError, match=r"eval.autointerp.features: there is no latent"):
        AutointerpEval(features=[latent], **SETTINGS).run(one)


def test_an_unknown_explainer_is_refused(encoder, one):
    with pytest.raises(ConfigError, match=r"explainers.*chat"):
        AutointerpEval(explainers=["chat"]).run(one)


def test_a_text_that_nothing_was_trained_on_is_refused(encoder, run):
    other = {"kind": "random_words", "name": "other", "seed": 9}
    one = place(str(run), corpus=other, device="cpu")
    one.prepare()
    with pytest.raises(ConfigError, match="Leave corpus= out"):
        AutointerpEval(**SETTINGS).run(one)


def test_topics_are_of_classes_that_exist():
    assert {label for _, label in TOPICS} == {0, 1}
    assert len(set(TOPICS.values())) == len(TOPICS)


@pytest.mark.slow
def test_rules_are_put_to_the_test_and_latents_pushed(encoder, run, monkeypatch):
    monkeypatch.setattr(pushed, "read_openings", lambda _, most: list("abcdefgh")[:most])
    monkeypatch.setattr(pushed, "NEW_TOKENS", 4)
    monkeypatch.setattr(pushed, "TARGET", 0.05)
    settings = SETTINGS | {
        "explainers": ["rules", "tested"], "scorers": ["counterfactual", "intervention"],
        "lm_tokens": 1_200_000,
    }  # fmt: skip
    result = evaluate([str(run)], {"autointerp": settings})["autointerp"]
    tested = {(r["subject"], r["explainer"]): r for r in result.tables["falsified"].rows()}
    assert {name for name, _ in tested} <= {
        "SAE", "neurons top-k", "pca top-k", "ica top-k", "random top-k", LOOKUP
    }  # fmt: skip
    assert ("SAE", "rules") in tested
    lookup = tested[LOOKUP, "rules"]
    assert lookup["necessity"] == lookup["sensitivity"] == 1
    assert lookup["falsified"] == 0
    states = result.details["states"]
    assert "tested" in states["SAE"]
    assert "tested" not in states[LOOKUP]  # of the SAE alone
    assert result.details["round"]["latents"] > 5
    assert result.details["narrow"]["tested"] == SETTINGS["num_latents"]
    assert {row["subject"] for row in result.tables["pushed"].rows()} == {
        "SAE", "neurons", "neurons top-k", "pca", "pca top-k", "ica", "ica top-k", "random",
        "random top-k",
    }  # fmt: skip  # the lookup has no direction
    kinds = {(r["kind"], r["scorer"]) for r in result.tables["qualification"].rows()}
    assert ("topics", "necessity") not in kinds
    (file,) = (run / "evals").glob("autointerp*.json")
    page = (file.with_suffix("") / "index.html").read_text()
    for words in ("Tests on changed text", "What the tests changed", "Pushed latents",
                  "the explainer tested, of the SAE"):  # fmt: skip
        assert words in page
    unknown = settings | {"lm_dictionaries": ["neuron"]}
    with pytest.raises(ConfigError, match=r"lm_dictionaries=neuron.*neurons"):
        evaluate([str(run)], {"autointerp": unknown})
    again = evaluate([str(run)], {"autointerp": settings})["autointerp"]
    assert again.tables["falsified"].rows() == result.tables["falsified"].rows()
    assert again.tables["pushed"].rows() == result.tables["pushed"].rows()


def chatting(messages):
    last = messages[-1]["content"]
    if "Description:" in last:
        return str([1] * len(re.findall(r"^Excerpt \d+:", last, re.MULTILINE)))
    if last.startswith("Excerpt"):
        return "[EXPLANATION]: <script>alert(1)</script> words\x1b[2J"
    return "vowels"


@pytest.mark.slow
def test_from_a_run_to_a_page_and_the_key_is_nowhere(encoder, run, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("DEBUG")
    settings = SETTINGS | {"explainers": ["contexts", "token_pairs"]}
    with serving(chatting) as server:
        chat = {"base_url": server.url, "model": "m", "key_env": "MY_KEY", "excerpts": 5}
        short = evaluate([str(run)], {"autointerp": settings | {"chat": chat | {"budget": 0}}})
        assert server.seen == []
        assert short["autointerp"].details["states"]["SAE"]["contexts"] == {"unasked": 12}
        result = evaluate([str(run)], {"autointerp": settings | {"chat": chat}})["autointerp"]
        sent = len(server.seen)
        again = evaluate([str(run)], {"autointerp": settings | {"chat": chat}})["autointerp"]
    assert len(server.seen) == sent
    assert max(server.paid.values()) == 1
    assert result.details["chat"]["asked"] == sent
    assert again.details["chat"]["asked"] == 0
    assert again.tables["latents"].rows() == result.tables["latents"].rows()
    assert "requests, about" in caplog.text
    assert result.details["states"]["SAE"]["contexts"] == {"explained": 12}
    assert set(result.details["states"]["neurons"]) == {"tokens"}  # the LM was asked of the SAE
    means = [row for row in result.tables["subjects"].rows() if row["scorer"] == "detection"]
    assert {row["explainer"] for row in means} == {"contexts", "token_pairs", "tokens"}
    assert all(row["value"] == row["always"] == 0.5 for row in means)  # it always says yes
    assert not {"detection", "fuzzing"} & {name.partition("_")[0] for name in result.metrics}
    folder = next(path for path in (run / "evals").iterdir() if path.is_dir())
    page = (folder / "index.html").read_text()
    assert "Judged by a chat LM" in page
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
    written = [path for path in run.parent.rglob("*") if path.is_file()]  # the cache, too
    assert len(written) > 500
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in caplog.text + "".join(capfd.readouterr())


def test_an_explainer_that_asks_needs_an_lm(encoder, one):
    with pytest.raises(ConfigError, match=r"contexts asks a chat LM.*chat\.base_url"):
        AutointerpEval(explainers=["contexts"]).run(one)


@pytest.mark.slow
def test_an_unknown_dictionary_and_a_missing_key_are_refused(encoder, one, monkeypatch):
    chat = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "NOWHERE"}
    with pytest.raises(ConfigError, match="NOWHERE holds no key"):
        AutointerpEval(chat=chat).run(one)
    chat |= {"key_env": None, "dictionaries": ["neuron top-k"]}
    with pytest.raises(ConfigError, match="Did you mean.*neurons top-k"):
        AutointerpEval(chat=chat, **SETTINGS).run(one)


def saved(one, folder, **changes):
    """Another run at the same place, made otherwise."""
    random = np.random.default_rng(len(str(folder)))
    sae = make_sae(one.source, seed=int(random.integers(1000)))
    settings = {"sae": {"architecture": "topk", "k": 4}, "seed": 0, "eval": {}} | changes
    sae.metadata.update(
        activations=dict(one.source.describe()), counted=one.counted.to_json(), normalize="spread",
        settings=settings,
    )  # fmt: skip
    save_sae(folder / "sae", sae)
    return str(folder)


@pytest.mark.slow
def test_many_runs_are_grouped_by_place_and_seed_and_drawn(encoder, run, one, tmp_path):
    second = saved(one, tmp_path / "second", seed=1)
    larger = saved(one, tmp_path / "larger one", sae={"architecture": "topk", "k": 3})
    frozen = saved(one, tmp_path / "frozen", sae={
        "architecture": "topk", "k": 4, "frozen_decoder": True,
    })  # fmt: skip
    settings = SETTINGS | {"explainers": ["rules"]}
    runs = [str(run), second, larger, frozen]
    folder = evaluate_all("interpretability", runs, settings, folder=tmp_path / "page")
    content = json.loads((folder / "interpretability.json").read_text())
    first, other = content["details"]["groups"]
    assert (first["runs"], first["controls"]) == (["larger one"], [])  # k=3 before k=4
    assert (other["runs"], other["controls"]) == (["run", "second"], ["frozen"])
    assert list(first["missing"]) == [FROZEN, RANDOM_LM]  # the frozen one has another k
    assert list(other["missing"]) == [RANDOM_LM]
    rows = read_table(folder / "interpretability.subjects.parquet")
    pooled = [
        row
        for row in rows
        if row["dictionary"] == other["dictionary"]
        and (row["subject"], row["explainer"], row["scorer"]) == ("SAE", "rules", "rules")
    ]
    assert pooled[0]["seeds"] == 2
    alone = evaluate([str(run)], {"autointerp": settings | {
        "seeds": [second], "controls": [frozen],
    }})["autointerp"]  # fmt: skip
    same = [
        row
        for row in alone.tables["subjects"].rows()
        if (row["subject"], row["explainer"], row["scorer"]) == ("SAE", "rules", "rules")
    ]
    assert {name: pooled[0][name] for name in same[0]} == same[0]
    page = (folder / "index.html").read_text()
    assert "Is the SAE ahead?" in page
    assert "3 SAEs, which are 2 dictionaries" in page


def test_settings_for_one_sae_and_runs_without_one_are_refused(encoder, one, tmp_path):
    with pytest.raises(ConfigError, match=r"interpretability\.features is not known"):
        InterpretabilityEval(features=[3])
    frozen = saved(one, tmp_path / "frozen", sae={
        "architecture": "topk", "k": 4, "frozen_decoder": True,
    })  # fmt: skip
    with pytest.raises(ConfigError, match="neither a baseline nor a control: frozen"):
        InterpretabilityEval(**SETTINGS).run([place(frozen, name="frozen", device="cpu")])
