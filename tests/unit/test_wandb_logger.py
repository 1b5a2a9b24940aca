import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.dead_features import HistogramLogger
from callbacks.wandb_logger import WandbRun, make_wandb_logger
from sae.errors import ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HISTOGRAM = {"log10_edges": [-2.0, -1.0, 0.0], "latents": [3, 4], "silent": 1}

# Own processes: wandb keeps what it found out about logins for the life of a process.
START = """
import json, logging, os, pathlib, signal, subprocess, sys
sys.path.insert(0, sys.argv[1])
folder = pathlib.Path(sys.argv[2])
warnings = []
class Keep(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
logging.getLogger("callbacks").addHandler(Keep())
from callbacks.wandb_logger import make_wandb_logger
lazy = "wandb" not in sys.modules
"""
OFFLINE = (
    START
    + f"histogram = {HISTOGRAM}"
    + """
disabled = make_wandb_logger("disabled", folder=folder / "off")
os.environ["WANDB_MODE"] = "disabled"
disabled_by_variable = make_wandb_logger(folder=folder / "off")
del os.environ["WANDB_MODE"]
still_lazy = "wandb" not in sys.modules
(folder / "sae").mkdir()
(folder / "sae" / "config.json").write_text("{}")
runs = []
for mode in ("auto", "online"):  # nobody is logged in
    board = make_wandb_logger(mode, folder=folder, group="sweep_a", name="job_1",
                              config={"sae": {"l1": 1e-3}})
    board.log_metrics({"val/fvu": 0.5, "tokens": 10.0, "epoch": 0}, step=1)
    board.log_firing_histogram(histogram, 1)
    board.log_latents([{"latent": "3", "density": 0.5, "max": 2.0,
                        "contexts": [{"pieces": ["a", " b"], "peak": 1}]},
                       {"latent": "4", "density": 0.0, "max": 0.0, "contexts": []}], 1)
    assert not board._broken
    board.log_results([{"metric": "fvu", "value": 0.25, "low": 0.2, "high": 0.3},
                       {"metric": "ce_recovered_zero", "value": None, "low": None, "high": None}])
    board.log_sae(folder / "sae")
    summary = dict(board.experiment.summary)
    runs.append([board.version, str(board.sync_folder), board.name, summary["final/fvu"]])
    board.close()
    board.close()
import wandb
open_run = wandb.run
os.environ["WANDB_DIR"] = str(folder / "elsewhere")
board = make_wandb_logger(folder=folder / "second")
elsewhere = str(board.sync_folder)
before = len(warnings)
core = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True)
for pid in core.stdout.split():
    os.kill(int(pid), signal.SIGKILL)
for step in range(50):
    board.log_metrics({"val/fvu": 0.5}, step=step)
broken = warnings[before:]
print(json.dumps(dict(lazy=lazy, still_lazy=still_lazy, off=[disabled, disabled_by_variable],
    runs=runs, warnings=warnings, open_run=open_run, elsewhere=elsewhere, broken=broken,
    stdin=sys.stdin.read())))
"""
)
UNREACHABLE = (
    START
    + """
offline = []
for key in ("short", "a1" * 20):
    os.environ["WANDB_API_KEY"] = key
    board = make_wandb_logger("auto", folder=folder)
    board.log_metrics({"val/fvu": 0.5, "tokens": 10.0}, step=1)
    offline.append(board.experiment.offline)
    board.close()
print(json.dumps(dict(warnings=warnings, offline=offline, stdin=sys.stdin.read())))
"""
)


def run_script(script, folder, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    clean |= {"HOME": str(folder / "home"), "WANDB_ERROR_REPORTING": "false", **environment}
    (folder / "home").mkdir()
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(folder)], cwd=folder,
        input="3\nan answer to a question\n", env=clean, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - start


