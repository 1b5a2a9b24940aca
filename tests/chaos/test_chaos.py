"""A seeded share of the soak; `python tests/chaos` runs more of it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from _flips import harmed, judge, put_back
from _runs import differences, facts
from _tally import Tally

HERE = Path(__file__).parent
SHARE, SECONDS = 0.25, 600
ATTACKS = ("flips", "commands", "artifacts", "nonsense", "disks", "neighbours", "signals", "kills")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What one seed gave: the attacks run in a process that imports everything once."""
    out = tmp_path_factory.mktemp("chaos") / "rows.json"
    only = [attack for attack in ATTACKS if attack != "disks" or os.geteuid() == 0]
    command = [sys.executable, str(HERE), "--share", str(SHARE), "--out", str(out), "--only", *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    print(done.stdout + done.stderr)
    return json.loads(out.read_text())


@pytest.mark.chaos
@pytest.mark.parametrize("attack", ATTACKS)
def test_everything_survives(rows, attack):
    if attack == "disks" and os.geteuid() != 0:
        pytest.skip("full and read-only disks are made by root only")
    own = [row for row in rows if row["attack"] == attack]
    assert sum(row["tried"] for row in own) > 0
    assert [row for row in own if row["survived"] < row["tried"]] == []


def test_every_attack_is_tested():
    from subprocess import run

    told = run([sys.executable, str(HERE), "--help"], capture_output=True, text=True, check=True)
    for attack in ATTACKS:
        assert attack in told.stdout


def test_what_differs_is_seen(tmp_path):
    (tmp_path / "a" / "sae").mkdir(parents=True)
    file = tmp_path / "a" / "sae" / "sae.safetensors"
    file.write_bytes(b"weights")
    (tmp_path / "a" / "results.json").write_text(
        '{"training": {"vectors_per_second": 1}, "core": {}}'
    )
    before = facts(tmp_path / "a")
    (tmp_path / "a" / "results.json").write_text(
        '{"training": {"vectors_per_second": 2}, "core": {}}'
    )
    assert differences(before, facts(tmp_path / "a")) is None
    file.write_bytes(b"wEights")
    assert "sae.safetensors" in differences(before, facts(tmp_path / "a"))
    file.write_bytes(b"weights")
    (tmp_path / "a" / ".x.12.tmp").write_bytes(b"")
    assert "left" in differences(before, facts(tmp_path / "a"))
    (tmp_path / "a" / ".x.12.tmp").unlink()
    file.unlink()
    assert "sae.safetensors" in differences(before, facts(tmp_path / "a"))


def test_a_reader_that_says_nothing_is_seen(tmp_path):
    from sae.errors import ArtifactError

    file = tmp_path / "x.bin"
    file.write_bytes(b"content")
    assert judge(file.read_bytes, b"content", file) is None
    assert "silent" in judge(file.read_bytes, b"other", file)
    assert "traceback" in judge(lambda: 1 / 0, None, file)

    def unnamed():
        raise ArtifactError("something is damaged")

    def named():
        raise ArtifactError(f"{file} is damaged")

    assert "not named" in judge(unnamed, None, file)
    assert judge(named, None, file) is None
    with put_back(tmp_path):
        file.write_bytes(b"harmed")
        (tmp_path / "more").write_bytes(b"")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("x.bin", b"content")
    ]


def test_damage_is_damage():
    rng = random.Random(0)
    for whole in (b"", b"a", bytes(100)):
        assert all(harmed(rng, whole) != whole for _ in range(200))


def test_the_table_counts():
    tally = Tally("flips")
    tally.count("a", None, times=3)
    tally.count("a", "first\nline | x")
    tally.count("a", "second")
    other = Tally()
    other.add([vars(row) for row in tally.rows.values()])
    other.add([vars(row) for row in tally.rows.values()])
    assert other.failed
    table = other.table()
    assert "| flips | a | 10 | 6 | first line / x |" in table
    assert "| **flips** | all | **10** | **6** | |" in table
    assert not Tally("x").failed
