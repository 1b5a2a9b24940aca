"""Pictures of benchmarks show what their tables say."""

import re
from importlib import resources

import numpy as np
import pytest

from benchmarks import speed_picture
from benchmarks.common import Spread
from benchmarks.quality import picture
from sae.reports.style import TONES


def contender(name, l0, fvu, further):
    test = [{"l0": l0, "fvu": value} for value in fvu]
    points = [{"l0": at, "fvu": value} for at, value in further]
    return {"contender": name, "l0": 8, "at_l0": fvu, "test": test, "further": points}


def test_a_frontier_is_a_line_on_logarithmic_axes():
    row = contender("ours/topk", 8, [0.1, 0.1], [(4, 0.2), (16, 0.05)])
    found = picture.frontier(row, np.array([2.0, 4.0, 4 * 2**0.5, 8.0, 16.0, 17.0, 32.0]))
    expected = [np.nan, 0.2, 0.2 / 2**0.5, 0.1, 0.05, 0.05, np.nan]
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_lines_are_the_best_kind_and_bands_end_at_the_median():
    rows = [
        contender("ours/a", 8, [0.1], [(4, 0.2), (16, 0.05)]),
        contender("ours/b", 8, [0.12], [(4, 0.1), (16, 0.2)]),
        contender("ours/c", 8, [0.4], [(4, 0.8), (16, 0.4)]),
        contender("authors/tied", 8, [0.9], [(4, 0.95), (16, 0.9)]),
        contender("sparsify/topk", 8, [0.3], [(4, 0.3), (16, 0.3)]),
    ]
    (axes,) = picture.plot({"made up": rows}).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert set(lines) == {"ours", "sparsify"}
    assert lines["ours"][[0, 4, 8]] == pytest.approx([0.1, 0.1, 0.05])
    band = axes.collections[0].get_paths()[0].vertices
    assert {0.2, 0.12} <= {round(float(y), 6) for y in band[:, 1]}


def test_bars_are_one_a_library_and_kind():
    rate = Spread(4000.0, 3000.0, 5000.0)
    entries = [
        (name, library, rate)
        for name, library in [
            ("products float32", "limit"), ("l1, auto", "ours"), ("l1, dense", "ours"),
            ("tied, auto", "ours"), ("plain autograd float32", "by hand"),
            ("sae-lens l1", "sae-lens"), ("sae-lens l1 bf16", "sae-lens"),
            ("dictionary_learning l1", "dictionary_learning"),
        ]
    ]  # fmt: skip
    (axes,) = speed_picture.plot({"l1, L0 64": entries}, "2 threads").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "ours", "sae-lens", "dictionary_learning"
    ]  # fmt: skip
    assert [bar.get_width() for bar in axes.patches] == [4.0] * 3


def test_dashboards_have_the_colours_of_all_plots():
    css = (resources.files("sae.reports.dashboard") / "assets/dashboard.css").read_text()
    light = dict(reversed(re.findall(r"--tone-(\d): (#[0-9a-f]{6});", css)))
    assert [light[str(i)] for i in range(9)] == list(TONES[:9])