def test_offline_runs_are_complete_resumable_and_survive_a_dead_service(tmp_path):
    seen, _ = run_script(OFFLINE, tmp_path)
    assert seen["lazy"]
    assert seen["still_lazy"]
    assert seen["off"] == [None, None]
    assert not (tmp_path / "off").exists()
    (id_1, folder_1, project, final), (id_2, folder_2, *_) = seen["runs"]
    assert (project, final) == ("lightning-sae", 0.25)
    assert id_1 == id_2 == (tmp_path / "wandb_id.txt").read_text().strip()
    assert folder_1 != folder_2
    for folder in map(Path, (folder_1, folder_2)):
        assert folder.parent == tmp_path / "wandb"
        assert folder.name.startswith("offline-run-")
        content = (folder / f"run-{id_1}.wandb").read_bytes()
        for word in ("val/fvu", "sweep_a", "job_1", "val/firing_log10_frequency", "final/fvu",
                     f"sae-{id_1}", "config.json"):  # fmt: skip
            assert word.encode() in content, word
        assert list((folder / "files" / "media" / "table").glob("final_*.table.json"))
    assert seen["open_run"] is None
    assert Path(seen["elsewhere"]).is_relative_to(tmp_path / "elsewhere")
    assert seen["warnings"][0].startswith("W&B is not logged in")
    assert len(seen["broken"]) == 1
    assert "training goes on without it" in seen["broken"][0]
    assert seen["stdin"] == "3\nan answer to a question\n"


def test_a_bogus_key_and_no_server_mean_offline_runs_with_one_warning_each(tmp_path):
    seen, seconds = run_script(
        UNREACHABLE, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_HTTP_TIMEOUT="2"
    )
    assert seen["offline"] == [True, True]
    short, bogus = seen["warnings"]
    assert "API key must have 40" in short
    assert "cannot be used online" in bogus
    assert seen["stdin"] == "3\nan answer to a question\n"
    assert seconds < 60  # imports included, on a busy machine
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_a_service_that_misses_the_order_to_end_is_left_behind(tmp_path, monkeypatch):
    offline, released = [], threading.Event()

    def no_server(**_):
        raise ConnectionError("no server")

    def init(mode, **_):
        offline.append(mode)
        return Run()

    fake = SimpleNamespace(
        Settings=SimpleNamespace, login=no_server, init=init, teardown=released.wait
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("callbacks.wandb_logger._TEARDOWN_TIMEOUT_SECONDS", 0.05)
    waiting = threading.Thread(target=make_wandb_logger, kwargs={"folder": tmp_path}, daemon=True)
    waiting.start()
    waiting.join(30)
    ended = not waiting.is_alive()
    released.set()
    assert ended
    assert offline == ["offline"]


class Run:
    """A wandb run that breaks on request."""

    project, id, name, offline = "p", "abc", "n", False
    settings = SimpleNamespace(root_dir="/run", sync_dir="/run/wandb/run-abc")

    def __init__(self):
        self.logged, self.broken, self.finished = [], False, 0

    def log(self, values):
        if self.broken:
            raise ConnectionResetError("gone\nsecond line")
        self.logged.append(values)

    def define_metric(self, *_, **__):
        """Accepted."""

    def finish(self, exit_code):
        self.finished += 1
        if self.broken:
            raise ConnectionResetError("gone")


def test_numbers_carry_their_step_and_no_epoch():
    board = WandbRun(run := Run())
    board.log_metrics({"val/fvu": 0.5, "tokens": 8.0, "epoch": 0}, step=3)
    assert run.logged == [{"val/fvu": 0.5, "tokens": 8.0, "trainer/global_step": 3}]
    assert isinstance(board, HistogramLogger)


def test_a_failure_costs_one_warning_and_nothing_else(caplog):
    board = WandbRun(run := Run())
    run.broken = True
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            board.log_metrics({"x": 1.0}, step=step)
        board.log_sae("no such folder")
    assert [r.getMessage() for r in caplog.records] == [
        "W&B stopped, training goes on without it: ConnectionResetError: gone"
    ]
    board.close()
    assert run.finished == 1


def test_an_unknown_mode_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="auto, online, offline, disabled"):
        make_wandb_logger("of", folder=tmp_path)


def test_the_workspace_is_built_without_an_account_and_saved_only_with_one(tmp_path):
    pytest.importorskip("wandb_workspaces", reason="extra `wandb` is not installed")
    (tmp_path / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    command = [sys.executable, "-m", "callbacks.workspace", "--entity", "me", "--project", "p"]

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment | {"HOME": str(tmp_path / "home")},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    shown = run("--json")
    view = json.loads(shown.stdout)
    assert (view["entity"], view["project"]) == ("me", "p")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections][:3] == ["Quality", "Trade-off", "Loss"]
    for name in ("val/ce_recovered_zero", "final/l0", "tokens"):
        assert name in shown.stdout
    refused = run()
    assert refused.returncode == 1
    assert "wandb login" in refused.stderr
    assert "Traceback" not in refused.stderr
