"""Our `sparse_probing` against sae-probes' own code: same activations, same SAE, same sets."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # neither its imports nor its fits are free of warnings
]
SETS = ("117_us_state_FL", "95_toxic_is", "41_truthqa_tf")
HOOK, MODEL, KS = "blocks.1.hook_resid_post", "made_up", [1, 2, 5]


@pytest.fixture(scope="module")
def sae_probes():
    """The library; what it imports for other probes than ours may be missing."""
    try:
        import xgboost  # noqa: F401
    except ImportError:
        sys.modules["xgboost"] = ModuleType("xgboost")
    from sae_probes import utils_data
    from sae_probes.run_sae_evals import run_sae_evals

    return run_sae_evals, utils_data


@pytest.fixture(scope="module")
def sets(sae_probes):
    """The sets as we parse them, of the files of the installed library."""
    import pyarrow
    from sae_probes.constants import DATA_PATH

    from sae.tasks import labelled

    def read(name):
        path = str(DATA_PATH / "cleaned_data" / f"{name}.csv.zst")
        with pyarrow.CompressedInputStream(path, "zstd") as file:
            return labelled._parsed(name, file.read(), "prompt", "target")

    return {name: read(name) for name in SETS}


@pytest.fixture(scope="module")
def activations(sets):
    """Noise in which the label is faintly to be seen."""
    made = {}
    for seed, (name, one) in enumerate(sets.items()):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(one.texts), 16, generator=generator)
        x[:, 3] += 0.8 * torch.from_numpy(one.labels)
        made[name] = x
    return made


@pytest.fixture(scope="module")
def sae():
    from sae.dictionaries.sae import SAE, SAEConfig

    W = torch.randn(64, 16, generator=torch.Generator().manual_seed(9))
    W = W / W.norm(dim=1, keepdim=True)
    bias = torch.full((64,), -0.5)
    return SAE(W.T.contiguous(), bias, W, torch.zeros(16), SAEConfig("l1", "relu", 16, 64))


@pytest.fixture(scope="module")
def theirs(sae_probes, activations, sae, tmp_path_factory):
    run_sae_evals, _ = sae_probes
    folder = tmp_path_factory.mktemp("sae_probes")
    kept = folder / f"model_activations_{MODEL}"
    kept.mkdir()
    for name, x in activations.items():
        torch.save(x, kept / f"{name}_{HOOK}.pt")
    run_sae_evals(
        sae, MODEL, HOOK, "l2", "normal", ks=KS, results_path=folder / "results",
        model_cache_path=folder, datasets=list(SETS), device="cpu",
    )  # fmt: skip
    files = folder / "results" / f"sae_probes_{MODEL}" / "normal_setting"
    return {name: json.loads((files / f"{name}_{HOOK}_l2.json").read_text()) for name in SETS}


@pytest.fixture(scope="module")
def ours(sets, activations, sae):
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
    from _evals import Rows, place

    from sae.activations.labelled import TextActivations
    from sae.evals import sparse_probing
    from sae.language import LMSource
    from sae.types import Point

    lm = LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()
    context = place(sae, Point("resid", 1), Rows(torch.zeros(1, 16), None), None, lambda: lm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_probing, "probe_sets", lambda names: [sets[name] for name in names])
        patch.setattr(
            sparse_probing, "text_activations",
            lambda lm, point, texts, name, **_: TextActivations(
                activations[name], torch.ones(len(texts), dtype=torch.long)
            ),
        )  # fmt: skip
        evaluation = sparse_probing.SparseProbingEval(sets=SETS, ks=tuple(KS))
        return evaluation.run(context).details["sets"]


@pytest.mark.parametrize("name", SETS)
def test_same_latents_and_scores(ours, theirs, name):
    for k, expected in zip(KS, theirs[name], strict=True):
        assert expected["k"] == k
        assert ours[name]["latents"][:k] == expected["indices"]
        for score, key in (("auc", "test_auc"), ("f1", "test_f1"), ("accuracy", "test_acc")):
            got = ours[name]["metrics"][f"sae_top_{k}_{score}"]["value"]
            assert got == pytest.approx(expected[key], abs=0.01), (k, score)


@pytest.mark.parametrize("name", SETS)
def test_same_split_and_same_baseline(ours, sae_probes, sets, activations, name):
    from sae_probes.utils_training import find_best_reg

    from sae.probing.logistic import split

    _, utils_data = sae_probes
    y = utils_data.get_yvals(name)
    assert np.array_equal(y, sets[name].labels)
    num_train = min(len(y) - 100, 1024)
    expected = utils_data.get_train_test_indices(y, num_train, len(y) - num_train - 1)
    for got, wanted in zip(split(sets[name].labels, 42), expected, strict=True):
        assert np.array_equal(got, wanted)
    x, (train, test) = activations[name], expected
    found = find_best_reg(x[train], y[train], x[test], y[test], seed=42).metrics
    assert ours[name]["metrics"]["llm_auc"]["value"] == pytest.approx(found.test_auc, abs=0.01)
