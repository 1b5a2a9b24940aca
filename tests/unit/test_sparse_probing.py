"""`sparse_probing` where the answer is known, and its parts against scikit-learn."""

import numpy as np
import pytest
import torch
from _labelled import POINT, context_of, planted, words
from sklearn import metrics

from sae.activations.labelled import TextActivations, text_activations
from sae.errors import ConfigError, SourceError
from sae.evals import EvalResult, sparse_probing
from sae.evals.sparse_probing import SparseProbingEval
from sae.metrics.classification import binary_scores, draws, interval
from sae.probing.codes import encode, random_sae
from sae.probing.logistic import probe, split
from sae.probing.ranking import rank


@pytest.fixture
def lm(tiny_lm):
    return tiny_lm("llama")


@pytest.fixture
def planted_lm(lm, monkeypatch):
    """Reads every text as noise, and 4 along the first axis where its last letter is a y."""

    def read(lm, point, texts, *, name, which, max_tokens, counted):
        assert which == "last"
        x = 0.5 * torch.randn(len(texts), 32, generator=torch.Generator().manual_seed(3))
        x[:, 0] += torch.tensor([4.0 * (text[-1] == "y") for text in texts])
        return TextActivations(x, torch.ones(len(texts), dtype=torch.long))

    monkeypatch.setattr(sparse_probing, "text_activations", read)
    return lm


def concept_sae():
    """Latent 0 fires for the concept alone."""
    return planted(torch.eye(32)[:1], torch.tensor([2.0]))


def run(monkeypatch, lm, sae, texts, limit=None, **settings) -> EvalResult:
    monkeypatch.setattr(sparse_probing, "probe_sets", lambda names: [texts])
    defaults = {"sets": ("words",), "ks": (1, 5), "max_tokens": 99}
    return SparseProbingEval(**defaults | settings).run(context_of(sae, lm, limit))


@pytest.mark.slow
def test_planted_concept_is_found(monkeypatch, planted_lm):
    texts = words(120)
    result = run(monkeypatch, planted_lm, concept_sae(), texts)
    detail = result.details["sets"]["words"]
    assert detail["latents"][0] == 0
    assert (detail["num_train"], detail["num_test"]) == (140, 99)
    for name in ("sae_top_1_accuracy", "sae_top_1_auc", "sae_top_1_f1", "llm_auc"):
        assert result.metrics[name].value == pytest.approx(1.0, abs=0.02), name
    assert EvalResult.from_json(result.to_json()) == result


@pytest.mark.slow
def test_shuffled_labels_are_not_found(monkeypatch, planted_lm):
    texts = words(300)
    shuffled = np.random.default_rng(1).permutation(texts.labels)
    texts = type(texts)("shuffled", texts.texts, shuffled, texts.classes)
    result = run(monkeypatch, planted_lm, concept_sae(), texts)
    for name in ("sae_top_5_auc", "random_top_5_auc", "pca_top_5_auc", "llm_auc"):
        found = result.metrics[name]
        assert found.value == pytest.approx(0.5, abs=0.15), name
        assert found.low < found.value < found.high


@pytest.mark.slow
def test_a_massive_last_token_gives_way_to_the_one_before_it(monkeypatch, lm):
    """Every text ends in a stop that tells nothing; the letter before it tells the class."""
    texts = words(120)
    texts = type(texts)("stops", [f"{text}." for text in texts.texts], texts.labels, texts.classes)
    table = torch.randn(len(lm.tokenizer), 32, generator=torch.Generator().manual_seed(0))
    (stop, yes) = lm.tokenizer(".y")["input_ids"]
    table[stop], table[yes] = 1000 * torch.eye(32)[1], 4 * torch.eye(32)[0]
    monkeypatch.setattr(lm, "capture", lambda tokens, points: {POINT: table[tokens]})
    fooled = run(monkeypatch, lm, concept_sae(), texts, ks=(1,))
    assert fooled.metrics["llm_auc"].value == 0.5
    result = run(monkeypatch, lm, concept_sae(), texts, ks=(1,), limit=100.0)
    for name in ("sae_top_1_auc", "llm_auc", "pca_top_1_auc"):
        assert result.metrics[name].value == 1, name


@pytest.mark.slow
def test_second_sae_costs_no_pass_and_no_baseline(monkeypatch, lm):
    texts = words(24)
    first = run(monkeypatch, lm, concept_sae(), texts, ks=(1,))
    monkeypatch.setattr(lm, "capture", lambda *_: pytest.fail("the LM ran again"))
    monkeypatch.setattr(sparse_probing, "principal_components", None)
    other = planted(torch.eye(32)[1:2], torch.zeros(1), seed=7)
    again = run(monkeypatch, lm, other, texts, ks=(1,))
    assert again.metrics["llm_auc"] == first.metrics["llm_auc"]
    assert again.metrics["pca_top_1_auc"] == first.metrics["pca_top_1_auc"]


