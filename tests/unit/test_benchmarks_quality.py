"""The pure parts of the comparison of quality, and its chain with a made-up trainer."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.quality import protocol, records
from benchmarks.quality.__main__ import main, parser
from benchmarks.quality.contender import Contender, Fitted, Setting, share
from benchmarks.quality.data import Size, first_rows, problem_a
from benchmarks.quality.measure import recovery
from benchmarks.quality.protocol import Plan, Task
from benchmarks.quality.report import compared, report, vectors_needed
from benchmarks.quality.search import (
    LR_STEP,
    Point,
    corrected,
    fvu_at,
    log_slope,
    next_value,
    score,
    search,
    tuned_lr,
)
from sae.activations.folder import TensorActivations


def power_law(power: float, factor: float = 50.0):
    """A training whose L0 is a power of the penalty and whose FVU is a power of its L0."""
    return lambda value: Point(value, factor * value**power, 3.0 * (factor * value**power) ** -0.7)


@pytest.mark.parametrize("power", [-0.5, -1.0, -2.5])
@pytest.mark.parametrize("start", [0.3, 1.0, 4.0])
def test_search_meets_the_l0_of_a_power_law_in_three_trainings(power, start):
    points = search(power_law(power), start, target=32, slope=-1.0, tolerance=0.05, limit=3)
    assert len(points) <= 3
    assert points[-1].l0 == pytest.approx(32, rel=0.05)


def test_search_stops_at_once_where_the_first_value_is_right():
    assert len(search(power_law(1.0, 1.0), 32, 32, slope=1.0, tolerance=0.1, limit=3)) == 1


def test_search_never_trains_more_often_than_the_budget_says():
    calls = []

    def stubborn(value):
        calls.append(value)
        return Point(value, 500.0, 0.1)

    assert len(search(stubborn, 1.0, 32, slope=-1.0, tolerance=0.1, limit=3)) == 3
    assert calls == pytest.approx([1.0, 8.0, 64.0])  # no step is longer than a factor of 8


def test_the_next_value_does_not_trust_a_slope_of_the_wrong_sign():
    points = [Point(1.0, 60.0, 0.1), Point(2.0, 70.0, 0.1)]
    assert next_value(points, 30.0, slope=-1.0) == pytest.approx(2.0)


def test_a_dictionary_that_never_fires_gets_a_smaller_penalty():
    assert next_value([Point(1.0, 0.0, 1.0)], 32, slope=-1.0) == pytest.approx(1 / 8)


def test_fvu_at_is_exact_on_a_power_law():
    law = power_law(-1.0)
    expected = 3.0 * 32**-0.7
    assert fvu_at([law(0.5), law(4.0), law(1.0)], 32) == pytest.approx(expected)  # between
    assert fvu_at([law(0.5), law(1.0)], 32) == pytest.approx(expected)  # beyond
    assert fvu_at([law(1.0)], 32) == law(1.0).fvu


def test_massive_rows_are_left_out_and_the_next_ones_move_up():
    x = torch.ones(10, 4)
    x[2] *= 100
    x[7] *= 100
    rows = TensorActivations(x, val_fraction=0.0, test_fraction=0.0).split("train")
    assert first_rows(rows, 6).tolist() == torch.ones(6, 4).tolist()
    with pytest.raises(ValueError, match="8 rows count, and 9 were asked for"):
        first_rows(rows, 9)


def test_records_of_the_lm_tell_by_which_rule_rows_were_left_out():
    size, setting = Size(10, 1, 1, 2), Setting(1e-3, 8, 0)
    known = [
        records.identity("ours/topk", data, size, 4, setting) for data in ("resid.4", "synthetic")
    ]
    assert ["rows" in one for one in known] == [True, False]


def test_a_training_that_diverged_loses():
    assert fvu_at([Point(1, 32, math.inf)], 32) == math.inf
    assert fvu_at([Point(1, 32, math.nan), Point(2, 16, 0.5)], 32) == 0.5


def test_a_setting_that_misses_the_l0_loses_against_every_one_that_meets_it():
    assert score([Point(1, 245, 0.001)], 16) > score([Point(1, 16, 5.0)], 16)
    assert score([Point(1, 245, 0.001)], 16) > score([Point(1, 64, 0.9)], 16)
    assert score([Point(1, 4, 0.9), Point(2, 64, 0.1)], 16) == pytest.approx(0.3)  # bracketed
    assert score([], 16) == math.inf


def test_correction_moves_along_the_slope():
    law = power_law(-1.0)
    slope = log_slope(law(0.5), law(1.0))
    assert slope == pytest.approx(-0.7)
    assert corrected(law(1.0), slope, 32) == pytest.approx(3.0 * 32**-0.7)
    assert log_slope(Point(1, 32, 0.1), Point(1, 32.1, 0.9)) == 0.0


@pytest.mark.parametrize("best", [0.1, 1.0, 3.0, 30.0])
def test_three_learning_rates_are_tried_and_the_better_side_is_followed(best):
    tried = []

    def scored(lr):
        tried.append(lr)
        return abs(math.log(lr / best))

    lr, scores = tuned_lr(scored, 1.0)
    assert len(tried) == len(scores) == 3
    assert tried[:2] == [1.0, pytest.approx(LR_STEP)]
    assert lr == min(tried, key=lambda t: abs(math.log(t / best)))
    assert tried[2] == pytest.approx(10.0 if best > 1.8 else 1 / LR_STEP)


@pytest.mark.parametrize(("best", "expected"), [(100.0, 100.0), (0.03, 10**-1.5)])
def test_more_learning_rates_go_further_in_the_same_direction(best, expected):
    lr, scores = tuned_lr(lambda lr: abs(math.log(lr / best)), 1.0, tries=5)
    assert len(scores) == 5
    assert lr == pytest.approx(expected)


def test_the_search_for_a_learning_rate_stops_where_it_gets_worse():
    lr, scores = tuned_lr(lambda lr: abs(math.log(lr / 3.0)), 1.0, tries=5)
    assert lr == pytest.approx(LR_STEP)
    assert list(scores) == pytest.approx([1.0, LR_STEP, 10.0])


def test_recovery_counts_both_ways_like_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=generator)
    near = features[:3] * 2.0 + 0.05 * torch.randn(3, 5, generator=generator)
    atoms = torch.cat([near, torch.randn(4, 5, generator=generator)])

    def cosine(a, b):
        return float(a @ b / a.norm() / b.norm())

    best = [max(cosine(f, a) for a in atoms) for f in features]
    best_of_atom = [max(cosine(f, a) for f in features) for a in atoms]
    found = recovery(features, atoms)
    assert found["recovered"] == pytest.approx(np.mean([b > 0.9 for b in best]))
    assert found["true_atoms"] == pytest.approx(np.mean([b > 0.9 for b in best_of_atom]))
    assert found["mmcs"] == pytest.approx(np.mean(best), rel=1e-5)
    assert recovery(features, atoms[:0])["recovered"] == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_initial_dictionary_knows_the_features(seed):
    """Equal seeds once drew the same directions for the world and for the weights."""
    from sae.dictionaries import build_dictionary

    features = problem_a().features
    assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-5)
    config = {"architecture": "topk", "dict_ratio": len(features) / features.shape[1], "k": 4}
    dictionary = build_dictionary(config, d_in=features.shape[1], seed=seed)
    assert recovery(features, dictionary.tensors().W_dec.detach())["recovered"] < 0.01


def test_share_shortens_what_is_too_long_for_the_run():
    assert share(100, 0.05, 1000) == 5
    assert share(10**6, 0.05, 1000) == 1000
    assert share(3, 0.05, 1000) == 1


def test_records_are_told_apart_by_everything_that_matters(tmp_path):
    size = Size(100, 10, 10, 5)
    names = {
        records.file_of(tmp_path, records.identity(*given))
        for given in [
            ("a", "d", size, 8, Setting(1e-3, 1, 0)),
            ("b", "d", size, 8, Setting(1e-3, 1, 0)),
            ("a", "e", size, 8, Setting(1e-3, 1, 0)),
            ("a", "d", Size(99, 10, 10, 5), 8, Setting(1e-3, 1, 0)),
            ("a", "d", size, 9, Setting(1e-3, 1, 0)),
            ("a", "d", size, 8, Setting(2e-3, 1, 0)),
            ("a", "d", size, 8, Setting(1e-3, 2, 0)),
            ("a", "d", size, 8, Setting(1e-3, 1, 1)),
            ("a", "d", size, 8, Setting(1e-3, 1, 0), 4),
        ]
    }
    assert len(names) == 9


def row(key, family, fvu):
    return {"contender": key, "family": family, "at_l0": [fvu]}


def test_a_peer_is_compared_with_its_namesake():
    found = compared(
        [
            row("ours/l1", "l1", 0.2), row("ours/topk", "topk", 0.1), row("x/topk", "topk", 0.05),
            row("x/new", "new", 0.4), row("x/l1", "l1", 0.3),
        ]
    )  # fmt: skip
    assert found["x/topk"] == pytest.approx(0.5)
    assert found["x/l1"] == pytest.approx(1.5)
    assert found["x/new"] is None
    assert found["ours/topk"] is None


SIZE = Size(vectors=2000, val=200, test=200, batch=50)
TUNING = Size(vectors=1000, val=200, test=200, batch=50)


def made_up(key, trained, *, best_lr, control="coefficient"):
    """A contender that shrinks its inputs: FVU and L0 follow from the setting."""

    def fit(data, d_sae, setting):
        trained.append((data.size.vectors, setting))
        wanted = 64 / setting.value if control == "coefficient" else setting.value
        l0 = max(1, min(d_sae, round(wanted)))
        loss = (0.1 + abs(math.log10(setting.lr / best_lr))) * 8 / l0

        def encode(x):
            code = torch.zeros(len(x), d_sae)
            code[:, : x.shape[1]] = x
            mask = torch.zeros(d_sae)
            mask[:l0] = 1
            return torch.where(code == 0, torch.ones_like(code), code) * mask

        def decode(code):
            return torch.zeros(len(code), data.d_in) + loss

        return Fitted(encode, decode, torch.randn(d_sae, data.d_in), factor=1.0)

    library, _, name = key.partition("/")
    return Contender(name, library, "l1", control, lambda d_sae: 1e-3, 1.0, fit)


@pytest.mark.slow
def test_the_chain_tunes_trains_every_seed_and_never_trains_twice(tmp_path, monkeypatch, cache):
    trained = []
    contenders = {
        "ours/l1": made_up("ours/l1", trained, best_lr=1e-2),
        "peer/l1": made_up("peer/l1", trained, best_lr=1e-3, control="target"),
        "bad/l1": Contender("l1", "bad", "l1", "k", lambda d_sae: 1e-3, 1.0, diverges),
    }
    monkeypatch.setattr(protocol, "chosen", lambda patterns: contenders)
    task = Task("synthetic", SIZE, TUNING, d_sae=128, l0=16, frontier=(8, 32))
    plan = Plan([task], seeds=3, work=tmp_path)
    for key in contenders:
        protocol.chain(key, plan)

    chosen = json.loads((tmp_path / "chosen/synthetic/ours-l1.json").read_text())
    assert chosen["lr"] == pytest.approx(1e-2)  # two half decades above the default
    assert chosen["value"] == pytest.approx(4.0, rel=0.1)
    assert sorted({setting.seed for vectors, setting in trained if vectors == 2000}) == [0, 1, 2]
    assert {round(p[1]) for p in chosen["points"]} >= {8, 16, 32}
    allowed = sum(vectors_needed(kind, task, 3, plan.lrs) for kind in ("coefficient", "target"))
    assert sum(vectors for vectors, _ in trained) <= allowed

    before = len(trained)
    protocol.chain("ours/l1", plan)
    assert len(trained) == before

    page = report(plan, tmp_path / "out")
    text = page.read_text()
    assert "▲" in text  # the notes explain it
    assert "| l1 | ours |" in text
    assert "| l1 | peer |" in text
    assert "l1 (3 of 3 failed) | bad |" in text
    assert "benchmarks.quality train --method 'peer/l1'" in text
    assert page.with_suffix(".png").stat().st_size > 1000
    written = json.loads(page.with_suffix(".json").read_text())
    for cells in written["tables"][0]["rows"]:
        ratio = cells[written["tables"][0]["columns"].index("÷ ours of this kind")]
        assert (cells[0] == "▲") == (ratio is not None and ratio < 1)
    for table in written["tables"]:
        assert {len(cells) for cells in table["rows"]} == {len(table["columns"])}


@pytest.mark.slow
def test_a_printed_command_trains_on_synthetic_vectors(tmp_path, cache, capsys):
    command = "train --method ours/l1 --data synthetic --synthetic-vectors 2048 --lr 1e-3 --value 8"
    main([*command.split(), "--work", str(tmp_path)])
    record = json.loads(capsys.readouterr().out)
    assert record["error"] is None
    assert 0 < record["test"]["fvu"] < 2
    with pytest.raises(SystemExit):
        main(["train", "--data", "synthetic"])
    assert "--method, --lr and --value" in capsys.readouterr().err


def diverges(data, d_sae, setting):
    raise RuntimeError("diverged")


def test_a_failed_training_is_recorded_and_loses(tmp_path, cache):
    def fit(data, d_sae, setting):
        raise RuntimeError("diverged\nmore")

    contender = Contender("x", "peer", "l1", "k", lambda d: 1e-3, 0, fit)
    record = records.trained(contender, "synthetic", SIZE, 16, Setting(1e-3, 4, 0), tmp_path)
    assert record["error"] == "RuntimeError: diverged"
    again = records.trained(contender, "synthetic", SIZE, 16, Setting(1e-3, 4, 0), tmp_path)
    assert again == record


def test_the_command_line_knows_its_parts():
    given = parser().parse_args(["run", "--data", "resid.4", "--methods", "topk", "--jobs", "1"])
    assert (given.what, given.data, given.methods, given.jobs) == ("run", ["resid.4"], ["topk"], 1)
