"""`tpp`, `scr` and `absorption` against SAEBench's own functions on the same activations and SAE.

sae-bench pins old versions of much that we use, so no extra names it:

    pip install -e ".[test,peers]"
    pip install --no-deps sae-bench==0.6.0 tabulate==0.10.0
    pytest -m peers tests/peers/test_sae_bench.py
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
CLASSES, PER_CLASS, TOKENS, D_IN, THRESHOLDS = 4, 4400, 3, 8, [1, 2, 5]


def _install_check():
    """Whoever asks for `-m peers` wants no silent gap."""
    os.environ["JAXTYPING_DISABLE"] = "1"  # its annotations do not hold for new beartypes
    try:
        import sae_bench  # noqa: F401
    except ModuleNotFoundError:
        pytest.fail("sae-bench is not installed; the top of this file says how.", pytrace=False)


@pytest.fixture(scope="module")
def bench():
    _install_check()
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.sparse_probing import probe_training

    return main, probe_training


@pytest.fixture(scope="module")
def made():
    """Token activations by class, an SAE that knows the classes roughly."""
    from _labelled import planted

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CLASSES * PER_CLASS, TOKENS, D_IN, generator=generator)
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    x[torch.arange(len(x)), :, labels] += 1.5
    directions = torch.eye(D_IN)[:CLASSES]
    return x, labels, planted(directions, torch.full((CLASSES,), 0.5), noise=20)


def test_tpp(bench, made):
    from sae.activations.labelled import TextActivations
    from sae.evals import Bootstrap, tpp
    from sae.probing import linear
    from sae.probing.codes import pool
    from sae.probing.logistic import balanced

    main, probe_training = bench
    x, labels, sae = made
    activations = TextActivations(x.flatten(0, 1), torch.full((len(x),), TOKENS))
    pooled = pool(sae, activations)
    clean, ablated = tpp.measure(
        pooled, labels, sae.W_dec, CLASSES, num_train=400, thresholds=THRESHOLDS, seed=0,
        bootstrap=Bootstrap(num_resamples=10),
    )  # fmt: skip
    ours = tpp.scores(clean, ablated)

    # the probes that `measure` trained, in SAEBench's class
    generator, probes = torch.Generator().manual_seed(0), {}
    train = torch.arange(len(x)) < 400 * CLASSES
    for i in range(CLASSES):
        rows, y = balanced(labels[train], i, CLASSES, generator)
        fitted = linear.train(pooled.x[train][rows], y, linear.TEXT_MEANS, seed=0)
        probes[str(i)] = probe_training.Probe(D_IN, torch.float32)
        probes[str(i)].net.weight.data = fitted.weight[None]
        probes[str(i)].net.bias.data = fitted.bias[None]
        balanced(labels[~train], i, CLASSES, generator)
    names = list(probes)
    torch.manual_seed(0)
    train_acts = {k: x[train][labels[train] == int(k)] for k in names}
    test_acts = {k: x[~train][labels[~train] == int(k)] for k in names}
    with torch.no_grad():
        effects = main.get_all_node_effects_for_one_sae(sae, probes, names, False, train_acts, 64)
        accuracies = main.perform_feature_ablations(
            probes, sae, 64, test_acts, effects, THRESHOLDS, names, 500, False
        )
        means = {k: acts.mean(1) for k, acts in test_acts.items()}
        llm = main.get_probe_test_accuracy(probes, names, means, 500, False)
    theirs, _ = main.create_tpp_plotting_dict(accuracies, llm)
    assert theirs["tpp_threshold_5_total_metric"] > 0.05  # there is something to compare
    for name, value in theirs.items():
        # both draw the texts of the other classes, each in its own way
        mean = np.mean([one[name][0] for one in ours.values()])
        assert mean == pytest.approx(value, abs=0.01), name


def test_scr(bench):
    from _labelled import planted

    from sae.activations.labelled import TextActivations
    from sae.evals import Bootstrap, scr
    from sae.probing import linear
    from sae.probing.codes import pool

    main, probe_training = bench
    generator = torch.Generator().manual_seed(1)
    labels = {
        "gender": torch.tensor([0, 0, 1, 1]).repeat(300),
        "profession": torch.tensor([0, 1, 0, 1]).repeat(300),
    }
    x = torch.randn(1200, TOKENS, D_IN, generator=generator)
    x[..., 0] += 2.5 * labels["gender"][:, None]
    x[..., 1] += 1.5 * labels["profession"][:, None]
    sae = planted(torch.eye(D_IN)[:2], torch.full((2,), 0.5), noise=20)
    train = torch.arange(1200) < 600
    pooled = pool(sae, TextActivations(x.flatten(0, 1), torch.full((1200,), TOKENS)))
    _, ours = scr.measure(
        pooled, labels, train, sae.W_dec, thresholds=THRESHOLDS, seed=0,
        bootstrap=Bootstrap(num_resamples=10),
    )  # fmt: skip

    y = {name: label[train] for name, label in labels.items()}
    agree = y["gender"] == y["profession"]
    fits = {
        "male / female": (pooled.x[train], y["gender"]),
        "professor / nurse": (pooled.x[train], y["profession"]),
        "male_professor / female_nurse": (pooled.x[train][agree], y["gender"][agree]),
    }
    probes = {}
    for name, (inputs, label) in fits.items():
        fitted = linear.train(inputs, label, linear.TEXT_MEANS, seed=0)
        probes[name] = probe_training.Probe(D_IN, torch.float32)
        probes[name].net.weight.data = fitted.weight[None]
        probes[name].net.bias.data = fitted.bias[None]

    def split(part):
        gender, profession = labels["gender"][part], labels["profession"][part]
        male, professor = gender == 1, profession == 1
        return {
            "male / female": x[part][male], "female_data_only": x[part][~male],
            "professor / nurse": x[part][professor], "nurse_data_only": x[part][~professor],
            "male_professor / female_nurse": x[part][male & professor],
            "female_nurse_data_only": x[part][~male & ~professor],
        }  # fmt: skip

    names = list(probes)
    test_acts = split(~train)
    with torch.no_grad():
        effects = main.get_all_node_effects_for_one_sae(sae, probes, names, True, split(train), 64)
        accuracies = main.perform_feature_ablations(
            probes, sae, 64, test_acts, effects, THRESHOLDS, names, 500, True
        )
        means = {k: acts.mean(1) for k, acts in test_acts.items()}
        llm = main.get_probe_test_accuracy(probes, names, means, 500, True)
    theirs = main.get_scr_plotting_dict(accuracies, llm)
    assert max(theirs.values()) > 0.2
    for name, value in theirs.items():
        assert ours[name][0] == pytest.approx(value, abs=0.01), name


@pytest.fixture(scope="module")
def absorption():
    _install_check()
    from sae_bench.evals.absorption import (
        feature_absorption,
        feature_absorption_calculator,
        k_sparse_probing,
        main,
        probing,
        prompting,
        vocab,
    )

    return SimpleNamespace(
        calculator=feature_absorption_calculator.FeatureAbsorptionCalculator,
        feature=feature_absorption, sparse=k_sparse_probing, main=main, probing=probing,
        prompting=prompting, vocab=vocab,
    )  # fmt: skip


class Reader:
    """Stands for their LM: says the activations of the word in a prompt's last line."""

    def __init__(self, words: list[str], x: torch.Tensor):
        self.x, self.row = x, {word: i for i, word in enumerate(words)}
        self.tokenizer = self

    def to_tokens(self, prompt: str) -> torch.Tensor:
        return torch.zeros(1, 1)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]):
        words = [text.rpartition("\n")[2].partition(" has")[0] for text in prompts]
        rows = self.x[[self.row[word] for word in words]]
        return None, {names_filter[0]: rows[:, None].expand(-1, 6, -1)}


