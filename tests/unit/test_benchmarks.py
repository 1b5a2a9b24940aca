"""Every benchmark runs at tiny sizes, without peers, and writes what it says it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed import OURS

pytestmark = pytest.mark.slow

FEWER = {
    "speed": ["--l0", "8", "--no-peers", "--no-memory"],
    "dead": ["--worlds", "resid", "synthetic", "--architectures", "tied", "topk"],
}


@pytest.mark.parametrize("name", ["speed", "loader", "harvest", "scaling", "dead"])
def test_a_quick_run_writes_page_numbers_and_picture(name, tmp_path, cache):
    from importlib import import_module

    benchmark = import_module(f"benchmarks.{name}")
    options = ["--quick", "--rounds=1", f"--out={tmp_path}"]
    page = benchmark.main(options + FEWER.get(name, []))

    text = page.read_text()
    written = json.loads(page.with_suffix(".json").read_text())
    assert page.with_suffix(".png").stat().st_size > 1000
    assert written["machine"]["cores"] >= 1
    for table in written["tables"]:
        assert table["rows"], table["title"]
        assert table["title"] in text
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert not (cache / "activations").exists()  # the temporary cache took the quick harvest


def test_what_checksums_cost_is_measured(tmp_path):
    from benchmarks import checks

    page = checks.main(["--quick", "--rounds=1", f"--out={tmp_path}"])
    tables = json.loads(page.with_suffix(".json").read_text())["tables"]
    assert [len(table["rows"]) for table in tables] == [3, 4, 3]
    assert "steps, a checkpoint every 10" in tables[2]["title"]


@pytest.mark.parametrize("architecture", [word for words in OURS.values() for word in words])
@pytest.mark.parametrize("kernels", ["auto", "dense"])
def test_codes_keep_the_wanted_l0_while_they_are_timed(architecture, kernels):
    from benchmarks.contenders import ours
    from benchmarks.problem import make_problem

    problem = make_problem(256, 32, 128, 8)
    (contender,) = ours(problem, architecture, [kernels], "cpu")
    for x in problem.x:
        contender.step(x)
    l0 = (contender.encode(problem.x[1]) != 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(8, rel=0.1)


def test_the_dense_step_by_hand_has_the_gradients_of_autograd():
    from benchmarks.contenders import ByHand, Plain
    from benchmarks.problem import make_problem

    problem = make_problem(64, 16, 48, 6)
    by_hand, plain = ByHand(problem, torch.float32, "cpu"), Plain(problem, "cpu")
    by_hand(problem.x[0])
    plain(problem.x[0])
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        mine, theirs = getattr(by_hand, name).grad, getattr(plain, name).grad
        torch.testing.assert_close(mine.T if name == "W_enc" else mine, theirs)
    assert torch.equal(by_hand.since_fired, plain.since_fired)


def test_turns_alternate_and_ratios_stay_within_a_round():
    from benchmarks.common import interleaved, ratios

    calls = []
    turns = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(turns, 2, warmup=1)
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert {len(taken) for taken in seconds.values()} == {2}
    assert ratios([2.0, 30.0], [1.0, 10.0]) == (2.5, 2.25, 2.75)


def test_places_keep_what_they_have_measured(tmp_path, cache):
    from benchmarks import places

    options = ["--quick", "--places", "resid.0", f"--work={tmp_path}/work", f"--out={tmp_path}"]
    options += ["--architectures", "topk", "--recipes", "default", "lr*2"]
    places.main([*options, "--harvest"])
    records = tmp_path / "work/records"
    assert (cache / "activations").exists()
    assert not records.exists()
    page = places.main(options)
    kept = {file: file.stat().st_mtime_ns for file in records.iterdir()}
    assert len(kept) == 2
    table = json.loads(page.with_suffix(".json").read_text())["tables"][0]
    ratio = [row[-1] for row in table["rows"]]
    assert min(ratio) == 1 < max(ratio)  # of the best of both
    places.main(options)
    assert {file: file.stat().st_mtime_ns for file in records.iterdir()} == kept


def test_the_gpu_command_is_rehearsed_step_by_step(tmp_path):
    root = Path(__file__).parents[2]
    command = [root / "benchmarks" / "gpu.sh", "--rehearse", "--out", tmp_path]
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run(
        [*command, "--only", "kernels", "crossing"], env=environment, check=True, timeout=300
    )
    written = json.loads(next(tmp_path.glob("*-gpu.json")).read_text())
    overview, *tables = written["tables"]
    assert [row[:2] for row in overview["rows"]] == [["kernels", "well"], ["crossing", "well"]]
    (crossing,) = (table for table in tables if table["title"].startswith("crossing"))
    assert [row[0] for row in crossing["rows"]] == ["16x64"]
    for table in tables[:1]:
        names, errors, allowed, same = zip(*(row[:4] for row in table["rows"]), strict=True)
        assert {name.split()[0] for name in names} >= {"select_topk", "pair_dots", "latents_sum"}
        assert all(error <= near for error, near in zip(errors, allowed, strict=True))
        assert set(same) == {"True"}


def test_a_step_that_fails_says_so_and_the_next_is_run(tmp_path, monkeypatch):
    from benchmarks import gpu

    steps = [
        gpu.Step("broken", ("no_such_module",), 60),
        gpu.Step("bare", ("pytest",), 60, ("no_such_package",)),
        gpu.Step("late", ("timeit",), 1),
    ]
    monkeypatch.setattr(gpu, "_steps", lambda *_: steps)
    page = gpu.main(["--rehearse", f"--out={tmp_path}", "--seconds=200"])
    written = json.loads(page.with_suffix(".json").read_text())
    ended = dict(row[:2] for row in written["tables"][0]["rows"])
    assert ended["broken"] == "with exit code 1"
    assert "No module named no_such_module" in "".join(written["raw"]["broken"]["log"])
    assert ended["bare"] == "left out: no_such_package is not installed"
    assert ended["late"].startswith(("with exit code", "stopped", "left out: no time"))


def test_outcomes_are_read_off_a_log_that_may_break_off():
    from benchmarks.gpu import _tests

    log = "tests/a.py::one PASSED [ 1%]\ntests/a.py::two[x] FAILED [ 2%]\n"
    log += "[gw1] [  3%] PASSED tests/a.py::three\ntests/a.py::four "
    rows = _tests("tests", log).rows
    assert rows == [
        ["passed", 2], ["skipped", 0], ["failed", 1], ["failed: tests/a.py::two[x]", None],
        ["error", 0],
    ]  # fmt: skip
