"""Groups of runs and the page of `interpretability`, with made-up SAEs and rows."""

from pathlib import Path

import pytest
import torch

from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.base import EvalResult
from sae.evals.controls import but_seed
from sae.evals.interpretability import JOINED, Group, InterpretabilityEval, grouped
from sae.explanations.correlated import CORRELATIONS
from sae.explanations.summary import QUALIFICATION, SUBJECTS
from sae.reports.interpretability import outcome, write_interpretability
from sae.reports.page import plain
from sae.tables import Table
from sae.types import Ends, Point

LM = {"name": "tiny", "random_weights": False}


def run(name, folder, *, layer=4, d_sae=8, k=32, seed=0, more=(), made=(), lm=(), settings=None):
    """A placed SAE that says how it was trained."""
    W = torch.eye(4).repeat(d_sae // 4, 1)
    sae = SAE(W.T.contiguous(), torch.zeros(d_sae), W, torch.zeros(4),
              SAEConfig("topk", "topk", 4, d_sae, k=3))  # fmt: skip
    point = Point("resid", layer)
    if settings is None:
        settings = {"sae": {"architecture": "topk", "k": k, **dict(more)}, "seed": seed, "eval": {}}
    sae.metadata.update(
        settings=settings, normalize="spread", tokens=100,
        activations={"kind": "lm", "lm": LM | dict(lm), "corpus": {"name": "news"}, "ctx": 128,
                     "point": str(point), "key": name, "seed": seed, "stores": {},
                     "identities": {"lm": str(lm)}, "dtype": "float32", **dict(made)},
    )  # fmt: skip

    class Source:
        ends = Ends.at(point)

    return PlacedSAE(sae, lambda _: Source(), name, Path(folder) / name)


def names(groups):
    return [(group.place["dictionary"], [one.name for one in group.seeds],
             [one.name for one in group.controls]) for group in groups]  # fmt: skip


def test_seeds_are_pooled_and_nothing_else(tmp_path):
    runs = [
        run("a", tmp_path), run("b", tmp_path, seed=1), run("c", tmp_path, layer=9),
        run("other text", tmp_path, made={"corpus": {"name": "code"}}),
        run("other ctx", tmp_path, made={"ctx": 64}),
        run("other lr", tmp_path, more={"lr": 1}),
    ]  # fmt: skip
    label = "topk k=32 d_sae=8"
    assert names(grouped(runs)) == [
        (label, ["a", "b"], []), (f"{label} #2", ["other text"], []),
        (f"{label} #3", ["other ctx"], []), (f"{label} #4", ["other lr"], []), (label, ["c"], []),
    ]  # fmt: skip


def test_saes_that_do_not_say_how_they_were_trained_are_never_pooled(tmp_path):
    runs = [run("a", tmp_path, settings={}), run("b", tmp_path, settings={})]
    assert but_seed(runs[0].sae) is None
    assert [seeds for _, seeds, _ in names(grouped(runs))] == [["a"], ["b"]]


def test_controls_belong_to_dictionaries_of_their_size_sparsity_and_text(tmp_path):
    frozen, random = {"frozen_decoder": True}, {"random_weights": True}
    runs = [
        run("a", tmp_path), run("wide", tmp_path, d_sae=16), run("k64", tmp_path, k=64),
        run("frozen", tmp_path, more=frozen), run("frozen 64", tmp_path, k=64, more=frozen),
        run("random", tmp_path, lm=random), run("random wide", tmp_path, d_sae=16, lm=random),
        run("frozen of another text", tmp_path, more=frozen, made={"corpus": {"name": "code"}}),
        run("frozen of another LM", tmp_path, more=frozen, lm={"name": "other"}),
    ]  # fmt: skip
    found = {seeds[0]: controls for _, seeds, controls in names(grouped(runs))}
    assert found == {
        "a": ["frozen", "random"], "wide": ["random wide"], "k64": ["frozen 64"],
    }  # fmt: skip


def row(layer, subject, value, size=4.0, kind="topk k=32", **more):
    place = {"point": f"resid.{layer}", "layer": layer, "site": "resid", "dict_ratio": size,
             "dictionary": f"{kind} d_sae={int(size)}"}  # fmt: skip
    return place | {
        "subject": subject, "explainer": "rules", "scorer": "rules", "latents": 50, "seeds": 1,
        "value": value, "low": value - 0.1, "high": value + 0.1, "deranged": 0.05, **more,
    }  # fmt: skip


def result_of(rows, qualified=(), chat=False):
    """A result with these rows of subjects; `rules` qualifies, and what is named besides."""
    places = {(r["point"], r["dictionary"]): r for r in rows}
    groups = [
        {name: r[name] for name in ("point", "layer", "site", "dictionary", "dict_ratio")}
        | {"qualified": {"rules": ["token classes"], "example": [], "detection": [],
                         "surprisal": [], **dict(qualified)},
           "runs": ["a"], "controls": [], "tokens": {"latents": 50}, "seconds": {"all": 1.0},
           "missing": {"random LM": f"python train.py {r['point']}"}, "narrow": None}
        | ({"chat": {}} if chat else {})
        for r in places.values()
    ]  # fmt: skip
    schema = {"point": ("string", ""), "layer": ("int64", ""), "site": ("string", ""),
              "dictionary": ("string", ""), "dict_ratio": ("float64", "")}  # fmt: skip
    tables = {name: Table.of(schema | QUALIFICATION, []) for name in JOINED}
    tables["subjects"] = Table.of(schema | SUBJECTS, rows)
    tables["correlations"] = Table.of(schema | CORRELATIONS, [])
    return EvalResult(
        "interpretability", {}, {"SAEs": 3, "dictionaries": 2, "latents": 50},
        {"groups": groups, "failed": {"resid.9 x": "no such text"}},
        {"bootstrap": {"level": 0.95}}, {}, tables,
    )  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Sections of the page, by heading."""
    found = {}

    def keep(title, subtitle, sections, tiles=()):
        found.update((section.heading, section) for section in sections)
        return b"page"

    monkeypatch.setattr("sae.reports.interpretability.render", keep)

    def draw(result):
        found.clear()
        write_interpretability(result, tmp_path)
        return found

    return draw


def test_curves_go_over_layers_and_sizes(drawn):
    rows = [
        row(layer, subject, value, size, kind)
        for kind in ("topk k=32", "relu")
        for layer, size in ((4, 4.0), (4, 8.0), (9, 4.0))
        for subject, value in (("SAE", 0.4), ("ica top-k", 0.2))
    ]
    page = drawn(result_of(rows))
    (plot,) = page["By layer · resid"].plots
    own = {trace["name"]: trace for trace in plot.traces}
    assert [round(x) for x in own["SAE · relu d_sae=4"]["x"]] == [4, 9]
    assert own["ica top-k · relu d_sae=4"]["y"] == [0.2, 0.2]
    assert own[plain("SAE, another latent's explanation · relu d_sae=4")]["y"] == [0.05, 0.05]
    (plot,) = page["By size of the dictionary · resid.4"].plots
    own = {trace["name"]: trace for trace in plot.traces}
    assert own["SAE · topk k=32"]["x"] == [4.0, 8.0]  # a curve for each kind
    assert own["SAE · relu"]["x"] == [4.0, 8.0]
    assert "By size of the dictionary · resid.9" in page
    assert not page["By size of the dictionary · resid.9"].plots
    assert page["Dictionaries that failed"].texts == {"resid.9 x": "no such text"}
    assert len(page["Controls that were not given"].texts) == 6


def test_the_control_of_necessity_is_not_called_another_latents_rule(drawn):
    qualified = {"necessity": ["token classes"], "sensitivity": ["token classes"]}
    rows = [row(layer, "SAE", 0.4, scorer=name) for layer in (4, 9) for name in qualified]
    plots = drawn(result_of(rows, qualified))["By layer · resid"].plots
    names = {plot.title: [trace["name"] for trace in plot.traces] for plot in plots}
    assert names == {
        "Necessity of the rule": ["SAE", plain("SAE, another token near")],
        "Sensitivity to the rule": ["SAE", plain("SAE, another latent's explanation")],
    }


def test_settings_are_named_as_those_of_this_evaluation(monkeypatch):
    """A message about one dictionary names the settings that the user gave."""

    def refused(*_):
        raise ConfigError("eval.autointerp.lm_tokens=5 is too little.")

    group = Group({"point": "resid.4", "dictionary": "topk"}, [], [])
    monkeypatch.setattr(InterpretabilityEval, "_measured", refused)
    monkeypatch.setattr("sae.evals.interpretability.grouped", lambda _: [group])
    with pytest.raises(ConfigError, match=r"^eval\.interpretability\.lm_tokens=5"):
        InterpretabilityEval().measure([], "test")


def test_an_outcome_is_read_off_the_interval():
    ends = {"sae_less_this_low": 0.1, "sae_less_this_high": 0.2, "coverage": 0.9}
    assert outcome(ends) == "ahead"
    assert outcome(ends | {"sae_less_this_low": -0.1}) == "level"
    assert outcome(ends | {"sae_less_this_low": -0.3, "sae_less_this_high": -0.1}) == "behind"
    assert outcome(ends | {"coverage": 0.01}) == ""
    assert outcome(ends | {"sae_less_this_low": None}) == ""


def test_outcomes_are_counted_and_scorers_that_failed_are_listed(drawn):
    ends = {"sae_less_this": 0.2, "sae_less_this_low": 0.1, "sae_less_this_high": 0.3,
            "coverage": 1.0}  # fmt: skip
    level = ends | {"sae_less_this_low": -0.1}
    rows = [row(4, "SAE", 0.4), row(9, "SAE", 0.4), row(4, "ica", 0.2, **ends),
            row(9, "ica", 0.2, **level), row(4, "pca", 0.2, scorer="example", **ends)]  # fmt: skip
    page = drawn(result_of(rows))
    (table,) = page["Is the SAE ahead?"].tables
    assert [[cell.text for cell in cells] for cells in table.rows] == [
        ["ica", "F1 of the rule", "1", "1", "0"]
    ]  # `example` did not qualify, and is left out
    (table,) = page["Scorers that did not qualify"].tables
    assert len(table.rows) == 2  # it is listed for each; detection and surprisal were not asked
    (table,) = drawn(result_of(rows, chat=True))["Scorers that did not qualify"].tables
    assert len(table.rows) == 4
