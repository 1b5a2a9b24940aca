"""report.html in a real browser, with nothing reachable."""

import json
import re
import shutil
import subprocess

import pytest

from callbacks.metrics_csv import MetricsCSV
from sae.evals.base import Estimate, EvalResult
from sae.reports import write_report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--v=0",
)  # fmt: skip

# Added to a copy of the page: writes what the browser made of it into the page itself.
PROBE = """
<script>
window.onerror = (message) => { document.body.dataset.error = message; };
window.onload = () => {
  const plots = [...document.querySelectorAll("svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    return [svg.getAttribute("aria-label"), box.width, box.height, svg.querySelectorAll("path").length];
  });
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  document.body.dataset.seen = btoa(JSON.stringify({plots: plots, loaded: loaded, wide: wide}));
};
</script>
"""  # noqa: E501


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


@pytest.mark.parametrize("width", [1200, 500])  # headless Chromium is never narrower than 500
def test_the_report_is_drawn_without_errors_and_without_network(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    done = chromium(tmp_path, f"--window-size={width},1600", "--dump-dom", probed.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "data-error" not in done.stdout
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found
    import base64

    seen = json.loads(base64.b64decode(found[1]))
    names = [plot[0] for plot in seen["plots"]]
    assert names == ["Loss", "FVU", "L0", "Dead", "CE recovered", "How often latents fire"]
    for name, plot_width, height, paths in seen["plots"]:
        assert min(plot_width, height) > 100, name
        assert paths > 5, name
    assert [url for url in seen["loaded"] if not url.startswith(("data:", "file:"))] == []
    assert seen["wide"] <= 0  # nothing to scroll sideways


def test_a_screenshot_shows_more_than_an_empty_page(page, tmp_path):
    picture = tmp_path / "report.png"
    chromium(tmp_path, f"--screenshot={picture}", "--window-size=1200,1600", page.as_uri())
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (1600, 1200)
    assert len({tuple(p) for p in (pixels[::4, ::4, :3] * 255).astype(int).reshape(-1, 3)}) > 50
