import base64
import csv
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from plotly.offline import get_plotlyjs

from callbacks.metrics_csv import MetricsCSV
from sae.errors import ArtifactError
from sae.evals.base import Estimate, EvalResult
from sae.functional import firing_histogram
from sae.reports import write_report, write_sweep
from sae.reports.figures import curves_plot, histogram_plot
from sae.reports.page import Cell, Plot, Section, Table, plain, render


def plots(page):
    """What Plotly is given, by title."""
    found = re.findall(
        r'aria-label="([^"]*)"><script type="application/json">(.*?)</script>', page, flags=re.S
    )
    return {title: json.loads(spec) for title, spec in found}


def results(fvu=0.1, l0=90.0, recovered=0.98):
    import torch

    core = EvalResult(
        "core",
        {"fvu": Estimate(fvu, 0.09, 0.11), "l0": Estimate(l0), "dense": Estimate(0.012)},
        {"vectors": 200_123},
        details={"firing_histogram": firing_histogram(torch.logspace(-4, -1, 50))},
    )
    downstream = EvalResult(
        "downstream",
        {"ce_recovered_zero": Estimate(recovered, 0.97, 0.99), "ce_recovered_mean": Estimate(None)},
        {"tokens": 32_768, "predictions": 31_900},
    )
    training = {"tokens": 3_550_000, "vectors_per_second": 10_432.1, "dead": 0.0023}
    return {"core": core.to_json(), "downstream": downstream.to_json(), "training": training}


def write_run(folder, *, finished=True, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "sae: {architecture: tied, l1: 0.001}\nlm: {name: <b>tiny</b>}\n"
        "activations: {layer: 4, site: resid}\n"
    )
    table = MetricsCSV(folder / "metrics.csv", resume_step=0)
    for step in range(10, 3_000, 10):
        values_now = {"train/loss": 5 / step, "train/fvu": 5 / step, "tokens": 64.0 * step}
        if step % 500 == 0:
            values_now |= {"val/fvu": 6 / step, "val/ce_recovered_zero": 1 - 50 / step}
        table.log_metrics(values_now, step=step)
    if finished:
        (folder / "results.json").write_text(json.dumps(results(**values)))


def test_a_finished_run_shows_curves_tables_intervals_and_counts(tmp_path):
    write_run(tmp_path / "run")
    session = {"started_utc": "2026-01-01T10:00:00+00:00", "status": "killed"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"sessions": [session]}))
    path = write_report(tmp_path / "run")
    page = path.read_text()
    assert path == tmp_path / "run" / "report.html"
    assert list(plots(page)) == ["Loss", "FVU", "CE recovered", "Firing"]
    assert plots(page)["FVU"]["traces"][1]["y"][-1] == 6 / 2500
    assert plots(page)["FVU"]["traces"][1]["x"][-1] == 64 * 2500
    for words in ("0.09 – 0.11", "200,123 vectors", "32,768 tokens, 31,900 predictions", "1.2 %",
                  "0.23 %", "3,550,000", "killed", "tied l1=0.001", "resid.4"):  # fmt: skip
        assert words in page, words
    assert '<td>CE recovered (mean)</td><td class="number">–</td>' in page
    assert "<b>tiny</b>" not in page
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    plotly = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', page, flags=re.S)
    assert plotly
    assert page.count(plotly[1][:50]) == 1  # once a page
    assert gzip.decompress(base64.b64decode(plotly[1])).decode() == get_plotlyjs()
    assert not re.search(r"https?://|//cdn|@import|src=", page.replace(plotly[0], ""))
    assert len(page) < 2_500_000
    assert write_report(tmp_path).read_text() == page


@pytest.mark.parametrize("left", ["config.yaml", "metrics.csv", "results.json", "manifest.json"])
def test_any_part_of_a_run_gives_a_page(tmp_path, left):
    write_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    for path in tmp_path.iterdir():
        if path.name != left:
            path.unlink()
    if left == "manifest.json":
        (tmp_path / left).write_text('{"sessions": [{}]}')
    assert "</html>" in write_report(tmp_path).read_text()


def test_an_unfinished_run_shows_its_latest_numbers(tmp_path):
    write_run(tmp_path, finished=False)
    page = write_report(tmp_path).read_text()
    assert "not finished yet" in page
    assert "latest value" in page
    assert "0.0024" in page  # val/fvu at step 2500


def test_unusable_folders_are_errors_that_name_the_file(tmp_path):
    with pytest.raises(ArtifactError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"results\.json is damaged"):
        write_report(tmp_path)


