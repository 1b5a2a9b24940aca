"""The evaluation `purity` from run folders to pages, with labels by rule in place of the tagger."""

from dataclasses import replace

import numpy as np
import pytest
from _features import CTX, POINT, make_sae

from sae.activations.sources import LMActivations
from sae.artifacts import save_sae
from sae.errors import ConfigError
from sae.evals import purity as module
from sae.evals.base import EvalResult
from sae.evals.controls import FROZEN, RANDOM_LM
from sae.evals.purity import HEADLINE, LOOKUP, NAMES, PurityEval
from sae.evaluation import evaluate, place
from sae.language import LMSource
from sae.reports.pages import write_pages
from sae.reports.purity import purity_columns, won
from sae.tables import Table, read_table
from sae.tasks import tagged
from sae.tasks.labelled import LabelledTexts
from sae.tasks.tagged import Labels

TOKENS = 4096


def by_rule(tokens, document, vocabulary):
    """Nouns and verbs: tokens of even ids are nouns, of odd ones verbs after an even one."""
    before = np.roll(tokens, 1, axis=1)
    verb = (tokens % 2 == 1) & (before % 2 == 0)
    return {
        "pos": Labels(np.where(verb, 2, np.where(tokens % 2 == 0, 0, 1)), ("NOUN", "PRON", "VERB")),
        "entity": Labels((tokens % 7 == 0).astype(int), ("O", "ORG")),
    }


@pytest.fixture
def no_tagger(monkeypatch):
    monkeypatch.setattr(module, "token_labels", by_rule)
    monkeypatch.setattr(module, "require_tagger", dict)


@pytest.fixture
def lm_folder(tiny_lm, tmp_path):
    folder = tmp_path / "lm"
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def save_run(folder, lm_folder, corpus, *, seed=0, frozen=False, **of_lm):
    """A run folder with an SAE of this LM."""
    lm = LMSource.from_config({"kind": "folder", "name": "x", "path": str(lm_folder)} | of_lm)
    source = LMActivations(
        lm, corpus, POINT, tokens=TOKENS, val_tokens=256, test_tokens=TOKENS, ctx=CTX,
        dtype="float32",
    )  # fmt: skip
    source.prepare()
    sae = make_sae(source, seed=seed)
    sae.metadata.update(
        activations=dict(source.describe()), counted=source.counted.to_json(), normalize="spread",
        settings={
            "sae": {"architecture": "topk", "k": 4, "frozen_decoder": frozen},
            "resample": {"at_tokens": []}, "optimizer": {"name": "adam"}, "seed": seed, "eval": {},
        },
    )  # fmt: skip
    save_sae(folder / "sae", sae)
    return str(folder)


@pytest.mark.slow
def test_from_runs_to_pages(no_tagger, lm_folder, tmp_path, random_corpus):
    corpus = random_corpus()
    runs = [save_run(tmp_path / f"seed{i}", lm_folder, corpus, seed=i) for i in range(3)]
    of_random = save_run(
        tmp_path / "random", lm_folder, corpus, random_weights=True, random_seed=1, seed=5
    )
    lines = [f"{'abcdefgh'[i % 8]} bcd e{i},{'xyz'[i % 3]}" for i in range(90)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *lines]))
    settings = {
        "seeds": runs[1:], "controls": [of_random], "resamples": 50,
        "csv": str(tmp_path / "mine.csv"),
    }  # fmt: skip
    result = evaluate([runs[0]], {"purity": settings})["purity"]
    assert set(NAMES) <= set(result.metrics)
    names = list(dict.fromkeys(row["control"] for row in result.tables["compared"].rows()))
    assert names == [
        "neurons", "neurons top-k", "pca", "pca top-k", "ica", "ica top-k", "random",
        "random top-k", RANDOM_LM, LOOKUP,
    ]  # fmt: skip
    assert list(result.details["missing"]) == [FROZEN]
    assert "sae.frozen_decoder=true" in result.details["missing"][FROZEN]
    assert result.details["seeds"] == 3
    compared = {(row["control"], row["number"]): row for row in result.tables["compared"].rows()}
    lm = compared[RANDOM_LM, HEADLINE]
    assert lm["seeds"] == 3
    assert lm["seed_low"] < lm["difference"] < lm["seed_high"]
    assert lm["difference"] == pytest.approx(lm["sae"] - lm["of_control"])
    assert lm["difference_low"] <= lm["difference"] <= lm["difference_high"]
    assert 0 < lm["coverage"] <= 1
    assert result.metrics[f"{HEADLINE}_over_random_LM"].value == lm["difference"]
    lookup = compared[LOOKUP, "token_purity"]
    assert lookup["latents"] > 0
    assert lookup.get("of_control") in (1.0, None)  # None: no density in common
    # classes of whole texts, beside the same controls but the bases as they are
    of_set = result.tables["sets"].rows()
    assert {row["set"] for row in of_set} == {"mine"}
    assert [*dict.fromkeys(row["control"] for row in of_set)] == [
        name for name in names if name.endswith("top-k") or name in (RANDOM_LM, LOOKUP)
    ]
    assert result.details["sets"][0]["classes"] == {"x": 30, "y": 30, "z": 30}
    assert result.tokens["sets"] == 1
    assert result.metrics["class_purity"].value >= 1 / 3
    # the SAE's numbers by latent, as the dashboard's column reads them
    (file,) = (tmp_path / "seed0" / "evals").glob("purity*.json")
    page = (file.with_suffix("") / "index.html").read_text()
    assert "sae.frozen_decoder=true" in page
    assert RANDOM_LM in page
    assert "By class of whole texts" in page
    dashboard = EvalResult("dashboard", {}, {}, provenance=result.provenance)
    columns = purity_columns(dashboard, file.parent)
    rows = read_table(file.parent / f"{file.stem}.latents.parquet")
    assert len(rows) == result.tokens["latents"] > 20
    assert columns["purity"] == {row["latent"]: row["pos_purity"] for row in rows}
    assert set(columns["part of speech"].values()) <= {"NOUN", "PRON", "VERB"}
    other = replace(dashboard, provenance=result.provenance | {"point": "resid.7"})
    assert purity_columns(other, file.parent) == {}


