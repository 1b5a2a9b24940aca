"""Our `tpp` and `scr` against SAEBench's own functions on the same activations, probes and SAE.

sae-bench pins old versions of much that we use, so no extra names it:

    pip install --no-deps --target DIR sae-bench tabulate collectibles seaborn openai
    PYTHONPATH=DIR python -m pytest -m peers tests/peers/test_sae_bench.py
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
CLASSES, PER_CLASS, TOKENS, D_IN, THRESHOLDS = 4, 4400, 3, 8, [1, 2, 5]


@pytest.fixture(scope="module")
def bench():
    os.environ["JAXTYPING_DISABLE"] = "1"  # its annotations do not hold for new beartypes
    pytest.importorskip("sae_bench", reason="sae-bench is not installed (see above)")
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.sparse_probing import probe_training

    return main, probe_training


@pytest.fixture(scope="module")
def made():
    """Token activations by class, an SAE that knows the classes roughly."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
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
    from sae.evals.perturbation import balanced, pool, train_probe

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
        fitted = train_probe(pooled.x[train][rows], y, seed=0)
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
    from sae.activations.labelled import TextActivations
    from sae.evals import Bootstrap, scr
    from sae.evals.perturbation import pool, train_probe

    sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
    from _labelled import planted

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
        fitted = train_probe(inputs, label, seed=0)
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
