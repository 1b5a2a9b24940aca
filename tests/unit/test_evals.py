"""`core` and `downstream` on a tiny LM made of three matrices, and the form of their results."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from sae import functional
from sae.activations.store import ActivationStore
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ArtifactError, ConfigError
from sae.evals import (
    EVALS,
    Bootstrap,
    CoreEval,
    DownstreamEval,
    Estimate,
    EvalContext,
    EvalResult,
)
from sae.language.lm import LanguageModel
from sae.types import Point

POINT = Point("resid", 0)
CONTEXTS, CTX, VOCAB, D_IN = 20, 16, 13, 6


class TinyLM(LanguageModel):
    """Embed, add the mean of what came before, unembed; one point in the middle."""

    identity = {"kind": "fake"}
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embed = 3 * torch.randn(VOCAB, D_IN, generator=generator) + 1
        self.unembed = torch.randn(D_IN, VOCAB, generator=generator)
        self.calls = 0

    def activation(self, tokens: Tensor) -> Tensor:
        embedded = self.embed[tokens]
        positions = torch.arange(1, tokens.shape[1] + 1)[:, None]
        return embedded + embedded.cumsum(1) / positions

    def logits(self, tokens: Tensor, replace=None) -> Tensor:
        self.calls += 1
        x = self.activation(tokens)
        for function in (replace or {}).values():
            x = function(x)
        return x @ self.unembed


@dataclass
class Spec:
    keep_first: bool = False


class Store(ActivationStore):
    def __init__(self, lm: TinyLM, folder: Path, keep_first: bool):
        self.spec, self.folder = Spec(keep_first), folder
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, VOCAB, (CONTEXTS, 1), generator=generator)
        while tokens.shape[1] < CTX:  # written by the LM itself, so that ablations cost loss
            p = lm.logits(tokens)[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], dim=1)
        self.tokens = tokens.numpy().astype(np.int32)
        self.document = (np.arange(CONTEXTS * CTX) // 23).reshape(CONTEXTS, CTX).astype(np.int32)


class Rows:
    """The store's activations in chunks of 70 rows, or any activations with no documents."""

    def __init__(self, x: Tensor, document: np.ndarray | None):
        self.x, self.document = x, document
        self.num_rows, self.d_in = x.shape
        self.num_chunks = math.ceil(len(x) / 70)
        self.stats = SimpleNamespace(mean=x.double().mean(0).numpy())

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        return 70 * i, min(70 * (i + 1), self.num_rows)

    def read(self, i: int) -> Tensor:
        return self.x[slice(*self.chunk_bounds(i))]

    def documents(self, i: int) -> np.ndarray | None:
        return None if self.document is None else self.document[slice(*self.chunk_bounds(i))]


def identity_sae() -> SAE:
    """x = relu(x) - relu(-x)."""
    eye = torch.eye(D_IN)
    W_enc, W_dec = torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye])
    config = SAEConfig("l1", "relu", D_IN, 2 * D_IN)
    return SAE(W_enc, torch.zeros(2 * D_IN), W_dec, torch.zeros(D_IN), config)


def constant_sae(value: Tensor) -> SAE:
    sae = identity_sae()
    sae.b_enc.fill_(-1e6)
    sae.b_dec.copy_(value)
    return sae


def coarse_sae() -> SAE:
    sae = identity_sae()
    sae.b_enc.fill_(-0.7)
    return sae


def make(sae: SAE, folder: Path, keep_first: bool = False) -> EvalContext:
    lm = TinyLM()
    store, start = Store(lm, folder, keep_first), 0 if keep_first else 1
    x = lm.activation(torch.from_numpy(store.tokens).long())[:, start:].reshape(-1, D_IN)
    lm.calls = 0
    return EvalContext(sae, POINT, Rows(x, store.document[:, start:].ravel()), store, lambda: lm)


