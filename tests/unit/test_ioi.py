"""The evaluation `ioi` from a run folder to its page and its set of latents."""

import json
from pathlib import Path

import pytest
import torch
from _features import CTX, POINT, make_sae, placed_on

from sae.activations.sources import LMActivations
from sae.errors import ConfigError
from sae.evals.controls import Control
from sae.evals.ioi import IOIEval
from sae.features.causal import Decomposition, studied
from sae.features.sets import read_features
from sae.metrics.bootstrap import Bootstrap
from sae.reports.pages import write_pages
from sae.tasks.task import ids_of, one_token
from sae.types import Ends, Point

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
def source_of_seed(placed):
    return lambda seed: placed_on(placed.source, make_sae(placed.source, seed=seed))


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


def test_the_numbers_of_a_study_against_slow_loops(placed, pairs):
    """KL, faithfulness, completeness and half of the KL, prompt by prompt, by plain passes."""
    halves = IOIEval(task=pairs)._tasks(placed)
    asked = IOIEval(task=pairs, **SMALL | {"random_sets": 1, "mask_steps": 1})
    whole = Decomposition("SAE", placed, whole=True)
    found = studied(whole, placed, halves, asked, Bootstrap(num_resamples=5))
    lm, sae, prompts = placed.lm, placed.sae, halves[1].prompts

    def run(prompt, latents):
        """KL to the counterfactual, and the difference; None: latents and error are patched."""
        tokens, patch = (torch.tensor([ids]) for ids in (prompt.tokens, prompt.patch))
        x, other = (lm.capture(ids, [POINT])[POINT] for ids in (tokens, patch))
        f, changed = sae.encode(x), sae.encode(x).clone()
        if latents is not None:
            changed[..., latents] = sae.encode(other)[..., latents]
        counts = placed.counted.mask([x], tokens) & placed.counted.mask([other], patch)
        counts[:, 0] = False
        new = other if latents is None else sae.decode(changed) + (x - sae.decode(f))
        new = torch.where(counts[..., None], new, x)
        logits, target = lm.logits(tokens, {POINT: lambda _: new})[0, -1], lm.logits(patch)[0, -1]
        p = target.double().log_softmax(-1)
        kl = float((p.exp() * (p - logits.double().log_softmax(-1))).sum())
        return kl, float(logits[prompt.right] - logits[prompt.wrong])

    def means(latents):
        kls, differences = zip(*(run(prompt, latents) for prompt in prompts), strict=True)
        return sum(kls) / len(kls), sum(differences) / len(differences)

    every = list(range(sae.d_sae))
    order = found.chosen["latents"]  # the first of the order by attribution
    (kl_none, none), (kl_all, _), (_, full) = means([]), means(every), means(None)
    assert found.numbers["kl_empty"] == pytest.approx(kl_none, rel=1e-3)
    assert found.numbers["kl_all"] == pytest.approx(kl_all, rel=1e-3)
    rows = {row["size"]: row for row in found.sets if row["method"] == "attribution"}
    size = max(size for size in rows if size <= len(order))
    kl, part = means(order[:size])
    _, rest = means([i for i in every if i not in order[:size]])
    row = rows[size]
    assert row["kl"] == pytest.approx(kl, rel=1e-3)
    assert row["faithfulness"] == pytest.approx((part - none) / (full - none), rel=1e-2, abs=1e-3)
    assert row["completeness"] == pytest.approx((rest - none) / (full - none), rel=1e-2, abs=1e-3)
    half = found.numbers["half_attribution"]
    if half is None:
        assert min(one["kl"] for one in rows.values()) > kl_none / 2
        assert len(order) == 20
    else:
        assert len(order) == half
        assert means(order)[0] <= kl_none / 2 < means(order[:-1])[0]


@pytest.mark.parametrize("bias", [1.0, -1e6])
def test_an_sae_that_misses_nearly_everything_is_not_faithful(placed, pairs, bias):
    """One latent alone, or none, fires: all that this SAE does is not all that is to be done."""
    poor = make_sae(placed.source)
    poor.b_enc[1:], poor.b_enc[0] = -1e6, bias
    of = Decomposition("SAE", placed_on(placed.source, poor), whole=True)
    asked = IOIEval(task=pairs, **SMALL | {"random_sets": 1})
    found = studied(of, of.placed, asked._tasks(placed), asked, Bootstrap(num_resamples=5))
    assert found.numbers["kl_all"] > 0.9 * found.numbers["kl_empty"]
    assert found.numbers["faithful_95"] is None
    assert all(abs(row["faithfulness"]) < 0.1 for row in found.sets)
    assert len(found.chosen["latents"]) == (bias > 0)


def test_a_crosscoder_is_refused(tiny_source, random_corpus, pairs):
    both = Ends.at(Point("resid", 0), Point("resid", 1))
    source = LMActivations(
        tiny_source("gpt2"), random_corpus(), both, tokens=TOKENS, val_tokens=256,
        test_tokens=2048, ctx=CTX, dtype="float32",
    )  # fmt: skip
    source.prepare()
    with pytest.raises(ConfigError, match="reads and writes one point"):
        IOIEval(task=pairs, **SMALL).run(placed_on(source, make_sae(source)))


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
    assert 0 < every["faithfulness"] < 1  # what the SAE misses is missing
    assert abs(result.metrics["kl_everything"].value) < 1e-5 < every["kl"]
    kl_all = {row["decomposition"]: row["kl_all"]
              for row in result.tables["decompositions"].rows()}  # fmt: skip
    for basis in ("neurons", "pca", "ica"):  # of the same tensors
        assert kl_all[basis] != pytest.approx(kl_all[f"{basis} top-k"], rel=1e-3)
    assert kl_all["pca"] == pytest.approx(kl_all["pca ±"], abs=1e-6)
    assert len(own) - len({(r["method"], r["draw"], r["size"]) for r in own}) == 0
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
    assert found.made_by["halves_the_kl"] == (result.metrics["half_attribution"].value is not None)
    assert result.tokens == {"chosen on": 6, "measured on": 6}
    # again: nothing is patched twice
    monkeypatch.setattr("sae.evals.ioi.studied", lambda *_: pytest.fail("was patched again"))
    again = evaluation.run(placed)
    assert again.tables["sets"].rows() == rows


@pytest.mark.slow
def test_controls_of_one_kind_keep_their_own_names(placed, pairs, monkeypatch, source_of_seed):
    controls = [Control("frozen decoder", source_of_seed(seed)) for seed in (1, 2)]
    monkeypatch.setattr("sae.evals.ioi.fitted_controls", lambda *_: [])
    monkeypatch.setattr("sae.evals.ioi.given_controls", lambda *_: controls)
    result = IOIEval(task=pairs, **SMALL).run(placed)
    rows = result.tables["decompositions"].rows()
    assert [row["decomposition"] for row in rows] == ["SAE", "frozen decoder", "frozen decoder #2"]
    assert rows[1]["kl_all"] != rows[2]["kl_all"]


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
