"""Manifest, progress and metrics.csv of a run."""

import io
import json
import logging

import pytest
from _fitted import Module, fit
from rich.console import Console

from callbacks.dead_features import DeadFeatures
from callbacks.manifest import Manifest
from callbacks.metrics_csv import MetricsCSV
from callbacks.progress import TrainingProgress
from callbacks.reconstruction import Reconstruction

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning with torch 2.13
]


def test_manifest_keeps_all_sessions(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = Manifest(path, config={"l1": 1e-3}, seeds={"seed": 3})
    with manifest.stage("harvest"):
        pass
    fit([manifest], [])
    content = json.loads(path.read_text())
    assert (content["config"], content["seeds"]) == ({"l1": 1e-3}, {"seed": 3})
    (session,) = content["sessions"]
    assert (session["status"], session["from_step"], session["to_step"]) == ("finished", 0, 6)
    assert set(session["stage_seconds"]) == {"harvest", "train", "validate"}
    assert session["training"]["vectors"] == 48
    assert session["training"]["vectors_per_second"] > 0
    assert session["versions"]["torch"]

    class Killed(Exception):
        pass

    class KillsLater(Module):
        def training_step(self, x, batch_idx):
            if self.global_step == 4:
                raise Killed
            return super().training_step(x, batch_idx)

    with pytest.raises(Killed):
        fit([Manifest(path)], [], module=KillsLater())
    content["sessions"].append({**session, "started_utc": "later", "status": "running"})
    del content["checksum"]  # it was changed on purpose
    path.write_text(json.dumps(content))
    fit([third := Manifest(path)], [])
    with third.stage("evaluate"):
        pass
    sessions = json.loads(path.read_text())["sessions"]
    assert [s["status"] for s in sessions] == ["finished", "killed", "finished"]
    assert "evaluate" in sessions[-1]["stage_seconds"]


def test_manifest_says_why_a_session_failed(tmp_path):
    class Diverges(Module):
        def training_step(self, x, batch_idx):
            raise RuntimeError("loss is nan")

    with pytest.raises(RuntimeError):
        fit([Manifest(tmp_path / "manifest.json")], [], module=Diverges())
    (session,) = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert (session["status"], session["error"]) == ("failed", "RuntimeError: loss is nan")


def test_progress_draws_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    fit([TrainingProgress(console=console), Reconstruction(), DeadFeatures()], [])
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "6/6" in text
    assert "vectors/s" in text
    assert "l0 1, dead 50.0 %" in text


def test_progress_logs_lines_elsewhere(caplog):
    console = Console(file=io.StringIO())
    with caplog.at_level(logging.INFO, "callbacks.progress"):
        fit([TrainingProgress(log_seconds=0.0, console=console), DeadFeatures()], [])
    lines = [r.getMessage() for r in caplog.records if r.name == "callbacks.progress"]
    assert lines[0].startswith("train: step 1 of 6, ")
    assert " s left" in lines[0]
    assert "dead 50.0 %" in lines[-1]
    assert console.file.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics_csv_holds_training_and_validation_in_one_row(tmp_path):
    fit([Reconstruction(), DeadFeatures()], [MetricsCSV(tmp_path / "metrics.csv")])
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert names[:3] == ["step", "tokens", "train/loss"]
    assert "epoch" not in names
    assert [row.split(",")[:2] for row in rows] == [
        ["1", "16"], ["2", "24"], ["3", "32"], ["5", "48"],
    ]  # fmt: skip
    assert all(rows[-1].split(","))
