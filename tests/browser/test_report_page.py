"""Every report.html in a real browser, with nothing reachable."""

import base64
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from callbacks.metrics_csv import MetricsCSV
from sae.artifacts.placed import PlacedSAE
from sae.evals.base import Estimate, EvalResult
from sae.evals.compare import _PAIR
from sae.evals.frontier import FrontierEval
from sae.reports import write_pages, write_report
from sae.tables import Table

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--v=0",
)  # fmt: skip

# Added to a copy of the page: once the plots are drawn it sorts a column of numbers of the first
# table, up and down, and writes what the browser made of it all into the page itself.
PROBE = """
<script>
window.onerror = (message) => { document.body.dataset.error = message; };
window.onunhandledrejection = (event) => { document.body.dataset.error = event.reason; };
const column = (table, i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
function look() {
  const plots = [...document.querySelectorAll(".plot")].map((place) => {
    const box = place.querySelector("svg.main-svg").getBoundingClientRect();
    const marks = place.querySelectorAll(".trace path, .point path, .hm image");
    return [place.getAttribute("aria-label"), box.width, box.height, marks.length];
  });
  const texts = [...document.querySelectorAll(".plot text")].map((text) => text.textContent);
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  const table = document.querySelector("table"), heads = [...table.rows[0].cells];
  const numbers = ["trained on", "mmcs", "Value"];
  const chosen = heads.findLastIndex((head) => numbers.includes(head.textContent));
  const sorted = {before: column(table, chosen)};
  for (const way of ["up", "down"]) {
    table.rows[0].cells[chosen].querySelector("button").click();
    sorted[way] = column(table, chosen);
    sorted[way + "_aria"] = table.rows[0].cells[chosen].getAttribute("aria-sort");
  }
  const seen = JSON.stringify({plots, texts, loaded, wide, sorted});
  document.body.dataset.seen = btoa(String.fromCharCode(...new TextEncoder().encode(seen)));
}
const wait = setInterval(() => {
  if ("drawn" in document.body.dataset) { clearInterval(wait); look(); }
}, 50);
</script>
"""


