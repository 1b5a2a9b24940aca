"""All jobs of a sweep as tables, a picture and a page."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae.artifacts.runs import metric, read_json
from sae.errors import ArtifactError
from sae.evals.frontier import pareto_front, read_frontier
from sae.metrics.lines import by_line
from sae.provenance import write_json
from sae.reports.figures import finish, png
from sae.reports.files import read_yaml, table_bytes, write_bytes
from sae.reports.frontier_page import sections, sweep_page
from sae.reports.frontier_plots import FIDELITY, L0_LABEL
from sae.reports.style import MARKERS, axes_of

_METRICS = (
    ("core", "fvu"), ("core", "l0"), ("core", "fvu_median"), ("core", "fvu_under_4_medians"),
    ("core", "fvu_all_rows"), ("core", "first_direction"), ("core", "left_out"),
    ("core", "silent"), ("core", "dense"),
    ("downstream", "ce_recovered_zero"), ("downstream", "ce_recovered_mean"),
    ("downstream", "delta_ce"), ("downstream", "kl"), ("downstream", "top1_agreement"),
)  # fmt: skip
_TRAINING = ("dead", "tokens", "vectors_per_second")
# What moves a point along the trade-off between sparsity and fidelity; the rest makes lines.
_SPARSITY = ("l1", "k", "target_l0", "sae.components")
_PLACE = ("run_dir", "sweep_dir", "hydra", "logger", "launcher", "sweep")
_LOCK, _LOCK_SECONDS = ".sweep.lock", 60
_COUNTS = ".sweep.json"
_EACH, _SHARE = 20, 0.05

Row = dict[str, Any]


def job_ended(sweep_folder: str | Path) -> None:
    """Write tables, plot and page if enough jobs have ended since; call it after every job.

    They are written after each of the first 20 jobs, then when 5 % more have ended: writing reads
    every job, so a sweep of n jobs would otherwise read n^2 / 2. At the end call `finish_sweep`.
    """
    folder = Path(sweep_folder)
    with FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        ended, written = _counts(folder)
        ended += 1
        if due := ended <= _EACH or ended >= (1 + _SHARE) * written:
            _write(folder)
        write_json(folder / _COUNTS, {"ended": ended, "written": ended if due else written})


def finish_sweep(sweep_folder: str | Path) -> None:
    """Write tables, plot and page if a job has ended since they were written."""
    folder = Path(sweep_folder)
    with FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        ended, written = _counts(folder)
        if ended > written:
            _write(folder)
        (folder / _COUNTS).unlink(missing_ok=True)


def _counts(folder: Path) -> tuple[int, int]:
    """Jobs that have ended, and how many had when the table was written; damage counts as none."""
    try:
        noted = read_json(folder / _COUNTS)
        return int(noted.get("ended", 0)), int(noted.get("written", 0))
    except (ArtifactError, TypeError, ValueError):
        return 0, 0


def write_sweep(sweep_folder: str | Path) -> list[Row]:
    """Scan the jobs of a sweep and write its tables, plot and page.

    Jobs are the sub-folders whose names are numbers. Jobs that end at the same time wait for
    each other; a reader never sees half a file.

    Returns:
        The rows of the table: `job`, `status` (finished, failed, running or pending), the swept
        values, metrics of the test split, and what went wrong.
    """
    folder = Path(sweep_folder)
    with FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        return _write(folder)


def _write(folder: Path) -> list[Row]:
    jobs = sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()),
                  key=lambda p: int(p.name))  # fmt: skip
    given = [_settings(job) for job in jobs]
    keys = list(dict.fromkeys(key for overrides, _ in given for key in overrides))
    values = [_values(keys, overrides, config) for overrides, config in given]
    swept = _varied(values)
    rows = [_row(job, {key: value.get(key) for key in swept})
            for job, value in zip(jobs, values, strict=True)]  # fmt: skip
    columns = ["job", "status", *swept, *(name for _, name in _METRICS), *_TRAINING, "error"]
    write_bytes(folder / "sweep.csv", table_bytes(columns, rows))
    write_bytes(folder / "front.csv", table_bytes(columns, pareto_front(rows)))
    write_bytes(folder / "sweep.png", _plot(rows, swept))
    write_bytes(folder / "report.html", _page(folder, columns, rows))
    return rows


def _page(folder: Path, columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    measured = [str(row["job"]) for row in rows if None not in (row["l0"], row["fvu"])]
    if not measured:
        return sweep_page(folder.resolve().name, columns, rows, [])
    found = read_frontier({job: folder / job for job in measured})
    shown = sections(found.rows, by_line(found.rows), found.lines, found.seeds, found.missing)
    return sweep_page(folder.resolve().name, columns, rows, shown)


def _row(job: Path, overrides: Mapping[str, Any]) -> Row:
    results = read_json(job / "results.json")
    error = job / "error.txt"
    if results:
        status = "finished"
    elif error.exists():
        status = "failed"
    else:
        status = "running" if (job / "config.yaml").exists() else "pending"
    row: Row = {"job": int(job.name), "status": status, **overrides}
    for evaluation, name in _METRICS:
        row[name] = metric(results, evaluation, name).get("value")
    training = results.get("training")
    for name in _TRAINING:
        row[name] = training.get(name) if isinstance(training, Mapping) else None
    told = error.read_text(encoding="utf-8", errors="replace") if status == "failed" else None
    row["error"] = None if told is None else _reason(told)
    return row


def _reason(text: str) -> str:
    """The line that says what went wrong: the first, or of a traceback the last."""
    lines = text.strip().splitlines() or [""]
    return lines[-1] if "Traceback" in lines[0] else lines[0]


def _settings(job: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Overrides of this job, and its configuration; empty where not there."""
    recorded = read_yaml(job / ".hydra" / "overrides.yaml")
    entries = recorded if isinstance(recorded, list) else []
    pairs = [str(entry).lstrip("+").partition("=")[::2] for entry in entries]
    config = read_yaml(job / "config.yaml")
    overrides = {key: value for key, value in pairs if not key.startswith(_PLACE)}
    return overrides, config if isinstance(config, Mapping) else {}


