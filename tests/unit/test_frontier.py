import csv
import json
import math
from typing import Any

import numpy as np
import pytest

from sae.artifacts.placed import PlacedSAE
from sae.errors import ArtifactError
from sae.evals.base import Estimate, EvalResult
from sae.evals.frontier import FrontierEval, read_frontier
from sae.metrics.lines import area, area_interval, areas, line_of, points_of
from sae.reports import write_pages
from sae.reports.frontier_plots import live_by_l1, live_by_size
from sae.tables import read_table


def results(l0, fvu, *, delta_ce=None, l1=1e-3, d_sae=32, point="resid.4", vectors=900, silent=0.25,
            architecture="tied", seed=3, lr=1e-3):  # fmt: skip
    settings = {"sae": {"architecture": architecture, "l1": l1}, "seed": seed,
                "optimizer": {"lr": lr}}  # fmt: skip
    made = {"activations": {"lm": {"name": "<b>tiny</b>"}, "key": "abc"}, "settings": settings}
    sae = {"architecture": architecture, "d_in": 8, "d_sae": d_sae, "metadata": made}
    core = EvalResult(
        "core",
        {"l0": Estimate(float(l0), l0 - 0.1, l0 + 0.2),
         "fvu": Estimate(fvu, fvu - 0.01, fvu + 0.02),
         "silent": Estimate(silent)},
        {"vectors": vectors}, provenance={"sae": sae, "point": point, "store": {"split": "test"}},
    )  # fmt: skip
    found = {"core": core.to_json(), "training": {"tokens": 12_345, "dead": 0.125}}
    if delta_ce is not None:
        values = {"delta_ce": Estimate(delta_ce, 0.0, 1.0), "ce_recovered_zero": Estimate(0.9)}
        downstream = EvalResult("downstream", values, {"tokens": 500, "predictions": 480})
        found["downstream"] = downstream.to_json()
    return found


def write(folder, name, found):
    (folder / name).mkdir()
    (folder / name / "results.json").write_text(json.dumps(found))
    return folder / name


def write_frontier(runs, folder):
    """As `eval=[frontier]` does; no SAE is loaded."""

    def unloaded(*_: Any) -> Any:
        raise AssertionError

    subjects = [PlacedSAE(unloaded, unloaded, name, run) for name, run in runs.items()]
    result = FrontierEval().run(subjects)
    result.save(folder / "frontier.json")
    write_pages(result, folder)
    return folder


@pytest.fixture
def runs(tmp_path):
    made = {
        "best": results(2, 0.3, delta_ce=0.5, l1=3e-3),
        "worse": results(4, 0.3, delta_ce=0.2),
        "twin": results(2, 0.3, delta_ce=0.6, l1=3e-3),
        "wide": results(8, 0.1, l1=3e-4, d_sae=64, silent=0.5),
        "elsewhere": results(9, 0.9, point="resid.5", l1=0.0),
    }
    folders = {name: write(tmp_path, name, found) for name, found in made.items()}
    (tmp_path / "pending").mkdir()
    return folders | {"pending": tmp_path / "pending"}


def test_rows_hold_values_intervals_and_counts(runs):
    row = read_frontier(runs).rows[0]
    assert (row["l0"], row["l0_low"], row["l0_high"]) == (2, 1.9, 2.2)
    assert (row["architecture"], row["site"], row["layer"], row["dict_ratio"]) == (
        "tied", "resid", 4, 4.0,
    )  # fmt: skip
    assert (row["sparsity"], row["seed"], row["dead"], row["live"]) == ("l1=0.003", 3, 0.125, 24)
    assert (row["test_vectors"], row["test_tokens"], row["test_predictions"]) == (900, 500, 480)
    assert row["training_tokens"] == 12_345


def test_runs_are_dominated_by_runs_of_their_own_place_only(runs):
    frontier = read_frontier(runs)
    dominated = {row["run"]: (row["dominated"], row["dominated_ce"]) for row in frontier.rows}
    assert dominated == {
        "best": (False, False), "worse": (True, False), "twin": (False, True),
        "wide": (False, None), "elsewhere": (False, None),
    }  # fmt: skip


def test_what_is_missing_is_named(runs):
    assert read_frontier(runs).missing == {
        "wide": "no downstream result",
        "elsewhere": "no downstream result",
        "pending": "no results",
    }
    with pytest.raises(ArtifactError, match="None of these has L0 and FVU: pending"):
        read_frontier({"pending": runs["pending"]})


def test_a_later_evaluation_fills_in_what_training_left_out(runs):
    (runs["wide"] / "evals").mkdir()
    later = results(8, 0.1, delta_ce=0.01)["downstream"]
    (runs["wide"] / "evals" / "downstream.json").write_text(json.dumps(later))
    frontier = read_frontier(runs)
    assert "wide" not in frontier.missing
    assert {row["run"]: row["delta_ce"] for row in frontier.rows}["wide"] == 0.01