def values(result: EvalResult) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in result.metrics.items()}


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
    context.sae = constant_sae(torch.from_numpy(context.rows.stats.mean))
    downstream, core = values(DownstreamEval().run(context)), values(CoreEval().run(context))
    assert downstream["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert core["fvu"] == pytest.approx(1, rel=1e-9)
    assert core["silent"] == 1
    assert core["l0"] == 0


def test_downstream_equals_a_slow_loop(tmp_path, keep_first):
    """One prediction at a time, from the definitions."""
    context = make(coarse_sae(), tmp_path, keep_first)
    result = DownstreamEval(num_tokens=10 * CTX + 3, batch_contexts=3).run(context)
    lm, store = TinyLM(), context.store
    assert store is not None
    sums: dict[str, list[float]] = {"clean": [], "sae": [], "zero": [], "mean": [], "kl": []}
    for c in range(10):
        x = lm.activation(torch.from_numpy(store.tokens[c : c + 1]).long())[0].double()
        replaced = {
            "clean": x, "sae": context.sae(x.float()).double(), "zero": torch.zeros_like(x),
            "mean": torch.from_numpy(context.rows.stats.mean).expand_as(x),
        }  # fmt: skip
        for t in range(CTX - 1):
            if store.document[c, t] != store.document[c, t + 1] or (t == 0 and not keep_first):
                continue
            log_p = {
                name: torch.log_softmax(value[t] @ lm.unembed.double(), -1)
                for name, value in replaced.items()
            }
            for name, value in log_p.items():
                sums[name].append(-value[store.tokens[c, t + 1]].item())
            kl = log_p["clean"].exp() * (log_p["clean"] - log_p["sae"])
            sums["kl"].append(kl.sum().item())
    mean = {name: sum(terms) / len(terms) for name, terms in sums.items()}
    got = values(result)
    assert result.tokens == {"tokens": 10 * CTX, "predictions": len(sums["clean"])}
    for name in ("clean", "sae", "zero", "mean"):
        assert got[f"ce_{name}"] == pytest.approx(mean[name], rel=1e-5)
    assert got["kl"] == pytest.approx(mean["kl"], rel=1e-4)
    assert got["delta_ce"] == pytest.approx(mean["sae"] - mean["clean"], rel=1e-4)
    for name in ("zero", "mean"):
        recovered = (mean[name] - mean["sae"]) / (mean[name] - mean["clean"])
        assert got[f"ce_recovered_{name}"] == pytest.approx(recovered, rel=1e-4)
    for name in ("clean", "sae"):
        assert got[f"perplexity_{name}"] == pytest.approx(math.exp(mean[name]), rel=1e-5)


def test_first_position_is_spared_under_every_condition(tmp_path):
    """What stands at position 0 reaches the LM, so no condition may change it."""

    class Watching(TinyLM):
        def logits(self, tokens, replace=None):
            x = self.activation(tokens)
            for function in (replace or {}).values():
                assert torch.equal(function(x)[:, 0], x[:, 0])
                assert not torch.equal(function(x)[:, 1:], x[:, 1:])
            return super().logits(tokens, replace)

    context = make(coarse_sae(), tmp_path)
    context.load_lm = Watching
    DownstreamEval().run(context)


def test_second_sae_pays_for_two_passes(tmp_path):
    settings = DownstreamEval(batch_contexts=CONTEXTS)
    first = make(identity_sae(), tmp_path)
    full = values(settings.run(first))
    second = make(coarse_sae(), tmp_path)
    quick = values(settings.run(second))
    assert (first.lm.calls, second.lm.calls) == (4, 2)  # pyright: ignore[reportAttributeAccessIssue]
    assert (quick["ce_zero"], quick["ce_mean"]) == (full["ce_zero"], full["ce_mean"])
    alone = settings.run(make(coarse_sae(), tmp_path / "other"))
    assert values(alone) == quick
    # Other contexts are measured anew, and a damaged file is no reason to stop.
    shorter = make(coarse_sae(), tmp_path)
    DownstreamEval(num_tokens=4 * CTX).run(shorter)
    assert shorter.lm.calls == 4  # pyright: ignore[reportAttributeAccessIssue]
    for file in (tmp_path / "ablations").iterdir():
        file.write_text('{"zero": [1.0]')
    assert values(settings.run(make(coarse_sae(), tmp_path))) == quick


def test_core_equals_the_formulas(tmp_path):
    context = make(coarse_sae(), tmp_path)
    x = context.rows.x  # pyright: ignore[reportAttributeAccessIssue]
    f = context.sae.encode(x)
    result = CoreEval(batch_rows=32).run(context)
    got = values(result)
    for name, value in functional.reconstruction(x, context.sae.decode(f)).items():
        assert got[name] == pytest.approx(value.item(), rel=1e-6)
    frequencies = (f != 0).double().mean(0)
    assert got["l0"] == pytest.approx(frequencies.sum().item())
    assert got["dense"] == (frequencies > 0.1).double().mean().item()
    assert result.tokens == {"vectors": CONTEXTS * (CTX - 1)}
    histogram = result.details["firing_histogram"]
    assert sum(histogram["latents"]) + histogram["silent"] == context.sae.d_sae
    assert values(CoreEval(batch_rows=7).run(context)) == pytest.approx(got, rel=1e-6)


def test_intervals_where_there_are_documents(tmp_path):
    context = make(coarse_sae(), tmp_path)
    result = CoreEval(bootstrap=Bootstrap(num_resamples=200, seed=5)).run(context)
    fvu = result.metrics["fvu"]
    assert fvu.low is not None
    assert fvu.high is not None
    assert fvu.value is not None
    assert fvu.low < fvu.value < fvu.high
    assert result.metrics["silent"].low is None
    assert result.details["resampled_units"] == context.store.num_documents
    downstream = DownstreamEval().run(context)
    assert downstream.metrics["ce_recovered_zero"].low is not None
    context.rows.document = None  # pyright: ignore[reportAttributeAccessIssue]
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
    assert content["settings"]["bootstrap"]["num_resamples"] == 1000
    assert content["provenance"]["point"] == "resid.0"
    assert content["provenance"]["store"] == {"keep_first": False}
    for broken in ({}, {"eval": "core"}, content | {"more": 1}):
        with pytest.raises(ArtifactError, match="no evaluation result"):
            EvalResult.from_json(broken)


def test_harmless_ablation_gives_null(tmp_path):
    context = make(coarse_sae(), tmp_path)
    context.lm.unembed.zero_()  # pyright: ignore[reportAttributeAccessIssue]
    result = DownstreamEval().run(context)
    assert result.metrics["ce_recovered_zero"] == Estimate(None)
    assert result.metrics["ce_clean"].value == pytest.approx(math.log(VOCAB))


def test_what_is_missing_is_named(tmp_path):
    context = make(coarse_sae(), tmp_path)
    with pytest.raises(ConfigError, match="width 6, the activations at resid.0 have width 4"):
        EvalContext(coarse_sae(), POINT, Rows(torch.zeros(3, 4), None))
    without_lm = EvalContext(context.sae, POINT, context.rows, context.store)
    with pytest.raises(ConfigError, match="needs an LM"):
        DownstreamEval().run(without_lm)
    with pytest.raises(ConfigError, match="folder of activations"):
        DownstreamEval().run(EvalContext(context.sae, POINT, context.rows))
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
    assert {word: cls.name for word, cls in EVALS.items()} == {"core": "core", "downstream": "downstream"}  # fmt: skip # noqa: E501