def calculator_of(absorption, reader: Reader):
    kinds = absorption.feature
    return absorption.calculator(
        model=reader, icl_word_list=list(reader.row), max_icl_examples=10,
        base_template="{word} has the first letter:", word_token_pos=-6,
        full_absorption_probe_cos_sim_threshold=kinds.FULL_ABSORPTION_PROBE_COS_THRESHOLD,
        absorption_fraction_probe_cos_sim_threshold=kinds.ABSORPTION_FRACTION_PROBE_COS_THRESHOLD,
        probe_projection_proportion_threshold=kinds.ABSORPTION_PROBE_PROJECTION_PROPORTION_THRESHOLD,
        absorption_fraction_max_absorbing_latents=kinds.ABSORPTION_FRACTION_MAX_ABSORBING_LATENTS,
    )  # fmt: skip


def test_absorption_of_each_word(absorption):
    """Any codes and any direction: the same fraction and the same verdict on every word."""
    from sae.functional.absorption import absorbed

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, D_IN, generator=generator)
    W_dec = torch.nn.functional.normalize(torch.randn(24, D_IN, generator=generator), dim=1)
    W_enc = torch.randn(D_IN, 24, generator=generator)
    sae = SimpleNamespace(W_dec=W_dec, device="cpu", encode=lambda x: (x @ W_enc - 1).relu())
    direction, words = torch.randn(D_IN, generator=generator), [f"w{i}" for i in range(600)]
    for main in ([3], [0, 7, 11]):
        theirs = calculator_of(absorption, Reader(words, x)).calculate_absorption(
            sae, words, direction, main, layer=0, show_progress=False
        )
        fraction, full = absorbed(x, sae.encode(x), W_dec, direction, torch.tensor(main))
        expected = [float(one.absorption_fraction) for one in theirs.word_results]
        assert fraction.tolist() == pytest.approx(expected, abs=1e-5)
        assert full.tolist() == [one.is_full_absorption for one in theirs.word_results]
        assert full.any()
        assert sum(0 < value < 1 for value in expected) > 5


