"""The road of a vector on the GPU where there is one; else the same on the CPU."""

import math

import pytest
import torch

from sae.activations.sources import LMActivations
from sae.types import Point

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = [
    "debug=tiny", "epochs=2", "trainer.validations=1", "trainer.accelerator=auto",
    "eval.core.resamples=20", "eval.downstream.resamples=20", "eval.downstream.num_tokens=512",
]  # fmt: skip


def test_a_harvest_gives_the_rows_of_the_cpu(tiny_source, random_corpus, tmp_path, monkeypatch):
    point, rows = Point("resid", 1), {}
    for device in ("cpu", DEVICE):
        monkeypatch.setenv("SAE_CACHE", str(tmp_path / f"{device}-{len(rows)}"))
        source = LMActivations(
            tiny_source(), random_corpus(), point, device=device, tokens=2048, val_tokens=256,
            test_tokens=256, ctx=32, dtype="float32",
        )  # fmt: skip
        source.prepare()
        assert source.load_lm(device).device.type == device
        rows[len(rows)] = source.split("train").read(0)
    assert rows[1].device.type == "cpu"
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sae", ["tied", "topk"])
def test_a_run_trains_is_measured_and_saved_on_the_cpu(sae, tmp_path):
    import sae as package
    from train import compose, train

    given = ["k=4"] if sae == "topk" else ["l1=1e-3"]
    results = train(compose([*TINY, f"sae={sae}", *given]), tmp_path / "run")
    assert 0 < results["core"]["metrics"]["fvu"]["value"] < 1.5
    assert math.isfinite(results["downstream"]["metrics"]["ce_sae"]["value"])
    saved = package.load(tmp_path / "run")
    assert saved.device.type == "cpu"
