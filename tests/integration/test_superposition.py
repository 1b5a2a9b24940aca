"""Training on a synthetic world from the first vector to the evaluation of the saved SAE."""

import json

import pytest

pytestmark = pytest.mark.slow

SMALL = [
    "activations=superposition", "logger=none", "trainer.precision=32-true", "resample=none",
    "activations.d_in=32", "activations.num_features=40", "activations.active=2",
    "activations.decay=1", "activations.val_tokens=1000", "activations.test_tokens=4000",
    "tokens=40000", "epochs=4", "trainer.batch_size=256", "optimizer.lr=5e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from train import compose, train

    folder = tmp_path_factory.mktemp("runs") / "toy"
    words = [*SMALL, "sae=topk", "k=2", "dict_ratio=2", "eval=[core,downstream,recovery]"]
    return folder, train(compose(words), folder)


def test_the_features_of_an_easy_world_are_found(run):
    folder, results = run
    assert set(results) == {"core", "recovery", "training"}, "downstream needs an LM"
    found = {name: entry["value"] for name, entry in results["recovery"]["metrics"].items()}
    assert found["recovered"] > 0.9
    assert found["recovered_matched"] > 0.9
    assert found["fvu"] == results["core"]["metrics"]["fvu"]["value"] < 0.2
    assert results["core"]["metrics"]["fvu"]["low"] is not None
    described = json.loads((folder / "sae" / "config.json").read_text())["metadata"]["activations"]
    assert described["kind"] == "superposition"
    assert described["world"]["num_features"] == 40
    assert "superposition" in (folder / "report.html").read_text()


def test_a_saved_sae_is_measured_again_without_its_run(run, monkeypatch, tmp_path):
    from evaluate import evaluate

    folder, results = run
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "elsewhere"))
    again = evaluate(folder, {"core": {}, "recovery": {}, "downstream": {}}, device="cpu")
    assert set(again) == {"core", "recovery"}
    for word in again:
        assert again[word].to_json()["metrics"] == results[word]["metrics"]
    assert (folder / "evals" / "recovery.json").is_file()
    evaluate(folder, {"recovery": {}}, tokens=2000, device="cpu")
    assert (folder / "evals" / "recovery-tokens=2000.json").is_file()