@pytest.mark.parametrize("kind", ["absorbed", "split"])
def test_absorption_of_all_letters(absorption, kind, tmp_path, monkeypatch):
    """Their chain from activations to the table, on the same linear probes."""
    from _spelling import planted_letters

    from sae.evals.absorption import measure
    from sae.probing import linear
    from sae.tasks.first_letters import LETTERS

    trained, train = [], linear.train

    def noted(*args, **options):
        trained.append(train(*args, **options))
        return trained[-1]

    monkeypatch.setattr(linear, "train", noted)
    made = planted_letters(kind, num_words=3000, letters=26)
    known, test = slice(2000), slice(2000, None)
    ours, _ = measure(made.W_dec, made.part(known), made.part(test), max_k=3, f1_jump=0.03, seed=0)

    def as_theirs(probes):
        theirs = absorption.probing.LinearProbe(probes.weight.shape[1], 26)
        theirs.fc.weight.data, theirs.fc.bias.data = probes.weight, probes.bias
        return theirs

    monkeypatch.setattr(
        absorption.sparse, "train_sparse_multi_probe", lambda *_, **__: as_theirs(trained[1])
    )
    rows = {row.numpy().tobytes(): i for i, row in enumerate(made.x)}
    sae = SimpleNamespace(
        W_dec=made.W_dec, W_enc=made.W_dec.T, device="cpu", dtype=torch.float32,
        cfg=SimpleNamespace(d_sae=len(made.W_dec)),
        encode=lambda x: made.f[[rows[row.numpy().tobytes()] for row in x]],
    )  # fmt: skip
    words = [f"{LETTERS[label]}{i}" for i, label in enumerate(made.labels.tolist())]
    named = list(zip(words, made.labels.tolist(), strict=True))
    probe = as_theirs(trained[0])
    sparse = absorption.sparse.train_k_sparse_probes(
        sae, named[known], made.x[known], ks=[1, 2, 3], precalc_sae_acts=True
    )
    raw = absorption.sparse.eval_probe_and_sae_k_sparse_raw_scores(
        sae, probe, sparse, named[test], made.x[test]
    )
    about = absorption.sparse.sae_k_sparse_metadata(sae, probe, sparse, "mine", 0)
    table = absorption.sparse.build_metrics_df(raw, about, 3)
    absorption.sparse.add_feature_splits_to_metrics_df(table, 3, 0.03)
    raw.to_parquet(tmp_path / absorption.sparse.get_sparse_probing_raw_results_filename("mine", 0))
    candidates = absorption.feature.get_stats_and_likely_false_negative_tokens(
        table, "mine", 0, tmp_path
    )
    with torch.no_grad():
        found = absorption.feature.calculate_projection_and_cos_sims(
            calculator_of(absorption, Reader(words, made.x)), sae, probe, 0, candidates
        )
    theirs = absorption.main._aggregate_results_df(found).set_index("letter")
    assert len(theirs) == len(ours) == 26
    for one in ours:
        row, details = theirs.loc[one.letter], one.details()
        probing = table.set_index("letter").loc[one.letter]
        assert one.probe_f1 == pytest.approx(probing.f1_probe)
        assert one.sae_f1 == pytest.approx([probing[f"f1_sparse_sae_{k}"] for k in (1, 2, 3)])
        assert one.latents == row.split_feats
        assert details["num_split_features"] == row.num_split_feats
        assert details["num_probe_true_positives"] == row.num_probe_true_positives
        assert details["num_full_absorption"] == row.num_full_absorption
        assert details["full_absorption_rate"] == pytest.approx(row.full_absorption_rate)
        assert details["mean_absorption_fraction"] == pytest.approx(
            row.mean_absorption_fraction, abs=1e-5
        )
    found = [sum(one.details()[name] for one in ours) / 26 for name in
             ("full_absorption_rate", "num_split_features")]  # fmt: skip
    assert found[0] > 0.3 if kind == "absorbed" else found == [0, 2]


