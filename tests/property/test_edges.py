"""Damaged files and odd command lines, generated: one line that names the file, and no traceback.

Behaviour only: an error of ours (what the programs print, with status 1) or a result, in one line,
with the name of the file or of the key in it; nothing is waited for and nothing is written.
"""

import functools
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conf.commandline import check_command_line
from conf.compose import compose_job
from conf.resume import continued, save_config, saved_config
from conf.schema import check
from sae.failures import explained

SECONDS = 60
quick = settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

DEEP = b"[" * 100_000  # YAML takes seconds over it: once is enough
DIGITS = b"1" * 6_000
values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=8),
    st.just("${foo}"), st.just("x" * 300), st.just([]), st.just({}), st.just([[1]]),
    st.just({"a": None}),
)  # fmt: skip
KINDS = ("folder", "pipe", "loop", "dangling", "gone")
contents = st.one_of(
    st.sampled_from([
        b"", b"{", b"null", b"[]", b"5", b"\xff\xfe{}", b"\x00", DIGITS, b'{"a": ' + DEEP[:5_000],
        b'{"a": ' + DIGITS + b"}", b"a: " + DIGITS, b"${foo}", b"=5", b"!!timestamp x", b"? [1]: 2",
        b"\xef\xbb\xbf{}", b"a: &a [*a]", b"step,tokens\n1,2,3,4\n", b'step,tokens,"x\n',
        b"step,tokens,x\n1,2,y\n", b'{"text": 5}\n', b'{"text": "\\ud800"}\n',
    ]),
    st.binary(max_size=60),
)  # fmt: skip
damages = st.one_of(
    st.sampled_from(KINDS),
    contents,
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("value"), st.integers(0, 10**6), values),
)


class Hangs(BaseException):
    """No reader may catch it."""


@contextmanager
def in_time():
    """A pipe or a loop must not be waited for."""

    def late(number, frame):
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(file: Path, how) -> None:
    """Put something else in the place of a file."""
    whole = file.read_bytes()
    file.unlink()
    if isinstance(how, bytes):
        file.write_bytes(how)
    elif how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "loop":
        file.symlink_to(file.name)
    elif how == "dangling":
        file.symlink_to("nowhere")
    elif how[0] == "cut":
        file.write_bytes(whole[: int(how[1] * len(whole))])
    elif how[0] == "flip":
        content = bytearray(whole)
        content[min(int(how[1] * len(whole)), len(whole) - 1)] ^= how[2]
        file.write_bytes(content)
    elif how[0] == "value":
        _, at, value = how
        load = yaml.safe_load if file.suffix == ".yaml" else json.loads
        try:
            content = load(whole)
        except ValueError:  # a table or a text
            file.write_bytes(repr(value).encode("utf-8", "replace"))
            return
        leaves = list(_leaves(content))
        if leaves:
            node, key = leaves[at % len(leaves)]
            node[key] = value
        dump = yaml.safe_dump if file.suffix == ".yaml" else json.dumps
        file.write_text(dump(content))


def _leaves(node):
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _leaves(node[key])


def files_in(folder: Path):
    return sorted(str(path) for path in folder.rglob("*") if "/cache/" not in str(path))


def told(read, names):
    """Call a reader: it gives a result, or an error of ours in one line that has a name in it."""
    with in_time():
        try:
            read()
        except Exception as error:
            said = explained(error)
            if said is None:
                raise
            text = str(said)
            assert "\n" not in text.strip(), text
            assert any(name in text for name in names), text
            return text
    return None


# --- files -----------------------------------------------------------------------------------


@functools.cache
def composed():
    words = ["debug=tiny", "trainer.precision=32-true"]
    return json.dumps(check(compose_job("train", words)))


