"""What `auto` as a dtype becomes, and that every process of a command agrees on it."""

import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def dtypes(monkeypatch, tmp_path):
    """The module as the first process of a machine that never measured sees it."""
    from sae import dtypes

    monkeypatch.setenv(dtypes.INHERITED, "")
    monkeypatch.setattr(dtypes, "_made", {})
    monkeypatch.setattr(dtypes.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    dtypes.speedup.cache_clear()
    yield dtypes
    dtypes.speedup.cache_clear()


def clock(calls, **seconds):
    """Stands for the time of a product: so many seconds a multiply-add."""

    def taken(x, W, dtype):
        calls.append((dtype, len(x), len(W)))
        return seconds[dtype] * x.numel() * len(W)

    return taken


@pytest.mark.parametrize(("times", "expected"), [(1.29, "float32"), (1.31, "bfloat16")])
@pytest.mark.parametrize("kind", ["lm", "sae"])
def test_bfloat16_must_be_1_3_times_as_fast(dtypes, monkeypatch, kind, times, expected):
    measure = dtypes.measure
    fake = clock([], float32=1e-9, bfloat16=1e-9 / times)
    monkeypatch.setattr(dtypes, "measure", lambda *given: measure(*given, seconds=fake))
    assert dtypes.fast_dtype(kind, "cpu") == expected


@pytest.mark.parametrize(("times", "expected"), [(1.29, "auto"), (1.31, "int8")])
def test_an_int8_selection_must_be_1_3_times_as_fast(dtypes, monkeypatch, times, expected):
    from sae.training.from_config import resolve_dtypes

    calls, measure = [], dtypes.measure
    fake = clock(calls, float32=1e-9, int8=1e-9 / times, bfloat16=1e-9)
    monkeypatch.setattr(dtypes, "measure", lambda *given: measure(*given, seconds=fake))

    def resolved(**trainer):
        given = {"precision": "auto", "kernels": "auto", "devices": 2, "batch_size": 1024}
        config = {"lm": {}, "trainer": given | {"accelerator": "cpu"} | trainer}
        resolve_dtypes(config)
        return config["trainer"]["kernels"]

    assert resolved() == expected
    assert calls[-1] == ("int8", 512, 4608)  # rows of one process
    assert resolved(batch_size=2**20) == expected
    assert calls[-1] == ("int8", 4096, 4608)
    # what is named is kept, and float32 by name is float32 everywhere
    assert resolved(kernels="sparse") == "sparse"
    assert resolved(precision="32-true") == resolved(precision="bf16-mixed") == "auto"


def test_without_the_int8_product_nothing_is_timed(dtypes, monkeypatch):
    monkeypatch.setattr(dtypes.int8, "available", lambda: False)
    never = lambda *given: pytest.fail("timed")  # noqa: E731
    assert dtypes.measure("selection", "int8", 512, never) == 0
    assert dtypes.fast_dtype("selection", "cpu", 512) == "float32"


def test_the_verdict_is_of_the_large_product_unless_the_small_one_is_hopeless(dtypes):
    calls = []
    assert dtypes.measure("lm", "bfloat16", seconds=clock(calls, float32=1, bfloat16=0.5)) == 2
    assert (calls[-1][1], calls[-1][2]) == (256, 1536)
    assert calls[0][0] == "float32"
    calls.clear()
    assert dtypes.measure("lm", "bfloat16", seconds=clock(calls, float32=1, bfloat16=100)) == 0.01
    assert {(rows, outputs) for _, rows, outputs in calls} == {dtypes._SMALL}
    assert len(calls) == 4


def test_a_neighbour_that_slows_one_round_decides_nothing(dtypes):
    rounds = []

    def clock(x, W, dtype):
        rounds.append(dtype)
        noise = 10 if rounds.count(dtype) == 2 else 1
        return (2 if dtype == "float32" else 1) * noise * len(x)

    assert dtypes.measure("sae", "bfloat16", seconds=clock) == 2


def test_the_real_clock_takes_less_than_a_second_and_no_random_numbers(dtypes):
    import time

    state = torch.get_rng_state()
    start = time.process_time()
    ratio = dtypes.measure("lm", "bfloat16")
    assert time.process_time() - start < 1
    assert 1e-3 < ratio < 50
    assert torch.equal(torch.get_rng_state(), state)


def test_measured_once_a_machine_outside_the_shared_cache(dtypes, monkeypatch, tmp_path, cache):
    measured = []
    monkeypatch.setattr(dtypes, "measure", lambda *given: measured.append(given) or 1.5)
    for _ in range(2):
        dtypes.speedup.cache_clear()
        assert dtypes.speedup("lm", "bfloat16") == 1.5
    assert len(measured) == 1
    (file,) = (tmp_path / "lightning-sae" / "speed").glob("*.json")
    assert not cache.exists()
    file.write_text('{"speedup": ')  # torn: measured anew, and written over
    dtypes.speedup.cache_clear()
    assert dtypes.speedup("lm", "bfloat16") == 1.5
    assert len(measured) == 2
    assert json.loads(file.read_text())["speedup"] == 1.5


@pytest.mark.parametrize(
    "change",
    [
        lambda m, d: m.setattr(d, "cpu_model", lambda: "another"),
        lambda m, d: m.setattr(d.torch, "get_num_threads", lambda: 99),
        lambda m, d: m.setattr(d.torch, "__version__", "9.9"),
        lambda m, d: m.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ],
    ids=["cpu", "threads", "torch", "isa"],
)
def test_another_machine_is_measured_for_itself(dtypes, monkeypatch, change):
    measured = []
    monkeypatch.setattr(dtypes, "measure", lambda *given: measured.append(given) or 1.5)
    dtypes.speedup("lm", "bfloat16")
    dtypes.speedup("sae", "bfloat16")
    change(monkeypatch, dtypes)
    dtypes.speedup.cache_clear()
    dtypes.speedup("lm", "bfloat16")
    assert measured == [(k, "bfloat16", None) for k in ("lm", "sae", "lm")]


def test_a_folder_that_cannot_be_written_is_done_without(dtypes, monkeypatch, tmp_path):
    (tmp_path / "lightning-sae").write_text("a file in its place")
    monkeypatch.setattr(dtypes, "measure", lambda *given: 1.5)
    assert dtypes.speedup("lm", "bfloat16") == 1.5


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_asked_and_no_product_is_timed(dtypes, monkeypatch, there):
    monkeypatch.setattr(dtypes, "measure", lambda *given: pytest.fail("measured on the CPU"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    expected = "bfloat16" if there else "float32"
    assert dtypes.resolve_lm({"dtype": "auto"}, "cuda") == {"dtype": expected}
    assert dtypes.fast_dtype("sae", "cuda") == expected


@pytest.mark.slow
def test_a_process_that_this_one_starts_inherits_the_verdict(dtypes, monkeypatch):
    monkeypatch.setattr(dtypes, "measure", lambda kind, dtype, rows: 2.0 if kind == "lm" else 0.1)
    assert [dtypes.fast_dtype(kind, "cpu") for kind in ("lm", "sae")] == ["bfloat16", "float32"]
    dtypes.hand_down()
    code = (
        "from sae import dtypes\n"
        "def measure(*_): raise AssertionError('measured again')\n"
        "dtypes.measure = measure\n"
        "print(dtypes.fast_dtype('lm', 'cpu'), dtypes.fast_dtype('sae', 'cpu'))"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert started.stdout.split() == ["bfloat16", "float32"], started.stderr