def test_area_is_the_integral_over_log10_l0():
    l0 = np.array([1.0, 3.0, 10.0, 40.0])
    y = np.array([0.9, 0.5, 0.3, 0.1])
    grid = np.linspace(math.log10(2), math.log10(20), 200_001)
    slow = np.interp(grid, np.log10(l0), y).mean() * (grid[-1] - grid[0])
    assert area(list(l0), list(y), 2, 20) == pytest.approx(slow, rel=1e-6)
    assert area([5, 50], [0.25, 0.25], 5, 50) == pytest.approx(0.25)  # one decade


def test_lines_are_compared_over_the_range_they_share(tmp_path):
    points = {"a": (1, 0.4, 32), "b": (100, 0.2, 32), "c": (10, 0.3, 64), "d": (1000, 0.1, 64),
              "e": (10, 0.5, 64), "lone": (50, 0.2, 16)}  # fmt: skip
    folders = {name: write(tmp_path, name, results(l0, fvu, d_sae=d_sae))
               for name, (l0, fvu, d_sae) in points.items()}  # fmt: skip
    rows = read_frontier(folders).rows
    narrow, wide, lone = areas(rows)
    assert narrow["line"] == "tied <b>tiny</b> resid.4 x4"
    assert (narrow["common_from"], narrow["common_to"]) == (10, 100)
    assert narrow["area"] == pytest.approx(0.6)
    assert narrow["common_area"] == pytest.approx(0.25)
    assert wide["runs"] == 3
    assert wide["mean_fvu"] == pytest.approx(0.25)  # from 0.4, the mean of two, to 0.1
    assert wide["common_area"] == pytest.approx((0.4 + 0.25) / 2)
    assert lone["area"] is None
    assert lone["common_area"] is None


def test_nothing_is_shared_by_lines_that_do_not_overlap(tmp_path):
    points = {"a": (1, 0.4, 32), "b": (10, 0.2, 32), "c": (20, 0.3, 64), "d": (30, 0.1, 64)}
    folders = {name: write(tmp_path, name, results(l0, fvu, d_sae=d_sae))
               for name, (l0, fvu, d_sae) in points.items()}  # fmt: skip
    lines = read_frontier(folders).lines
    assert [line["common_area"] for line in lines] == [None, None]
    assert None not in [line["area"] for line in lines]


def test_live_latents_are_grouped_by_what_else_differs(runs):
    rows = read_frontier(runs).rows
    live = {name: [row["live"] for row in found] for name, found in live_by_l1(rows).items()}
    assert live == {
        "tied <b>tiny</b> resid.4 x4": [24, 24, 24], "tied <b>tiny</b> resid.4 x8": [32],
    }  # fmt: skip
    assert len(live_by_size(rows)) == 4  # by l1, and by the place