def config_yaml(folder):
    save_config(folder, json.loads(composed()))

    def read():
        from sae.activations.from_config import build_source
        from sae.training.from_config import check_settings, resolve_dtypes

        if saved_config(folder) is None:
            return
        config = continued(folder, json.loads(composed()), [])
        resolve_dtypes(config)
        check_settings(config)
        build_source(config["activations"], config["lm"], config["corpus"], "cpu")

    return folder / "config.yaml", read


def results_json(folder):
    from sae.recipes import finished

    (folder / "results.json").write_text('{"training": {"epochs": 4}, "core": {"metrics": {}}}')
    (folder / "report.html").write_text("")
    return folder / "results.json", lambda: finished(folder, {"sae": {}, "epochs": 4})


def reported_json(folder):
    from sae.artifacts.runs import metric, read_json

    file = folder / "results.json"
    file.write_text('{"core": {"metrics": {"fvu": {"value": 0.5}}}}')
    return file, lambda: metric(read_json(file), "core", "fvu")


def metrics_csv(folder):
    from callbacks.metrics_csv import MetricsCSV

    file = folder / "metrics.csv"
    file.write_text("step,tokens,train/loss\n1,64,0.5\n2,128,0.4\n")
    return file, lambda: MetricsCSV(file, resume_step=1)


def reported_csv(folder):
    from sae.reports.files import read_metrics

    file = folder / "metrics.csv"
    file.write_text("step,tokens,train/loss\n1,64,0.5\n2,128,0.4\n")
    return file, lambda: read_metrics(file)


def saved_sae(folder):
    from sae.artifacts import load, save_sae
    from sae.dictionaries.sae import SAE, SAEConfig

    weights = torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4)
    save_sae(folder / "sae", SAE(*weights, SAEConfig("l1", "relu", 4, 4), {"scale": 1.0}))
    return folder / "sae" / "config.json", lambda: load(folder / "sae")


def foreign_sae(folder):
    from sae.artifacts import load, save

    saved_sae(folder)
    save(folder / "theirs", load(folder / "sae"), "saelens")
    return folder / "theirs" / "cfg.json", lambda: load(folder / "theirs", "saelens")


def checksums(folder):
    from sae.checksums import FOLDER_FILE, check_folder, seal_files

    (folder / "a.txt").write_text("a")
    seal_files(folder, [folder / "a.txt"])
    return folder / FOLDER_FILE, lambda: check_folder(folder)


def lines_of_json(folder):
    file = folder / "text.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    return file, lambda: _texts({"kind": "jsonl", "name": "mine", "path": str(file)})


def text(folder):
    file = folder / "text.txt"
    file.write_text("one\n\ntwo\n")
    return file, lambda: _texts({"kind": "text", "name": "mine", "path": str(file)})


def _texts(config):
    from sae.language import corpus_from_config

    corpus = corpus_from_config(config)
    corpus.identity()
    list(corpus._texts())


def labelled(folder):
    from sae.tasks.labelled import read_csv

    file = folder / "mine.csv"
    file.write_text("text,label\na,x\nb,y\n")
    return file, lambda: read_csv(str(file))


def npy(folder):
    from sae.activations.folder import FolderActivations

    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(64, 4)).astype("f4"))
    return folder / "rows.npy", lambda: FolderActivations(folder).prepare()


def zarr_json(folder):
    import zarr

    from sae.activations.folder import FolderActivations

    array = zarr.create_array(folder / "rows.zarr", shape=(64, 4), dtype="f4")
    array[:] = 1.0
    return folder / "rows.zarr" / "zarr.json", lambda: FolderActivations(folder).prepare()


def manifest(folder):
    from callbacks.manifest import Manifest

    file = folder / "manifest.json"
    file.write_text('{"sessions": [{"started_utc": "x", "from_step": 0, "status": "running"}]}')
    made = Manifest(file)
    made._session = {"started_utc": "y", "from_step": 0}
    return file, made._earlier


def kept_object(folder):
    from sae.cached import cached_json

    file = folder / "kept.json"
    return file, lambda: cached_json(file, lambda: {"speedup": 1.5})