def assert_alike(ours, theirs):
    assert (torch.cosine_similarity(ours, theirs, dim=1) > 0.98).all()
    assert ((ours.norm(dim=1) / theirs.norm(dim=1)).log().abs() < 0.3).all()


def test_absorption_probes(absorption):
    """Trained from another start on other batches: the same directions."""
    from sae.probing import linear

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=generator)
    labels = (x[:, :3] + 0.5 * torch.randn(3000, 3, generator=generator)).argmax(1)
    y = torch.nn.functional.one_hot(labels)
    ours = linear.train(x, y, linear.ACTIVATIONS, 0)
    torch.manual_seed(1)
    theirs = absorption.probing.train_multi_probe(
        x, y, batch_size=64, num_epochs=50, weight_decay=1e-4, device="cpu", show_progress=False
    )
    assert_alike(ours.weight, theirs.weights)
    assert_alike(ours.bias[None], theirs.biases[None])
    ours = linear.train(x, y, linear.LATENTS._replace(batch_rows=64), 0)
    theirs = absorption.sparse.train_sparse_multi_probe(
        x, y, torch.device("cpu"), l1_decay=0.01, batch_size=64, show_progress=False
    )
    assert_alike(ours.weight, theirs.weights)


def test_absorption_prompts(absorption):
    from _spelling import worded_lm

    from sae.tasks.first_letters import prompt, vocabulary_words

    examples = ["cat", " Dog", "emu"]
    theirs = absorption.prompting.create_icl_prompt(
        " bee", examples, base_template="{word} has the first letter:", shuffle_examples=False,
        prepend_separator_to_first_example=True,
    )  # fmt: skip
    assert theirs.base == prompt(" bee", examples) + " has the first letter:"
    tokenizer = worded_lm().tokenizer
    ours, alpha = vocabulary_words(tokenizer), absorption.vocab.get_alpha_tokens(tokenizer)
    assert set(ours) <= set(alpha)
    assert len(ours) > 0.9 * len(alpha)
