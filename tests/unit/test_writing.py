"""Disks that refuse a file: one line that names it, and nothing left behind."""

import errno
import os
import sys
from unittest.mock import Mock

import lightning as L
import pytest
import torch

from conf.commandline import run_program
from conf.resume import save_config
from sae.errors import ArtifactError
from sae.failures import explained, fail
from sae.owner import owned
from sae.provenance import make_cache_dir, write_json
from sae.reports.files import write_bytes
from sae.writing import DAY_SECONDS, refusal, replacing, sweep

REFUSALS = ("ENOSPC", "EROFS", "EDQUOT", "EACCES")
WRITERS = {
    "a.json": lambda path: write_json(path, {"a": 1}),
    "a.csv": lambda path: write_bytes(path, b"a"),
    "config.yaml": lambda path: save_config(path.parent, {"a": 1}),
}


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_refused_file_is_named_and_leaves_nothing(tmp_path, monkeypatch, name, number):
    (tmp_path / name).write_text("old")
    code = getattr(errno, number)

    def refuse(*_):
        raise OSError(code, os.strerror(code))  # a full disk names no file

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        WRITERS[name](tmp_path / name)
    told = str(explained(caught.value))
    assert str(tmp_path / name) in told
    assert os.strerror(code) in told
    assert "GB are free" in told
    assert "\n" not in told
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]


def test_what_is_written_halfway_is_removed(tmp_path):
    def interrupted():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_really_full(tmp_path):
    try:
        with open("/dev/full", "w") as file:
            file.write("x")
    except OSError as error:
        error.filename = str(tmp_path / "no" / "such" / "folder")
        told = refusal(error, 3_000_000_000)
        assert told is not None
        assert "No space left" in told
        assert "3.00 GB are needed" in told


def test_a_line_of_curves_that_does_not_fit(tmp_path, monkeypatch):
    """Lines are appended in place, without a temporary file."""
    from callbacks.metrics_csv import MetricsCSV

    table = MetricsCSV(tmp_path / "metrics.csv")
    table.log_metrics({"train/loss": 1.0}, step=1)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        table.log_metrics({"train/loss": 0.5}, step=2)
    told = str(explained(caught.value))
    assert "metrics.csv" in told
    assert "No space left" in told


@pytest.mark.parametrize("number", REFUSALS)
def test_a_disk_that_a_library_in_rust_writes_to(tmp_path, number):
    """safetensors has its own error, which is neither an OSError nor names a file."""
    from sae.writing import naming

    code = getattr(errno, number)
    with pytest.raises(OSError) as caught, naming(tmp_path / "x.safetensors"):  # noqa: PT011
        raise RuntimeError(f"Error while serializing: I/O error: refused (os error {code})")
    assert caught.value.errno == code
    assert str(tmp_path / "x.safetensors") in str(explained(caught.value))
    with pytest.raises(RuntimeError, match="shape"), naming(tmp_path / "x"):
        raise RuntimeError("shape")


def refused_trainer(error):
    """Saves half a checkpoint."""

    def save(path):
        path.write_bytes(b"half")
        raise error

    trainer = Mock(spec=L.Trainer, global_step=5, is_global_zero=True, lightning_module=None)
    trainer.save_checkpoint = save
    return trainer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "elsewhere"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, error):
    from callbacks.checkpoint import LastCheckpoint

    file = tmp_path / "last.ckpt"
    torch.save(torch.zeros(5_000_000), file)
    with pytest.raises(ArtifactError, match=r"last\.ckpt: .* 0\.02 GB are needed"):
        LastCheckpoint(file, 1)._save(refused_trainer(error))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    file.unlink()
    with pytest.raises(RuntimeError, match="shape"):
        LastCheckpoint(file, 1)._save(refused_trainer(RuntimeError("shape")))
    assert not list(tmp_path.iterdir())


def test_what_dead_processes_left_is_removed(tmp_path):
    names = [".a.json.12.tmp", ".last.ckpt.tmp", ".sae.13.new/x", "a.tmp", ".hidden", "b.json"]
    for name in names:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / ".last.ckpt.tmp").write_text("")
    sweep(tmp_path / "run", DAY_SECONDS)
    assert len(list((tmp_path / "run").iterdir())) == 7  # another process may be at it
    with owned(tmp_path / "run"):
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"a.tmp", ".hidden", "b.json", "checkpoints", ".lock", ".owner.json"}
        assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_cache_is_swept_of_old_ones(tmp_path):
    for name, age in ((".a.1.tmp", 2 * DAY_SECONDS), (".b.1.tmp", 0)):
        (tmp_path / name).write_text("")
        then = os.stat(tmp_path).st_mtime - age
        os.utime(tmp_path / name, (then, then))
    make_cache_dir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".b.1.tmp"]


def test_programs_print_one_line_for_a_disk(tmp_path, monkeypatch, capsys):
    def program():
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "x"))

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["train.py", f"run_dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as left:
        run_program("train", program)
    assert left.value.code == 1
    told = capsys.readouterr().err.strip()
    assert str(tmp_path / "x") in told
    assert "\n" not in told


def test_our_own_mistakes_keep_their_traceback():
    for error in (TypeError("a"), OSError("no file"), KeyError("b")):
        with pytest.raises(type(error)):
            fail(error)


def test_a_disk_that_is_full_for_hydras_own_files_is_named(tmp_path, monkeypatch, capsys):
    """Hydra writes its files when the run begins, and an error of `write` names no file."""
    import errno
    import os

    from conf.commandline import run_program

    def program():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.argv", ["train.py", "debug=tiny", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit):
        run_program("train", program)
    told = capsys.readouterr().err
    assert str(tmp_path / "run") in told
    assert len(told.splitlines()) == 1