def _values(
    keys: Sequence[str], overrides: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """A job's values of the overridden keys; of its plain settings where no job has a record.

    The configuration is what the job really ran with. Before it starts there is none yet, and a
    group such as `sae=topk` has no plain value in it: there the override counts.
    """
    if not keys:
        keys = [key for key in config if not key.startswith(_PLACE)]
    values = {}
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, Mapping):
            value = overrides.get(key)
        if value is not None:
            values[key] = _text(value)
    return values


def _text(value: Any) -> str:
    """One spelling for a value, however it was written.

    Example:
        >>> _text("1e-3"), _text(0.001), _text(2_000_000.0), _text("resid")
        ('0.001', '0.001', '2000000', 'resid')
    """
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):.12g}"
    except (TypeError, ValueError):
        return str(value)


def _varied(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys that differ between jobs, in order of first appearance; all of them for one job."""
    known = [job for job in jobs if job]
    keys = list(dict.fromkeys(key for job in known for key in job))
    return keys if len(known) < 2 else [k for k in keys if len({job.get(k) for job in known}) > 1]


def _plot(rows: Sequence[Row], swept: Sequence[str]) -> bytes:
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    left, right = axes_of(figure, columns=2)[0]
    handles = _panel(left, rows, swept, "fvu", FIDELITY["fvu"], shift=(5, 5))
    front = [row for row in pareto_front(rows) if row["l0"] > 0]
    if len(front) < sum(row["status"] == "finished" for row in rows):
        x, y = [row["l0"] for row in front], [row["fvu"] for row in front]
        handles += left.plot(x, y, "o--", color="#333333", markersize=10, markerfacecolor="none",
                             linewidth=1, label="front: no job is better in both")  # fmt: skip
    name = "ce_recovered_zero"
    _panel(right, rows, swept, name, FIDELITY[name], shift=(6, -9))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6),
                      frameon=False)  # fmt: skip
    states = [row["status"] for row in rows]
    counts = [f"{states.count(s)} {s}" for s in ("finished", "failed", "running", "pending")
              if s in states]  # fmt: skip
    figure.suptitle(
        f"{len(rows)} jobs: {', '.join(counts)}" if rows else "no jobs yet", fontsize=11
    )
    return png(figure)


def _panel(
    axes: Axes,
    rows: Sequence[Row],
    swept: Sequence[str],
    name: str,
    label: str,
    shift: tuple[int, int],
) -> list:
    """Draw one metric over L0; `shift` keeps the labels off curves that fall or rise."""
    points = [row for row in rows if row[name] is not None and (row["l0"] or 0) > 0]
    by = [key for key in swept if key not in _SPARSITY]
    knobs = [key for key in swept if key in _SPARSITY]
    # of all rows, so that a group has the same colour in both panels, whatever is missing in one
    groups: dict[str, list[Row]] = {}
    for row in rows:
        group = ", ".join(f"{key}={row[key]}" for key in by if row[key] is not None)
        if group or not by:  # a job that has not started yet belongs to no group
            groups.setdefault(group, []).extend([row] if row in points else [])
    handles = []
    for (group, members), marker in zip(groups.items(), cycle(MARKERS)):
        members.sort(key=lambda row: row["l0"])
        x, y = [row["l0"] for row in members], [row[name] for row in members]
        handles += axes.plot(x, y, marker=marker, markersize=5, linewidth=1.5, label=group or None)
        for row in members:
            text = ", ".join(f"{key}={row[key]}" for key in knobs if row[key] is not None)
            axes.annotate(text or str(row["job"]), (row["l0"], row[name]), fontsize=7.5,
                          textcoords="offset points", xytext=shift, color="#555555")  # fmt: skip
    axes.margins(x=0.16, y=0.12)
    finish(axes, L0_LABEL, label, [row["l0"] for row in points])
    return handles
