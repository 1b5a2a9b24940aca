"""`downstream` on a tiny LM made of three matrices."""

import math
from typing import Any

import pytest
import torch
from _evals import (
    CONTEXTS,
    CTX,
    D_IN,
    POINT,
    VOCAB,
    Store,
    TinyLM,
    coarse_sae,
    identity_sae,
    make,
    values,
)

from sae.evals import DownstreamEval, Estimate, predictions
from sae.interventions import Spliced
from sae.provenance import content_key
from sae.types import Ends


@pytest.fixture(params=[False, True], ids=["without_first", "keep_first"])
def keep_first(request) -> bool:
    return request.param


def test_downstream_equals_a_slow_loop(tmp_path, keep_first):
    """One prediction at a time, from the definitions."""
    context = make(coarse_sae(), tmp_path, keep_first)
    result = DownstreamEval(num_tokens=10 * CTX + 3, batch_contexts=3).run(context)
    lm, store = TinyLM(), context.store("test")
    assert store is not None
    sums: dict[str, list[float]] = {"clean": [], "sae": [], "zero": [], "mean": [], "kl": []}
    for c in range(10):
        x = lm.activation(torch.from_numpy(store.tokens[c : c + 1]).long())[0].double()
        replaced = {
            "clean": x, "sae": context.sae(x.float()).double(), "zero": torch.zeros_like(x),
            "mean": torch.from_numpy(context.rows("test").stats.mean).expand_as(x),
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
    documents = len(set(store.document[:10].flat))
    assert result.tokens == {
        "tokens": 10 * CTX, "predictions": len(sums["clean"]), "documents": documents
    }  # fmt: skip
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
                if function(x) is x:  # the clean pass only looks
                    continue
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


def test_harmless_ablation_gives_null(tmp_path):
    context = make(coarse_sae(), tmp_path)
    context.lm.unembed.zero_()  # pyright: ignore[reportAttributeAccessIssue]
    result = DownstreamEval().run(context)
    assert result.metrics["ce_recovered_zero"] == Estimate(None)
    assert result.metrics["ce_clean"].value == pytest.approx(math.log(VOCAB))


def test_kept_sums_are_those_of_the_same_mean_and_device_type(tmp_path, monkeypatch, caplog):
    lm, identities = TinyLM(), []
    store = Store(lm, tmp_path, keep_first=False)
    monkeypatch.setattr(
        predictions, "content_key", lambda found: identities.append(found) or content_key(found)
    )

    def passes(mean: float) -> int:
        lm.calls = 0
        spliced = Spliced(Ends.at(POINT), coarse_sae(), torch.full((D_IN,), mean))
        size: Any = {"num_tokens": CONTEXTS * CTX, "batch_contexts": CONTEXTS, "quiet": True}
        predictions.measure(lm, store, [spliced], **size)
        return lm.calls

    with caplog.at_level("INFO"):
        assert [passes(0.0), passes(0.0), passes(1.0)] == [4, 2, 4]
    assert not caplog.records
    assert {identity["device"] for identity in identities} == {"cpu"}
