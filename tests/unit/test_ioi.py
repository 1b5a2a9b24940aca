"""The evaluation `ioi` from a run folder to its page and its set of latents."""

import json
from pathlib import Path

import pytest
import torch
from _features import CTX, POINT, make_sae, placed_on

from sae.activations.sources import LMActivations
from sae.checksums import seal
from sae.errors import ArtifactError, ConfigError
from sae.evals.ioi import IOIEval
from sae.features.sets import FeatureSet, feature_set, read_features, sae_key
from sae.provenance import write_json
from sae.reports.pages import write_pages
from sae.tasks.task import ids_of, one_token

TOKENS = 4096


@pytest.fixture
def placed(tiny_source, random_corpus):
    source = LMActivations(
        tiny_source("gpt2"), random_corpus(), POINT, tokens=TOKENS, val_tokens=256,
        test_tokens=2048, ctx=CTX, dtype="float32",
    )  # fmt: skip
    source.prepare()
    return placed_on(source, make_sae(source))


@pytest.fixture
def pairs(tmp_path, placed):
    """Prompts whose answers the tiny LM prefers, as it happens."""
    lm, lines = placed.lm, []
    letters = [chr(97 + i) for i in range(26)]
    ids = [one_token(lm.tokenizer, letter) for letter in letters]
    for i in range(12):
        clean, patch = f"ab{chr(97 + i)}de", f"xb{chr(97 + i)}de"
        logits = [
            lm.logits(torch.tensor([ids_of(lm.tokenizer, text)]))[0, -1, ids]
            for text in (clean, patch)
        ]
        right, wrong = (letters[int(one.argmax())] for one in logits)
        if right == wrong:
            wrong = letters[int(logits[0].argmin())]
        lines.append(
            {"clean_prefix": clean, "patch_prefix": patch,
             "clean_answer": right, "patch_answer": wrong}
        )  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return str(file)


SMALL = {"steps": 3, "points": 4, "random_sets": 2, "mask_steps": 5, "exact": 12, "resamples": 20}


@pytest.mark.slow
def test_from_prompts_to_the_page(placed, pairs, tmp_path, monkeypatch):
    evaluation = IOIEval(task=pairs, search="greedy", candidates=6, orders=1, thresholds=2, **SMALL)
    result = evaluation.run(placed)
    rows = result.tables["sets"].rows()
    names = [row["decomposition"] for row in result.tables["decompositions"].rows()]
    assert names[0] == "SAE"
    assert {"neurons", "pca", "pca ±", "ica top-k", "random top-k"} <= set(names)
    own = [row for row in rows if row["decomposition"] == "SAE"]
    assert {row["method"] for row in own} == {
        "none", "all latents", "attribution", "integrated gradients", "most active", "random",
        "learned mask", "greedy",
    }  # fmt: skip
    none, every = (next(r for r in own if r["method"] == m) for m in ("none", "all latents"))
    assert none["kl"] == pytest.approx(result.metrics["kl_empty"].value)
    assert none["faithfulness"] == 0.0
    assert none["edit"] == 0.0
    assert every["kl"] == pytest.approx(result.metrics["kl_all"].value)
    assert every["faithfulness"] == pytest.approx(1.0)
    assert abs(result.metrics["kl_everything"].value) < 1e-5 < every["kl"]
    last = [r for r in own if r["method"] == "attribution"][-1]
    assert last["kl_low"] <= last["kl"] <= last["kl_high"]
    summed, change = (result.metrics[n].value for n in ("sum_of_effects", "change_of_difference"))
    assert summed == pytest.approx(change, rel=0.1)  # three steps alone
    exact = [row["exact"] for row in result.tables["latents"].rows()]
    assert sum(value is not None for value in exact) == 12
    folder = tmp_path / "evals" / "ioi"
    (folder.parent / "dashboard").mkdir(parents=True)
    (folder.parent / "dashboard" / "index.html").write_text("")
    assert write_pages(result, folder)
    page = (folder / "index.html").read_text()
    found = read_features(folder / "features.json", placed)
    assert f"../dashboard/index.html#/latent/{found.latents[0]}" in page
    assert found.made_by["eval"] == "ioi"
    # again: nothing is patched twice
    monkeypatch.setattr("sae.evals.ioi.studied", lambda *_: pytest.fail("was patched again"))
    again = evaluation.run(placed)
    assert again.tables["sets"].rows() == rows


def test_too_few_prompts_and_a_task_that_the_lm_fails(placed, pairs):
    file = Path(pairs)
    lines = file.read_text().splitlines()
    swapped = [json.loads(line) for line in lines]
    for one in swapped:
        one["clean_answer"], one["patch_answer"] = one["patch_answer"], one["clean_answer"]
    file.write_text("\n".join(json.dumps(one) for one in swapped))
    with pytest.raises(ConfigError, match="gives the right answer in .* at least 70% is asked"):
        IOIEval(task=pairs, **SMALL).run(placed)
    file.write_text("\n".join(lines[:3]))
    with pytest.raises(ConfigError, match="has 3 prompts; 4 or more are needed"):
        IOIEval(task=pairs, **SMALL).run(placed)


def test_a_set_of_latents_as_a_file(placed, tmp_path):
    path = tmp_path / "features.json"
    one = feature_set(placed, [5, 3], [0.5, -0.25], eval="test")
    one.save(path)
    assert read_features(path, placed) == one
    assert one.sae == sae_key(placed)
    FeatureSet((1,), (1.0,), "other", "resid.1").save(path)
    with pytest.raises(ConfigError, match=r"holds latents of another SAE \(at resid.1\)"):
        read_features(path, placed)
    assert read_features(path).latents == (1,)
    with pytest.raises(ConfigError, match="There is no file"):
        read_features(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "other"}, "is no lightning-sae.features of version 1"),
        ({"latents": [-1]}, "latents must be numbers from 0, with a weight each"),
        ({"latents": [1, 2]}, "with a weight each"),
        ({"weights": None}, "with a weight each"),
    ],
)
def test_a_file_that_holds_no_set(tmp_path, changes, match):
    content = FeatureSet((1,), (1.0,), "x", "resid.1").content()
    write_json(tmp_path / "x.json", seal(content | changes))
    with pytest.raises(ArtifactError, match=match):
        read_features(tmp_path / "x.json")
