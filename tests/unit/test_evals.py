"""`core` and `downstream` in limiting cases, and the form of their results."""

import json

import pytest
import torch
from _evals import (
    CONTEXTS,
    CTX,
    D_IN,
    POINT,
    Rows,
    coarse_sae,
    constant_sae,
    identity_sae,
    make,
    place,
    values,
)

from sae import functional
from sae.errors import ArtifactError, ConfigError
from sae.evals import (
    EVALS,
    Bootstrap,
    CoreEval,
    DownstreamEval,
    Estimate,
    EvalResult,
)


@pytest.fixture(params=[False, True], ids=["without_first", "keep_first"])
def keep_first(request) -> bool:
    return request.param


def test_identity_sae_costs_nothing(tmp_path, keep_first):
    context = make(identity_sae(), tmp_path, keep_first)
    downstream = values(DownstreamEval().run(context))
    assert downstream["delta_ce"] == 0
    assert downstream["kl"] == 0
    assert downstream["ce_recovered_zero"] == 1
    assert downstream["ce_recovered_mean"] == 1
    assert downstream["top1_agreement"] == 1
    core = values(CoreEval().run(context))
    assert core["fvu"] == 0
    assert core["l0"] == D_IN


def test_zero_sae_recovers_nothing(tmp_path, keep_first):
    result = values(
        DownstreamEval().run(make(constant_sae(torch.zeros(D_IN)), tmp_path, keep_first))
    )
    assert result["ce_sae"] == result["ce_zero"]
    assert result["ce_recovered_zero"] == 0


def test_mean_sae_is_the_mean_ablation_and_has_fvu_one(tmp_path, keep_first):
    context = make(coarse_sae(), tmp_path, keep_first)
    context.sae = constant_sae(torch.from_numpy(context.rows("test").stats.mean))
    downstream, core = values(DownstreamEval().run(context)), values(CoreEval().run(context))
    assert downstream["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert core["fvu"] == pytest.approx(1, rel=1e-9)
    assert core["silent"] == 1
    assert core["l0"] == 0


def test_core_equals_the_formulas(tmp_path):
    context = make(coarse_sae(), tmp_path)
    x = context.rows("test").x  # pyright: ignore[reportAttributeAccessIssue]
    f = context.sae.encode(x)
    result = CoreEval(batch_rows=32).run(context)
    got = values(result)
    for name, value in functional.reconstruction(x, context.sae.decode(f)).items():
        assert got[name] == pytest.approx(value.item(), rel=1e-6)
    frequencies = (f != 0).double().mean(0)
    assert got["l0"] == pytest.approx(frequencies.sum().item())
    assert got["dense"] == (frequencies > 0.1).double().mean().item()
    documents = len(set(context.store("test").document[:, 1:].flat))  # pyright: ignore
    assert result.tokens == {"vectors": CONTEXTS * (CTX - 1), "documents": documents}
    histogram = result.details["firing_histogram"]
    assert sum(histogram["latents"]) + histogram["silent"] == context.sae.d_sae
    again = values(CoreEval(batch_rows=7).run(context))
    assert [name for name in got if got[name] is None] == ["rare"]  # 300 vectors cannot tell
    assert again.pop("rare") is got.pop("rare")
    assert again == pytest.approx(got, rel=1e-6)


def test_intervals_where_there_are_documents(tmp_path):
    context = make(coarse_sae(), tmp_path)
    result = CoreEval(bootstrap=Bootstrap(num_resamples=200, seed=5)).run(context)
    fvu = result.metrics["fvu"]
    assert fvu.low is not None
    assert fvu.high is not None
    assert fvu.value is not None
    assert fvu.low < fvu.value < fvu.high
    assert result.metrics["silent"].low is None
    assert result.details["resampled_units"] == context.store("test").num_documents
    for name in ("l1", "fvu_per_dim"):
        estimate = result.metrics[name]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low < estimate.value < estimate.high
    downstream = DownstreamEval().run(context)
    assert downstream.provenance["dtypes"] == {"sae": "float32", "lm": "float32"}
    left_out = downstream.details["left_out"]
    assert left_out["position_0"] == left_out["context_end"] == CONTEXTS
    assert left_out["document_border"] > 0
    assert sum(left_out.values()) + downstream.tokens["predictions"] == CONTEXTS * CTX
    assert downstream.metrics["ce_recovered_zero"].low is not None
    context.rows("test").document = None  # pyright: ignore[reportAttributeAccessIssue]
    assert CoreEval().run(context).metrics["fvu"].low is None


def test_results_are_strict_json_and_come_back(tmp_path):
    context = make(constant_sae(torch.zeros(D_IN)), tmp_path)
    result = CoreEval().run(context)
    assert result.metrics["relative_bias"] == Estimate(None)  # 0 / 0
    result.save(tmp_path / "evals" / "core.json")
    content = json.loads(
        (tmp_path / "evals" / "core.json").read_text(),
        parse_constant=lambda word: pytest.fail(word),
    )
    assert content["metrics"]["relative_bias"]["value"] is None
    assert EvalResult.from_json(content) == result
    assert content["provenance"]["dtypes"] == {"sae": "float32", "lm": None}
    assert content["details"]["left_out"] == {"position_0": CONTEXTS, "not_counted": 0}
    assert content["settings"]["bootstrap"]["num_resamples"] == 1000
    assert content["provenance"]["point"] == "resid.0"
    assert content["provenance"]["store"] == {"keep_first": False}
    for broken in ({}, {"eval": "core"}, content | {"more": 1}):
        with pytest.raises(ArtifactError, match="not the result of an evaluation"):
            EvalResult.from_json(broken)


def test_what_is_missing_is_named(tmp_path):
    context = make(coarse_sae(), tmp_path)
    with pytest.raises(ConfigError, match="width 6; the test activations at resid.0 have width 4"):
        CoreEval().run(place(coarse_sae(), POINT, Rows(torch.zeros(3, 4), None)))
    without_lm = place(context.sae, POINT, context.rows("test"), context.store("test"))
    with pytest.raises(ConfigError, match="needs an LM"):
        DownstreamEval().run(without_lm)
    with pytest.raises(ConfigError, match="folder of activations"):
        DownstreamEval().run(place(context.sae, POINT, context.rows("test")))
    with pytest.raises(ConfigError, match="less than one context of 16 tokens"):
        DownstreamEval(num_tokens=15).run(context)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CoreEval(batch_rows=0),
        lambda: DownstreamEval(num_tokens=0),
        lambda: DownstreamEval(batch_contexts=0),
        lambda: Bootstrap(num_resamples=0),
        lambda: Bootstrap(level=95.0),
    ],
)
def test_settings_out_of_range(build):
    with pytest.raises(ConfigError):
        build()


def test_registry_words():
    assert {"core", "downstream", "recovery", "exact_codes"} <= set(EVALS)
    assert all(word == cls.name for word, cls in EVALS.items())
