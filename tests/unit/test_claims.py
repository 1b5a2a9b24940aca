"""A folder of its own for every run, and quotes around values that Hydra does not read."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hypothesis import given
from hypothesis import strategies as st

from conf import commandline
from conf.commandline import check_command_line, run_program
from conf.compose import compose_with_hydra, parse
from conf.quoting import how_to_quote, quoted
from sae.errors import ConfigError

WORLD = ["activations=superposition", "logger=none"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """`started("l1=1e-3")` is the command line that Hydra gets, at one and the same second."""
    monkeypatch.chdir(tmp_path)
    compose_with_hydra.cache_clear()
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *WORLD])
        run_program("train", lambda: None)
        return sys.argv[1:]

    yield start
    compose_with_hydra.cache_clear()


def folder_of(arguments, name):
    (folder,) = [word for word in arguments if word.startswith(f"{name}=")]
    return parse([folder])[0].value()


@pytest.mark.parametrize(("name", "words"), [("run_dir", ()), ("sweep_dir", ("-m", "seed=0,1"))])
def test_runs_of_one_second_get_folders_of_their_own(started, name, words):
    """The clock does not move between the runs: `compose_with_hydra` keeps its reading of it."""
    claimed = [folder_of(started(*words), name) for _ in range(3)]
    assert len(set(claimed)) == 3
    assert [Path(folder).is_dir() for folder in claimed] == [True] * 3
    assert claimed[1:] == [f"{claimed[0]}-2", f"{claimed[0]}-3"]


@pytest.mark.parametrize(
    "words",
    [
        ["run_dir=mine"],
        ["-m", "seed=0,1", "sweep_dir=mine"],
        ["hydra.run.dir=mine"],
        ["--cfg", "job"],
        ["trainer.devices=2", "trainer.accelerator=cpu"],
    ],
)
def test_folders_that_are_named_stay(started, words, tmp_path, monkeypatch):
    """Also where a cluster started several processes for one run: they share its folder."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert started(*words) == [*words, *WORLD]
    assert not list(tmp_path.glob("outputs/*/*"))


def test_a_flag_may_stand_behind_the_overrides(started, monkeypatch):
    words = [*WORLD, "seed=0,1", "-m"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    run_program("train", lambda: None)
    assert sys.argv[2:] == words
    assert get_args_parser().parse_args(sys.argv[1:]).multirun


def test_plan_makes_no_folder(started, tmp_path, capsys):
    started("plan=true")
    assert "steps" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()


def test_a_cluster_with_one_process_a_run_gets_folders_of_their_own(started, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert commandline._processes_started() == 8
    assert folder_of(started(), "run_dir") != folder_of(started(), "run_dir")


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1))
def test_quoted_is_read_back(text):
    (override,) = parse([quoted("run_dir", text)])
    assert override.value() == text


@pytest.mark.parametrize(
    "word",
    [
        "run_dir=runs/epoch=3", "corpus.path=/data/a (1)/x", "corpus.path=/data/a[1]/x",
        "lm.path=/data/c#", "run_dir=für", "activations.path=~/x", "corpus.path=it's",
        "corpus.path=[draft]/x", "activations.path=(1)/x", "sweep_dir={a}b=c", "lm.path='x'y",
        "run=outputs/k=3", "out=a=b",
    ],
)  # fmt: skip
def test_message_shows_how_to_quote(word):
    with pytest.raises(ConfigError) as raised:
        check_command_line("train", [word])
    shown = how_to_quote(word)
    assert shown is not None
    assert shown in str(raised.value)
    (argument,) = shlex.split(shown)  # what the shell makes of it
    assert parse([argument])[0].value() == word.partition("=")[2]


def test_entries_of_a_list_are_quoted_one_by_one():
    shown = how_to_quote("run=[outputs/k=3, other]")
    assert shown is not None
    (override,) = parse(shlex.split(shown))
    assert override.value() == ["outputs/k=3", "other"]


@pytest.mark.parametrize("words", [["run_dir=a${b}"], ["lm=folder", "lm.path=${x.y}/z"]])
def test_a_reference_to_nothing_is_one_clear_error(words):
    with pytest.raises(ConfigError, match=r"refers to something that is not there.*\\\$\{"):
        check_command_line("train", words)


@pytest.mark.parametrize("word", ["layer=[2,4", "l1", "x={a", 'y="a'])
def test_quotes_are_not_advised_for_unfinished_lists(word):
    assert how_to_quote(word) is None