@pytest.mark.slow
def test_csv_takes_the_place_of_the_sets(planted_lm, tmp_path):
    texts, file = words(40), tmp_path / "mine.csv"
    rows = zip(texts.texts, texts.labels, strict=True)
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    result = SparseProbingEval(csv=str(file), ks=(1,)).run(context_of(concept_sae(), planted_lm))
    assert result.tokens == {"sets": 1, "test texts": 39}
    assert list(result.details["sets"]) == ["mine"]


def test_mistakes(monkeypatch, lm):
    with pytest.raises(ConfigError, match="all alone: sets="):
        SparseProbingEval(sets=("all", "5_hist_fig_ismale"))
    with pytest.raises(ConfigError, match="ks=0 must be .* at least 1"):
        SparseProbingEval(ks=(0,))
    sae = planted(torch.eye(32)[:1], torch.zeros(1))
    with pytest.raises(ConfigError, match="must be at most 31"):
        run(monkeypatch, lm, sae, words(40), ks=(32,))
    with pytest.raises(SourceError, match="has 3 classes"):
        run(monkeypatch, lm, sae, words(40, ("a", "b", "c")))
    with pytest.raises(SourceError, match="A class has 19 examples"):
        run(monkeypatch, lm, sae, words(19))


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, 50), rng.integers(0, 8, 50) / 8  # with ties
    predicted = (p > 0.6).astype(int)
    weights = draws(50, 20, seed)
    got = binary_scores(y, predicted, p, weights)
    for i, w in enumerate(weights):
        expected = {
            "accuracy": metrics.accuracy_score(y, predicted, sample_weight=w),
            "f1": metrics.f1_score(y, predicted, average="weighted", sample_weight=w),
            "auc": metrics.roc_auc_score(y, p, sample_weight=w),
        }
        assert {name: got[name][i] for name in got} == pytest.approx(expected)


def test_scores_of_one_class_are_undefined():
    scores = binary_scores(np.ones(3, int), np.ones(3, int), np.ones(3), np.ones((1, 3)))
    assert np.isnan(scores["auc"][0])
    assert (scores["f1"][0], scores["accuracy"][0]) == (1, 1)
    assert interval(np.array([0.5, np.nan]), 0.95) is None


def test_interval_covers_at_its_level():
    """95 of 100 intervals of an accuracy of 0.8 hold it, give or take."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        right = rng.random(100) < 0.8
        scores = binary_scores(np.ones(100, int), right.astype(int), right * 1.0,
                               draws(100, 300, seed))  # fmt: skip
        low, high = interval(scores["accuracy"], 0.95)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("counts", [(20, 20), (21, 35), (99, 99), (300, 301), (700, 900)])
def test_split_is_balanced_and_disjoint(counts):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))
    train, test = split(labels, 0)
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    for part in (train, test):
        assert abs(2 * labels[part].sum() - len(part)) <= 1
    assert len(train) + len(test) == 2 * min(counts) - 1


def test_rank_by_a_slow_loop():
    f = torch.rand(40, 6) * (torch.rand(40, 6) < 0.4)
    y = np.arange(40) % 2
    slow = []
    for j in range(6):
        fired = [v for v in f[:, j].tolist() if v]
        m = sum(fired) / len(fired)
        means = [np.mean([v / m for v, label in zip(f[:, j].tolist(), y, strict=True)
                          if label == c]) for c in (0, 1)]  # fmt: skip
        slow.append(abs(means[1] - means[0]))
    assert rank(f, y).tolist() == sorted(range(6), key=lambda j: -slow[j])


def test_random_sae_fires_as_often():
    sae = planted(torch.eye(32)[:1], torch.zeros(1), noise=99)
    x = torch.randn(50, 32) + 5
    rival = random_sae(sae, l0=7.4, mean=x.mean(0), seed=0)
    assert rival.d_sae == 100
    assert (encode(rival, x) != 0).sum(-1).float().mean() == pytest.approx(7, abs=0.2)
    columns = torch.tensor([5, 1])
    torch.testing.assert_close(
        encode(sae, x, columns, batch_rows=7), sae.encode(x)[:, columns], atol=1e-5, rtol=1e-4
    )


def test_probe_on_few_rows_uses_folds():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (rng.normal(size=(60, 2)) + 3 * y[:, None]).astype(np.float32)
    assert (probe(x[:40], y[:40], x[40:], seed=0).predicted == y[40:]).mean() > 0.9


def test_cache_is_below_the_cache_folder(lm, cache):
    text_activations(lm, POINT, ["a"], name="t", which="last", max_tokens=9)
    assert {path.suffix for path in (cache / "labelled").iterdir()} <= {".safetensors", ".lock"}
    assert list((cache / "labelled").glob("*.safetensors"))
