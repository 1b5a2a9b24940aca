"""A folder has one owner, and a lock that dies with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sae.errors import ArtifactError
from sae.owner import LOCK, OWNER, owned

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom sae.owner import owned\n"
    "with owned(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_told_who_the_first_is(holder, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ArtifactError) as caught, owned(folder):
        pass
    message = str(caught.value)
    assert str(folder) in message
    assert f"pid {holder.pid} on {socket.gethostname()}" in message
    (folder / OWNER).write_text("{")  # killed while it wrote: still refused
    with pytest.raises(ArtifactError, match="another process"), owned(folder):
        pass


def test_the_lock_dies_with_its_process(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with owned(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / OWNER).read_text())
    assert owner["pid"] == os.getpid()
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {LOCK}


def test_a_folder_can_be_owned_again_and_beside_another(tmp_path):
    for _ in range(2):
        with owned(tmp_path / "a"), owned(tmp_path / "b"):
            assert (tmp_path / "a" / OWNER).exists()
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "a"):
        raise ZeroDivisionError
    with owned(tmp_path / "a"):
        pass


def test_training_refuses_a_folder_in_use(holder, tmp_path):
    """With nothing written there."""
    from train import compose, train

    before = time.time()
    config = compose(["debug=tiny", "lm=tiny-llama", "corpus=random_words"])
    with pytest.raises(ArtifactError, match=f"pid {holder.pid}"):
        train(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK, OWNER}
    assert time.time() - before < 60