@pytest.fixture
def sweep(tmp_path):
    job = 0
    for layer in (2, 4):
        for l1 in ("1e-3", "3e-3"):
            folder = tmp_path / str(job)
            write_run(folder, finished=job < 2, l0=90.0 / (job + 1), fvu=0.1 * (job + 1))
            (folder / ".hydra").mkdir()
            overrides = [f"l1={l1}", f"layer={layer}", "seed=0", f"run_dir=x{job}"]
            (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
            job += 1
    (tmp_path / "2" / "error.txt").write_text("Traceback …\nDivergedError: loss is nan\n")
    (tmp_path / "4").mkdir()
    (tmp_path / "not-a-job").mkdir()
    return tmp_path


def test_sweep_table_has_a_row_a_job(sweep):
    rows = write_sweep(sweep)
    with (sweep / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:6] == ["job", "status", "l1", "layer", "fvu", "l0"]
    assert [r["status"] for r in table] == ["finished", "finished", "failed", "running", "pending"]
    assert [(r["l1"], r["layer"]) for r in table[:3]] == [
        ("0.001", "2"), ("0.003", "2"), ("0.001", "4"),
    ]  # fmt: skip
    assert (table[1]["fvu"], table[1]["dead"], table[1]["ce_recovered_mean"]) == (
        "0.2", "0.0023", "",
    )  # fmt: skip
    assert table[2]["error"] == "DivergedError: loss is nan"
    assert rows[1]["l0"] == 45.0
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    page = (sweep / "report.html").read_text()
    assert "5 jobs: 2 finished, 1 failed, 1 running, 1 pending" in page
    assert "DivergedError: loss is nan" in page
    assert plots(page)["FVU"]["traces"][0]["x"] == [45, 90]


def test_the_table_shows_what_a_job_ran_with_not_what_was_asked_last(sweep):
    config = sweep / "0" / "config.yaml"
    config.write_text(config.read_text() + "l1: 0.001\nlayer: 2\n")
    (sweep / "0" / ".hydra" / "overrides.yaml").write_text('["l1=0.7", "layer=9"]')
    (sweep / "3" / "config.yaml").unlink()  # has not started: its overrides are all there is
    rows = write_sweep(sweep)
    assert (rows[0]["l1"], rows[0]["layer"]) == ("0.001", "2")
    assert (rows[3]["l1"], rows[3]["layer"]) == ("0.003", "4")


def test_swept_groups_are_shown_by_their_option(tmp_path):
    for job, option in enumerate(("tied", "topk")):
        write_run(tmp_path / str(job))
        (tmp_path / str(job) / ".hydra").mkdir()
        (tmp_path / str(job) / ".hydra" / "overrides.yaml").write_text(f'["sae={option}"]')
    assert [row["sae"] for row in write_sweep(tmp_path)] == ["tied", "topk"]


def test_a_retried_job_counts_as_finished(sweep):
    (sweep / "2" / "results.json").write_text(json.dumps(results()))
    assert write_sweep(sweep)[2]["status"] == "finished"


@pytest.mark.slow
def test_jobs_that_end_together_leave_whole_files(sweep):
    with ThreadPoolExecutor(4) as pool:
        assert len({len(rows) for rows in pool.map(write_sweep, [sweep] * 6)}) == 1
    assert not [p.name for p in sweep.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [500, 1000])
def test_a_long_sweep_reads_a_bounded_number_of_jobs_for_each(tmp_path, monkeypatch, jobs):
    """Writing the table reads every job there is; that happens more and more seldom."""
    from sae.reports import sweep as module

    read, written = [], []

    def write(folder):
        written.append(len(ended))
        read.extend(ended)

    ended: list[int] = []
    monkeypatch.setattr(module, "_write", write)
    for job in range(jobs):
        ended.append(job)
        module.job_ended(tmp_path)
        assert len(ended) - written[-1] <= 0.05 * len(ended)  # what a reader may miss
    assert written[:20] == list(range(1, 21))
    assert len(read) <= 25 * jobs  # and not jobs / 2 for each
    module.finish_sweep(tmp_path)
    assert written[-1] == jobs
    before = len(written)
    module.finish_sweep(tmp_path)
    assert len(written) == before
    assert not (tmp_path / module._COUNTS).exists()


@pytest.mark.slow
def test_counts_of_a_sweep_that_are_damaged_are_those_of_a_new_one(sweep):
    from sae.reports import sweep as module

    for content in ("{", "[]", '{"ended": "x"}', '{"ended": null}'):
        (sweep / module._COUNTS).write_text(content)
        (sweep / "sweep.csv").unlink(missing_ok=True)
        module.job_ended(sweep)
        assert (sweep / "sweep.csv").exists()


def test_a_sweep_without_results_or_hydra_records_is_drawn_too(tmp_path):
    assert write_sweep(tmp_path) == []
    for job, seed in enumerate((1, 2)):
        (tmp_path / str(job)).mkdir()
        (tmp_path / str(job) / "config.yaml").write_text(f"layer: 4\nseed: {seed}\nlm: {{}}\n")
    assert [row["seed"] for row in write_sweep(tmp_path)] == ["1", "2"]
    assert "layer" not in write_sweep(tmp_path)[0]


def test_plots_hold_no_markup_from_outside():
    curve = histogram_plot("Firing", "", [-2.0, -1.0, 0.0], [3, 1], 2)
    assert [trace["y"] for trace in curve.traces] == [[3, 1], [2]]
    table = Table("<i>t</i>", ("a", "b"), [[Cell("</script><script>x"), Cell("–")]])
    label = plain('<a href="javascript:x">')
    named = Plot("P", "", [{"type": "scatter", "name": label, "x": [1], "y": [2]}], {})
    page = render("<u>", "", [Section("S", [named], [table])]).decode()
    for words in ("<u>", "<i>", "</script><script>x", "<a href"):
        assert words not in page.replace("</u>", ""), words
    assert plots(page)["P"]["traces"][0]["name"] == "&lt;a href=&#34;javascript:x&#34;&gt;"


def test_a_page_without_plots_carries_no_plotly():
    table = Table("t", ("a", "b"), [[Cell("x"), Cell("1", 1)]])
    page = render("t", "", [Section("S", tables=[table]), Section("empty")])
    assert len(page) < 20_000
    assert b'data-value="1">1<' in page
    assert b"empty</h2>" not in page


def test_long_curves_are_thinned_and_logarithmic_only_where_positive():
    x = [float(i) for i in range(5000)]
    plot = curves_plot("L", "", {"a": (x, [0.0, *x[1:]]), "b": ([1.0], [float("nan")])}, "log")
    assert 1000 < len(plot.traces[0]["x"]) <= 1501
    assert plot.traces[0]["x"][-1] == 4999
    assert plot.traces[1]["x"] == []
    assert "type" not in plot.layout["yaxis"]
    positive = curves_plot("L", "", {"a": (x[1:], x[1:])}, "log")
    assert positive.layout["yaxis"]["type"] == "log"
