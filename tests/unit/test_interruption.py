"""Signals: during training they wait for the end of the step, elsewhere they end the program."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks.checkpoint import LastCheckpoint
from callbacks.interruption import Interrupted, end_with_parent, handling
from callbacks.manifest import Manifest

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
pytestmark = [pytest.mark.filterwarnings("ignore:.*does not have many workers")]


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def training_step(self, x, batch_idx):
        return (self.weight * x).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sends(L.Callback):
    """Sends signals to this process in the middle of a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_before_optimizer_step(self, trainer, *_):
        for number in self.numbers if trainer.global_step == self.step else ():
            os.kill(os.getpid(), number)


def fit(folder, *callbacks, steps=6):
    checkpoint = LastCheckpoint(folder / "last.ckpt", every_steps=4)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=[*callbacks, checkpoint],
        enable_model_summary=False, enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(99, 2)))  # pyright: ignore


def saved_step(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(("number", "status"), [*zip(SIGNALS, (130, 75, 75), strict=True)])
@pytest.mark.parametrize(("step", "saved"), [(1, 2), (5, 6)])
def test_a_signal_saves_after_the_step_it_falls_into(number, status, step, saved, tmp_path):
    before = [signal.getsignal(n) for n in SIGNALS]
    manifest = Manifest(tmp_path / "manifest.json")
    with pytest.raises(Interrupted, match=number.name) as stopped:
        fit(tmp_path, manifest, Sends(step, number))
    assert stopped.value.code == status
    assert saved_step(tmp_path) == saved
    assert '"status": "interrupted"' in (tmp_path / "manifest.json").read_text()
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path, Sends(1, signal.SIGINT, signal.SIGINT))
    assert stopped.value.code == 130
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_elsewhere_a_signal_ends_the_program(number):
    with pytest.raises(Interrupted, match=number.name), handling():
        os.kill(os.getpid(), number)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what nohup does
    try:
        with handling():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_ranks_leave_the_status_to_the_first():
    assert Interrupted(signal.SIGTERM, first=False).code == 0


WORKER = (
    "import os, sys, time\nfrom callbacks.interruption import end_with_parent\n"
    "def work(_):\n    end_with_parent()\n    end_with_parent()\n"
    "    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
    "from joblib import Parallel, delayed\n"
    "Parallel(n_jobs=2, backend='loky')(delayed(work)(i) for i in range(2))\n"
)


@pytest.mark.slow
def test_workers_end_with_a_launcher_that_is_killed():
    command = [sys.executable, "-c", WORKER]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    workers = [int(launcher.stdout.readline()) for _ in range(2)]
    assert len(set(workers)) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in workers) or sys.platform != "linux"
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + 20
    while alive := [pid for pid in workers if _alive(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)
    launcher.stdout.close()


RANK = (
    "import os, sys, time\nfrom callbacks.interruption import end_with_parent\n"
    "end_with_parent(os.getppid())\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
)


def test_a_rank_ends_with_the_process_that_started_it():
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {RANK!r}])"
    first = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    rank = int(first.stdout.readline())
    first.kill()
    first.wait()
    end = time.monotonic() + 20
    while _alive(rank):
        assert time.monotonic() < end
        time.sleep(0.1)
    first.stdout.close()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie whose new parent has not looked yet is not
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return sys.platform != "linux"


def test_a_program_may_outlive_the_shell_that_started_it():
    """Only a worker of multiprocessing watches."""
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before