def chromium(tmp_path, *arguments):
    assert CHROMIUM, "install Debian's chromium for the browser tests"
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.fixture
def page(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(1, 200):
        numbers = {"train/loss": 5 / step, "train/fvu": 5 / step, "tokens": 64.0 * step}
        numbers |= {"train/l0": 900 / step, "train/dead": 1 / step}
        if step % 20 == 0:
            numbers |= {"val/fvu": 6 / step, "val/ce_recovered_zero": 1 - 5 / step}
        table.log_metrics(numbers, step=step)
    histogram = {"log10_edges": [-3.0, -2.0, -1.0, 0.0], "latents": [3, 5, 1], "silent": 2}
    core = EvalResult(
        "core", {"fvu": Estimate(0.1, 0.09, 0.11)}, {"vectors": 9}, {"firing_histogram": histogram}
    )
    (tmp_path / "results.json").write_text(json.dumps({"core": core.to_json()}))
    return write_report(tmp_path)


def frontier(tmp_path):
    runs = {}
    for name, architecture, l0, fvu, l1 in (
        ("one", "tied", 5.0, 0.4, 1e-2), ("two", "tied", 50.0, 0.1, 1e-3),
        ("<img src=x onerror=alert(1)>", "topk", 20.0, 0.3, None),
    ):  # fmt: skip
        made = {"settings": {"sae": {"l1": l1}}, "activations": {"lm": {"name": "<b>tiny</b>"}}}
        sae = {"architecture": architecture, "d_in": 8, "d_sae": 64, "metadata": made}
        core = EvalResult(
            "core",
            {"l0": Estimate(l0, 0.9 * l0, 1.1 * l0), "fvu": Estimate(fvu, 0.9 * fvu, 1.1 * fvu),
             "silent": Estimate(0.25)},
            {"vectors": 900}, provenance={"sae": sae, "point": "resid.4"},
        )  # fmt: skip
        downstream = EvalResult(
            "downstream",
            {"ce_recovered_zero": Estimate(1 - fvu, 0.5, 1.0), "delta_ce": Estimate(fvu)},
            {"tokens": 100 * len(name)},
        )
        runs[name] = tmp_path / str(len(runs))
        runs[name].mkdir()
        content = {"core": core.to_json(), "downstream": downstream.to_json(),
                   "training": {"tokens": int(1000 * fvu)}}  # fmt: skip
        (runs[name] / "results.json").write_text(json.dumps(content))

    def unloaded(*_: Any) -> Any:
        raise AssertionError

    subjects = [PlacedSAE(unloaded, unloaded, name, run) for name, run in runs.items()]
    return page_of(FrontierEval().run(subjects), tmp_path)


def comparison(tmp_path):
    rows = [
        {"first": first, "second": second, "latents": 8, "mmcs": value, "max_correlation": value}
        for first, second, value in (("<b>a</b>", "b", 0.25), ("b", "<b>a</b>", 0.5))
    ]
    return page_of(
        EvalResult(
            "compare", {}, {}, {"names": ["<b>a</b>", "b"]}, {"num_tokens": 1000},
            tables={"pairs": Table.of(_PAIR, rows)},
        ),
        tmp_path,
    )  # fmt: skip


def page_of(result, tmp_path):
    folder = tmp_path / result.eval
    folder.mkdir()
    write_pages(result, folder)
    return folder / "report.html"


def look(page, tmp_path, width):
    """What the probe saw; no error, nothing fetched, every plot drawn."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    done = chromium(
        tmp_path, f"--window-size={width},1600", "--virtual-time-budget=30000", "--dump-dom",
        probed.as_uri(),
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "data-error" not in done.stdout
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found
    seen = json.loads(base64.b64decode(found[1]))
    for name, plot_width, height, marks in seen["plots"]:
        assert min(plot_width, height) > 100, name
        assert marks > 0, name
    assert [url for url in seen["loaded"] if not url.startswith(("data:", "file:", "blob:"))] == []
    assert seen["wide"] <= 0  # nothing to scroll sideways
    assert seen["sorted"]["up_aria"] == "ascending"
    assert seen["sorted"]["down_aria"] == "descending"
    return seen


@pytest.mark.parametrize("width", [1200, 500])  # headless Chromium is never narrower than 500
def test_the_report_is_drawn_without_errors_and_without_network(page, tmp_path, width):
    seen = look(page, tmp_path, width)
    names = [plot[0] for plot in seen["plots"]]
    assert names == ["Loss", "FVU", "L0", "Dead", "CE recovered", "Firing"]
    assert {"silent", "tokens"} <= set(seen["texts"])


@pytest.mark.parametrize("width", [1200, 500])
def test_a_frontier_is_drawn_and_sorted(tmp_path, width):
    seen = look(frontier(tmp_path), tmp_path, width)
    names = [plot[0] for plot in seen["plots"]]
    assert names == ["FVU", "CE recovered, zero ablation", "Over latents of the dictionary",
                     "Over l1"]  # fmt: skip
    assert "tied <b>tiny</b> resid.4 x8" in seen["texts"]  # as text, not as bold letters
    assert seen["sorted"]["before"] == ["400", "100", "300"]
    assert seen["sorted"]["up"] == ["100", "300", "400"]
    assert seen["sorted"]["down"] == ["400", "300", "100"]


def test_a_comparison_is_drawn_and_sorted(tmp_path):
    seen = look(comparison(tmp_path), tmp_path, 500)
    assert [plot[0] for plot in seen["plots"]] == [
        "mean max cosine, row in column", "mean max correlation, row in column",
    ]  # fmt: skip
    assert {"<b>a</b>", "0.25", "0.5"} <= set(seen["texts"])
    assert seen["sorted"]["down"] == ["0.5", "0.25"]


def test_a_screenshot_shows_more_than_an_empty_page(page, tmp_path):
    picture = tmp_path / "report.png"
    chromium(
        tmp_path, f"--screenshot={picture}", "--window-size=1200,1600",
        "--virtual-time-budget=30000", page.as_uri(),
    )  # fmt: skip
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (1600, 1200)
    assert len({tuple(p) for p in (pixels[::4, ::4, :3] * 255).astype(int).reshape(-1, 3)}) > 50