@pytest.mark.slow
def test_files_are_written(runs, tmp_path):
    folder = write_frontier(runs, tmp_path / "out")
    with (folder / "frontier.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["best", "worse", "twin", "wide", "elsewhere"]
    assert table[3]["delta_ce"] == ""
    assert len((folder / "areas.csv").read_text().splitlines()) == 4
    content = json.loads((folder / "frontier.json").read_text())
    assert content["details"]["missing"]["pending"] == "no results"
    assert content["tables"]["runs"]["columns"]["delta_ce"] == {"type": "float64", "unit": "nat"}
    assert [row["dominated"] for row in read_table(folder / "frontier.runs.parquet")] == [
        False, True, False, False, False
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "<b>tiny" not in page
    assert 'aria-label="Over l1"' in page
    for words in ("0.29 – 0.32", "no downstream result", "12,345", "common mean FVU", "900"):
        assert words in page, words
    for name in ("frontier.png", "live.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("point", "site", "layer"),
    [("resid.4", "resid", 4), ("resid.0+1+2", "resid.0+1+2", None),
     ("mlp_in.1->mlp_out.1", "mlp_in.1->mlp_out", 1)],
)  # fmt: skip
def test_lines_are_named_by_the_whole_point(tmp_path, point, site, layer):
    run = write(tmp_path, "a", results(2, 0.3, point=point))
    row = read_frontier({"a": run}).rows[0]
    assert (row["site"], row["layer"]) == (site, layer)
    assert line_of(row) == f"tied <b>tiny</b> {point} x4"


def test_unplaced_runs_have_a_line_too():
    row = {"lm": None, "architecture": "topk", "site": None, "layer": None, "dict_ratio": None}
    assert line_of(row) == "topk"


def runs_of(tmp_path, **made):
    return {name: write(tmp_path, name, found) for name, found in made.items()}


@pytest.mark.slow
def test_seeds_of_one_setting_are_one_point_with_a_spread(tmp_path):
    folders = runs_of(
        tmp_path,
        a=results(10, 0.30, delta_ce=0.2, seed=1), b=results(14, 0.36, delta_ce=0.4, seed=2),
        c=results(100, 0.1, l1=1e-4), other_rate=results(30, 0.5, seed=3, lr=1.0),
    )  # fmt: skip
    frontier = read_frontier(folders)
    (spread,) = frontier.seeds
    assert (spread["seeds"], spread["sparsity"], spread["l0"]) == (2, "l1=0.001", 12)
    assert (spread["fvu_min"], spread["fvu_max"]) == (0.30, 0.36)
    assert spread["fvu_std"] == pytest.approx(np.std([0.30, 0.36], ddof=1))
    assert spread["delta_ce"] == pytest.approx(0.3)
    (line,) = frontier.lines
    assert (line["runs"], line["points"], line["l0_from"]) == (4, 3, 12)
    assert line["area"] == pytest.approx(area([12, 30, 100], [0.33, 0.5, 0.1], 12, 100))
    folder = write_frontier(folders, tmp_path / "out")
    page = (folder / "report.html").read_text()
    assert "Settings with several seeds" in page
    assert "0.3 – 0.36" in page
    assert len((folder / "seeds.csv").read_text().splitlines()) == 2
    assert read_table(folder / "frontier.seeds.parquet") == [spread]


def test_a_setting_that_is_there_twice_with_one_seed_is_no_spread(tmp_path):
    folders = runs_of(
        tmp_path, a=results(10, 0.3, seed=1), b=results(14, 0.4, seed=2), c=results(16, 0.4, seed=2)
    )
    frontier = read_frontier(folders)
    assert frontier.seeds == []
    assert [len(found) for found in points_of(frontier.rows)] == [1, 1, 1]


def points(fvu, half, l0=(10.0, 20.0, 40.0)):
    return [
        [{"l0": at, "l0_low": at, "l0_high": at, "fvu": y, "fvu_low": y - half,
          "fvu_high": y + half}]
        for at, y in zip(l0, fvu, strict=True)
    ]  # fmt: skip


def test_an_area_is_as_uncertain_as_the_runs_that_move_together():
    low, high = area_interval(points((0.4, 0.3, 0.2), half=0.03), 10, 40)
    mean, width = area([10, 20, 40], [0.4, 0.3, 0.2], 10, 40), math.log10(4)
    # all FVU move by one normal number: the area's 95 % are those of FVU times the range
    assert (low - mean) / width == pytest.approx(-0.03, abs=0.003)
    assert (high - mean) / width == pytest.approx(0.03, abs=0.003)
    again = area_interval(points((0.4, 0.3, 0.2), half=0.03), 10, 40)
    assert again == (low, high)
    assert area_interval(points((0.4, 0.3, 0.2), half=0.0), 10, 40) == pytest.approx((mean, mean))
    unknown = points((0.4, 0.3), half=0.1, l0=(1.0, 2.0))
    unknown[0][0]["fvu_low"] = None
    assert area_interval(unknown, 1, 2) is None


def test_the_interval_of_an_area_holds_that_of_drawing_documents_again(tmp_path):
    """Sums of documents that are hard for every run, with a part of each run's own."""
    generator = np.random.default_rng(0)
    documents, l0 = 200, [5.0, 15.0, 60.0]
    hard = generator.gamma(4.0, 1.0, size=documents)
    errors = [level * (hard + 0.5 * generator.gamma(4.0, 1.0, size=documents))
              for level in (0.4, 0.25, 0.1)]  # fmt: skip
    total = 10 * generator.gamma(8.0, 1 / 8, size=documents)
    weights = generator.multinomial(documents, np.full(documents, 1 / documents), size=1000)
    fvu = np.stack([(weights @ e) / (weights @ total) for e in errors])
    truth = np.quantile([area(l0, list(draw), 5, 60) for draw in fvu.T], [0.025, 0.975])
    found = [
        [{"l0": at, "l0_low": at, "l0_high": at, "fvu": e.sum() / total.sum(),
          "fvu_low": np.quantile(draws, 0.025), "fvu_high": np.quantile(draws, 0.975)}]
        for at, e, draws in zip(l0, errors, fvu, strict=True)
    ]  # fmt: skip
    low, high = area_interval(found, 5, 60)
    assert 1 <= (high - low) / (truth[1] - truth[0]) < 1.2


@pytest.mark.slow
def test_areas_come_with_their_interval(runs, tmp_path):
    frontier = read_frontier(runs)
    line = next(line for line in frontier.lines if line["area"] is not None)
    assert line["area_low"] < line["area"] < line["area_high"]
    assert line["common_area_low"] < line["common_area"] < line["common_area_high"]
    lone = next(line for line in frontier.lines if line["area"] is None)
    assert (lone["area_low"], lone["common_area_high"]) == (None, None)
    page = (write_frontier(runs, tmp_path / "out") / "report.html").read_text()
    assert "parametric bootstrap" in page
    low, high = (f"{line[f'area_{end}']:.4g}" for end in ("low", "high"))
    assert f"{low} – {high}" in page