def owner(folder):
    from sae.owner import OWNER, _who

    (folder / OWNER).write_text('{"pid": 1, "host": "x", "since_utc": "y"}')
    return folder / OWNER, lambda: _who(folder)


READERS = (
    config_yaml, results_json, reported_json, metrics_csv, reported_csv, saved_sae, foreign_sae,
    checksums, lines_of_json, text, labelled, npy, zarr_json, manifest, kept_object, owner,
)  # fmt: skip
CALM = (manifest, kept_object, owner)
"""What is not needed: damage is passed over."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of zarr, about what lies beside its files
@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
@quick
@example(how="pipe")
@example(how="loop")
@example(how="folder")
@example(how=DEEP)
@example(how=b"\xff")
@given(how=damages)
def test_damaged_files(tmp_path, kind, how):
    folder = tmp_path / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file, read = kind(folder)
    read()  # whole, it is read
    damage(file, how)
    before = files_in(tmp_path)
    # a key of a configuration is as good a name as that of its file
    said = told(read, [file.stem, file.parent.name, "lm.", "corpus.", "sae.", "activations."])
    assert kind not in CALM or said is None
    # its own file may come back, as that of a run that begins
    assert set(files_in(tmp_path)) - set(before) <= {str(file)}


# --- command lines ---------------------------------------------------------------------------

KEYS = (
    "layer", "site", "target", "l1", "k", "target_l0", "dict_ratio", "tokens", "epochs", "seed",
    "run_dir", "sweep_dir", "sae", "lm", "corpus", "activations", "trainer", "eval", "experiment",
    "sweep", "launcher", "debug", "optimizer.lr", "optimizer", "trainer.batch_size", "e2e",
    "activations.ctx", "callbacks", "callbacks.downstream.num_tokens", "logger.wandb", "sae.l1",
    "resample.at_tokens", "plan", "harvest_only", "resume_with", "hydra.run.dir", "lm.path",
    "nonsense", "sae.nonsense", "", "a.b.c", "run", "format", "export", "out", "device",
)  # fmt: skip
ODD = (
    "5", "-1", "0", "1e400", "nan", "inf", "null", "true", "", "[]", "[1,2]", "{}", "{a: 1}", "[",
    "{", "'", '"', "${foo}", "${layer}", "${oc.env:NOTHING}", "${", "x" * 300, "a,b", "1,2",
    "range(0,3)", "range(3,0)", "interval(0,1)", "choice()", "glob(*)", "é", "\x00", "a b", "=5",
    "1" * 6000, "tied", "topk", "jumprelu", "pca", "folder", "superposition", "resid", "5%", "/",
    "/dev/null", "/proc/nothing", "[" * 50 + "]" * 50, "optuna", "joblib", "toy", "paper",
)  # fmt: skip
words = st.one_of(
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}",
        st.sampled_from(["", "", "", "", "+", "++", "~"]),
        st.sampled_from(KEYS),
        st.one_of(st.sampled_from(ODD), st.text(max_size=6)),
    ),
    st.sampled_from(["=5", "layer", "~layer", "~sae", "-m", "--nothing", "-x", "--multirun", "@"]),
    st.text(max_size=10),
)


@pytest.mark.slow
@settings(quick, max_examples=60)
@example(program="train", line=["=5"])
@example(program="train", line=["layer=${foo}"])
@example(program="train", line=["run_dir=" + "x" * 300])
@example(program="train", line=["--nothing"])
@example(program="train", line=["resume_with={a: b}"])
@example(program="evaluate", line=["run=" + "x" * 300])
@given(program=st.sampled_from(["train", "train", "evaluate"]), line=st.lists(words, max_size=3))
def test_odd_command_lines(tmp_path, monkeypatch, program, line):
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    told(lambda: check_command_line(program, line), [""])
    assert files_in(tmp_path) == before
