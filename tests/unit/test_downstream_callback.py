"""Downstream perplexity in training, against a slow loop and the evaluation."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from _evals import place
from _fitted import Module, Recorder, fit

from callbacks.downstream import DownstreamPerplexity
from sae.activations.folder import TensorActivations
from sae.activations.store import ActivationStore
from sae.dictionaries import build_dictionary
from sae.errors import ConfigError
from sae.evals import DownstreamEval
from sae.language import LanguageModel
from sae.types import Point

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning with torch 2.13
]


@pytest.fixture(scope="module")
def lm():
    from sae.language import LMSource

    source = LMSource.from_config({"kind": "random", "name": "tiny", "family": "llama"})
    return source.load()


@pytest.fixture(scope="module")
def contexts(lm):
    """What the LM itself would say, so that ablations have something to spoil."""
    tokens = torch.randint(0, 256, (5, 1), generator=torch.Generator().manual_seed(0))
    for _ in range(15):
        tokens = torch.cat([tokens, lm.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    document = np.arange(80).reshape(5, 16) // 13
    return tokens.int().numpy(), document.astype(np.int32)


POINT = Point("resid", 0)


@dataclass
class Spec:
    keep_first: bool = False


class Store(ActivationStore):
    """Tokens without activations."""

    def __init__(self, contexts, folder):
        self.tokens, self.document = contexts
        self.spec, self.folder = Spec(), folder


@pytest.fixture
def downstream(lm, contexts, tmp_path):
    def make(load=None, mean=None, **kwargs):
        mean = torch.zeros(lm.d_model) if mean is None else mean
        return DownstreamPerplexity(
            load or (lambda: lm), Store(contexts, tmp_path), POINT, mean,
            **({"batch_contexts": 2} | kwargs),
        )  # fmt: skip

    return make


def test_downstream_agrees_with_a_slow_loop(lm, contexts, downstream):
    mean = torch.randn(lm.d_model)
    values = downstream(mean=mean).measure(lambda x: 0.5 * x)
    tokens, document = (torch.tensor(a).long() for a in contexts)
    sums = dict.fromkeys(["clean", "sae", "zero", "mean", "kl"], 0.0)
    count = 0
    for row in range(5):
        one = tokens[row : row + 1]
        act = lm.capture(one, [POINT])[POINT]
        logs = {}
        for name, new in {"clean": act, "sae": act * 0.5, "zero": act * 0,
                          "mean": mean.expand_as(act)}.items():  # fmt: skip
            new = torch.cat([act[:, :1], new[:, 1:]], 1)  # position 0 stays
            logits = lm.logits(one, {POINT: lambda x, new=new: new})
            logs[name] = logits[0].double().log_softmax(-1)
        for position in range(1, 15):
            if document[row, position] == document[row, position + 1]:
                count += 1
                for name in logs:
                    sums[name] -= logs[name][position, tokens[row, position + 1]].item()
                clean, spliced = logs["clean"][position], logs["sae"][position]
                sums["kl"] += (clean.exp() * (clean - spliced)).sum().item()
    ce = {name: value / count for name, value in sums.items()}
    assert values["ce_clean"] == pytest.approx(ce["clean"], rel=1e-5)
    assert values["ce_sae"] == pytest.approx(ce["sae"], rel=1e-5)
    assert values["kl"] == pytest.approx(ce["kl"], rel=1e-4)
    assert values["perplexity_sae"] == pytest.approx(np.exp(ce["sae"]), rel=1e-5)
    for name in ("zero", "mean"):
        recovered = (ce[name] - ce["sae"]) / (ce[name] - ce["clean"])
        assert values[f"ce_recovered_{name}"] == pytest.approx(recovered, rel=1e-3)


def test_the_identity_recovers_everything_and_zero_ablation_nothing(downstream):
    callback = downstream()
    perfect = callback.measure(lambda x: x)
    nothing = callback.measure(torch.zeros_like)
    assert perfect["ce_recovered_zero"] == pytest.approx(1.0, abs=1e-6)
    assert perfect["kl"] == pytest.approx(0.0, abs=1e-6)
    assert nothing["ce_recovered_zero"] == pytest.approx(0.0, abs=1e-6)


def test_ablations_are_made_once_and_the_lm_is_loaded_late(lm, downstream, caplog):
    calls, loads = [], []

    class Counting(LanguageModel):
        device, dtype, identity = lm.device, lm.dtype, lm.identity

        def __init__(self): ...

        def logits(self, tokens, replace=None):
            calls.append(1)
            return lm.logits(tokens, replace)

        def logits_under(self, tokens, conditions):
            return (self.logits(tokens, replace) for replace in conditions)

    def load():
        torch.rand(3)  # as building an LM does
        loads.append(1)
        return Counting()

    callback = downstream(load=load)
    assert not loads
    torch.manual_seed(7)
    with caplog.at_level(logging.INFO):
        first = callback.measure(lambda x: x * 0.5)
    assert not caplog.records  # the bar of the training goes on
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(7))
    assert (len(calls), len(loads)) == (12, 1)
    assert callback.measure(lambda x: x * 0.5) == first
    assert (len(calls), len(loads)) == (18, 1)
    # the next run on these tokens has no ablations to make either
    assert downstream(load=load).measure(lambda x: x * 0.5) == first
    assert (len(calls), len(loads)) == (24, 2)


def test_it_is_the_evaluation(lm, contexts, downstream, tmp_path):
    """The same numbers as `eval=downstream`, by the same sums on disk."""
    sae = build_dictionary({"architecture": "topk", "dict_ratio": 2, "k": 3}, d_in=lm.d_model,
                           seed=1).folded(1.0)  # fmt: skip
    rows = TensorActivations(torch.randn(400, lm.d_model)).split("test")
    mean = torch.as_tensor(rows.stats.mean).float()
    watched = downstream(mean=mean, num_tokens=50).measure(sae)
    (kept,) = (tmp_path / "ablations").iterdir()
    context = place(sae, POINT, rows, Store(contexts, tmp_path), lambda: lm)
    result = DownstreamEval(num_tokens=50, batch_contexts=2).run(context)
    assert {name: e.value for name, e in result.metrics.items()} == watched
    assert result.tokens["tokens"] == 48
    assert list((tmp_path / "ablations").iterdir()) == [kept]


def test_downstream_logs_every_nth_validation_and_resumes_the_count(downstream):
    recorder = Recorder()
    callback = downstream(every_n_validations=2, splice=lambda module: lambda x: x * 0.5)
    fit([callback], [recorder], steps=9)
    assert {s for s, k in recorder.logged if k.startswith("val/")} == {5}
    assert recorder.logged[5, "val/perplexity_clean"] > 1
    assert callback.state_dict() == {"validations": 3}
    other = downstream(every_n_validations=2)
    other.load_state_dict(callback.state_dict())
    assert other.state_dict() == {"validations": 3}


def test_downstream_splices_the_sae_as_it_would_be_saved(lm, downstream):
    dictionary = build_dictionary(
        {"architecture": "topk", "dict_ratio": 2, "k": 3}, d_in=lm.d_model, seed=1
    )
    module = Module()
    module.dictionary, module.scale = dictionary, 0.3
    splice = downstream().splice(module)
    x = torch.randn(2, 5, lm.d_model)
    expected = dictionary(x.reshape(10, -1) * 0.3).reshape(x.shape) / 0.3
    torch.testing.assert_close(splice(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"every_n_validations": 0}, "every_n_validations=0"),
        ({"batch_contexts": 0}, "at least 1"),
        ({"num_tokens": 15}, "callbacks.downstream: num_tokens=15 is less than one context of 16"),
    ],
)
def test_downstream_refuses_nonsense(downstream, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        downstream(**kwargs)
