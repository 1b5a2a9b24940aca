"""Every benchmark runs at tiny sizes, without peers, and writes what it says it writes."""

import json

import pytest
import torch

from benchmarks.speed import OURS

SPEED = ["--l0", "8", "--no-peers", "--no-memory"]


@pytest.mark.parametrize("name", ["speed", "loader", "harvest", "scaling", "dead"])
def test_a_quick_run_writes_page_numbers_and_picture(name, tmp_path, cache):
    from importlib import import_module

    benchmark = import_module(f"benchmarks.{name}")
    options = ["--quick", "--rounds=1", f"--out={tmp_path}"]
    page = benchmark.main(options + (SPEED if name == "speed" else []))

    text = page.read_text()
    written = json.loads(page.with_suffix(".json").read_text())
    assert page.with_suffix(".png").stat().st_size > 1000
    assert written["machine"]["cores"] >= 1
    for table in written["tables"]:
        assert table["rows"], table["title"]
        assert table["title"] in text
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert not (cache / "activations").exists()  # the temporary cache took the quick harvest


@pytest.mark.parametrize("architecture", [word for words in OURS.values() for word in words])
@pytest.mark.parametrize("kernels", ["auto", "dense"])
def test_codes_keep_the_wanted_l0_while_they_are_timed(architecture, kernels):
    from benchmarks.contenders import ours
    from benchmarks.problem import make_problem

    problem = make_problem(256, 32, 128, 8)
    contender = ours(problem, architecture, kernels, "cpu")
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