@pytest.mark.slow
def test_a_set_without_latents_does_not_cost_the_others(
    monkeypatch, no_tagger, lm_folder, tmp_path, random_corpus
):
    sets = [
        LabelledTexts.of(name, [f"{'abcdefgh'[i % 8]} bcd {name}{i}" for i in range(count)],
                         ["xy"[i % 2] for i in range(count)])
        for name, count in (("few", 8), ("many", 60))
    ]  # fmt: skip
    monkeypatch.setattr(module, "probe_sets", lambda names: sets)
    run = place(save_run(tmp_path / "run", lm_folder, random_corpus()), device="cpu")
    run.prepare()
    result = PurityEval(sets=("few", "many"), resamples=20).run(run)
    assert [of["name"] for of in result.details["sets"]] == ["many"]
    assert result.details["sets_left_out"] == ["few"]
    assert result.tokens["sets"] == 1
    assert {"class_purity", HEADLINE} <= set(result.metrics)


@pytest.mark.slow
def test_a_text_without_training_rows_leaves_fits_to_the_own_text(
    no_tagger, lm_folder, tmp_path, random_corpus
):
    run = save_run(tmp_path / "run", lm_folder, random_corpus())
    other = {"kind": "random_words", "name": "other", "seed": 9}
    one = place(run, corpus=other, device="cpu")
    one.prepare()
    result = PurityEval(resamples=20).run(one)
    assert "pca top-k" in result.details["controls"]
    assert result.details["controls"]["pca top-k"]["vectors"] <= TOKENS


@pytest.mark.slow
def test_no_latent_that_fires_often_enough_is_an_error(
    no_tagger, lm_folder, tmp_path, random_corpus
):
    run = save_run(tmp_path / "run", lm_folder, random_corpus())
    one = place(run, device="cpu")
    one.prepare()
    one.sae.b_enc.fill_(-1e6)
    with pytest.raises(ConfigError, match="num_tokens"):
        PurityEval().run(one)


def test_without_the_tagger_the_error_names_the_extra(
    monkeypatch, lm_folder, tmp_path, random_corpus
):
    def missing(name):
        raise tagged.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tagged.metadata, "version", missing)
    one = place(save_run(tmp_path / "run", lm_folder, random_corpus()), device="cpu")
    with pytest.raises(ConfigError, match=r"spacy.*lightning-sae\[labels\]"):
        PurityEval().run(one)


@pytest.mark.parametrize(
    ("number", "low", "high", "verdict"),
    [
        ("pos_purity", 0.1, 0.2, True), ("pos_purity", -0.2, -0.1, False),
        ("pos_entropy", 0.1, 0.2, False), ("pos_entropy", -0.2, -0.1, True),
        ("pos_purity", -0.1, 0.1, None), ("pos_purity", None, None, None),
    ],
)  # fmt: skip
def test_less_entropy_is_purer(number, low, high, verdict):
    assert won({"number": number, "difference_low": low, "difference_high": high}) is verdict


@pytest.mark.slow
def test_the_page_escapes_names_of_runs(tmp_path, no_tagger, lm_folder, random_corpus):
    hostile = "<img src=x onerror=alert(1)>"
    run = save_run(tmp_path / "run", lm_folder, random_corpus())
    one = place(run, device="cpu")
    one.prepare()
    result = PurityEval(resamples=20).run(one)
    compared = result.tables["compared"]
    rows = [row | {"control": hostile, "coverage": 1.0} for row in compared.rows()]
    types = {name: (column.type, column.unit) for name, column in compared.columns.items()}
    tables = {**result.tables, "compared": Table.of(types, rows)}
    write_pages(replace(result, tables=tables), tmp_path / "page")
    assert hostile not in (tmp_path / "page" / "index.html").read_text()
