"""Files of somebody who wants to run code here, by the generators of the tests: none of it runs."""

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import test_hostile as hostile
import torch
import yaml
from _tally import Tally

TRIES = 5
"""A seed's, of each kind."""
SLIPS = (
    "../../CANARY", "/CANARY", "a/../../../CANARY", "..\\..\\CANARY", "C:\\CANARY", "./../CANARY",
    "toy/../../CANARY", "//CANARY", "\x2e\x2e/CANARY", "toy/a.txt/../../../CANARY",
)  # fmt: skip
CODECS = (
    {"name": "numcodecs.pickle", "configuration": {"protocol": 5}},
    {"name": "pickle"}, {"name": "evil.Evil", "configuration": {"id": "evil"}},
    {"name": "numcodecs.json2", "configuration": {}}, {"name": "../evil"}, {"name": None},
    {"name": "bytes", "configuration": {"endian": "__import__('os').system('touch CANARY')"}},
    {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "pickle"}]}},
)  # fmt: skip


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """`TRIES * share` artifacts of each kind; code that ran made a file or started a process."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ["SAE_CACHE"] = str(folder / "cache")
    here, canary = folder / "here", folder / "CANARY"
    here.mkdir(parents=True)
    for name in ("pip", "evil", "sitecustomize", "datasets", "torch"):
        (here / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    os.chdir(here)
    prepared = _prepared(folder)
    hostile.watching = True
    for kind, make in KINDS.items():
        for number in range(max(1, round(TRIES * share))):
            place = folder / f"{kind}{number}".replace(" ", "_")
            place.mkdir()
            hostile.started.clear()
            hostile.watching = False  # what makes the artifact may start what it likes
            read = make(rng, place, canary, prepared)
            hostile.watching = True
            tally.count(kind, _judged(canary, read, place))
            canary.unlink(missing_ok=True)


def _judged(canary: Path, read: Callable[[], object], place: Path) -> str | None:
    try:
        hostile.harmless(canary, read, place)
    except AssertionError:
        return f"ran {hostile.started}, canary {canary.exists()}, or left a file: {place}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error} ({place})"
    return None


def _prepared(folder: Path) -> Path:
    """An LM folder."""
    from sae.language import LMSource

    lm = LMSource.from_config(hostile.LM).load()
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    return folder / "lm"


def _wheel_of_an_sae(rng, place, canary, lm) -> Callable[[], object]:
    where = rng.choice(["lm", "corpus"])
    wheel = rng.choice(hostile._wheels(rng.randrange(10**6)))
    saved = hostile._saved_sae(place / "sae", **{where: hostile._named(where, wheel)})
    return hostile._evaluated(saved)


def _wheel_of_a_run(rng, place, canary, lm) -> Callable[[], object]:
    where = rng.choice(["lm", "corpus"])
    wheel = rng.choice(hostile._wheels(rng.randrange(10**6)))
    config = hostile._composed() | {where: hostile._named(where, wheel)}
    return hostile._continued(place / "run", config)


def _pickle(rng, place, canary, lm) -> Callable[[], object]:
    name = rng.choice(list(hostile.PICKLES))
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    hostile._pickled(rng.randrange(8), rng.choice(hostile._gadgets(canary)), place / name)
    return lambda: hostile.PICKLES[name](place)


def _array_of_objects(rng, place, canary, lm) -> Callable[[], object]:
    from sae.activations.folder import FolderActivations

    gadget = rng.choice(hostile._gadgets(canary))
    if rng.random() < 0.5:
        np.save(place / "a.npy", np.array([[gadget]], dtype=object), allow_pickle=True)
        return lambda: FolderActivations(place / "a.npy").prepare()
    np.savez(place / "params.npz", W_enc=np.array([[gadget]], dtype=object), allow_pickle=True)
    return lambda: hostile._read_sae(place)


def _yaml(rng, place, canary, lm) -> Callable[[], object]:
    from sae.reports.files import read_yaml

    good, text = yaml.safe_dump(hostile._composed()), rng.choice(hostile.TAGS).format(canary)
    content = rng.choice([
        text, f"{good}\nx: {text}\n", good.replace("kind: random\n", f"kind: {text}\n"),
        good.replace("seed: 0", f"seed: {text}"),
        good.replace("architecture: tied", f"architecture: {text}"),
    ])  # fmt: skip
    (place / "config.yaml").write_text(content)
    if rng.random() < 0.5:
        return lambda: read_yaml(place / "config.yaml")
    return lambda: hostile.continued(place, dict(hostile._composed()), [])


def _lm_folder(rng, place, canary, lm) -> Callable[[], object]:
    import shutil

    from sae.language import LMSource

    folder = place / "lm"
    shutil.copytree(lm, folder)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    if rng.random() < 0.3:
        (folder / "model.safetensors").unlink()
        torch.save(
            {"lm_head.weight": rng.choice(hostile._gadgets(canary))}, folder / "pytorch_model.bin"
        )
    else:
        name = rng.choice(["config.json", "tokenizer_config.json", "generation_config.json"])
        classes = (
            "AutoConfig",
            "AutoModelForCausalLM",
            "AutoTokenizer",
            "AutoModel",
            "AutoProcessor",
        )
        entries = rng.choice([
            {"auto_map": {key: "evil.Evil" for key in classes}}, {"model_type": "evil"},
            {"auto_map": {key: f"evil/repo--evil.Evil{i}" for i, key in enumerate(classes)}},
            {"_attn_implementation": "evil/kernel"},
            {"quantization_config": {"quant_method": "evil"}}, {"custom_generate": "evil"},
            {"architectures": ["evil.Evil"]}, {"tokenizer_class": "evil.Evil"},
            {"trust_remote_code": True, "auto_map": {key: ["evil.Evil", None] for key in classes}},
        ])  # fmt: skip
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(content | entries))
    source = LMSource.from_config({"kind": "folder", "name": "x", "path": str(folder)})
    return source.load if rng.random() < 0.7 else source.load_tokenizer


def _zip_slip(rng, place, canary, lm) -> Callable[[], object]:
    """A wheel with members that want to be elsewhere, one of which is asked for or not."""
    from sae.language import fetch
    from sae.language.fetch import WheelFile

    content, slip = io.BytesIO(), rng.choice(SLIPS)
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(slip, b"x")
        archive.writestr("toy/a.txt", b"text")
    whole = content.getvalue()

    def download(package, version, size, folder):
        (folder / "toy_text-1.0-py3-none-any.whl").write_bytes(whole)

    fetch._pip_download = download  # in this process only
    pin = {
        "package": "toy-text",
        "version": "1.0",
        "sha256": sha256(whole).hexdigest(),
        "bytes": len(whole),
    }
    member = rng.choice([slip, "toy/a.txt"])
    return lambda: WheelFile(**pin | {"member": member}).fetch()


def _zarr(rng, place, canary, lm) -> Callable[[], object]:
    import zarr

    from sae.activations.folder import FolderActivations

    array = zarr.create_array(place / "rows.zarr", shape=(64, 4), dtype="f4")
    array[:] = 1.0
    file = place / "rows.zarr" / "zarr.json"
    content = json.loads(file.read_text())
    which = rng.choice(["codecs", "dtype", "chunk_key", "grid", "v2"])
    codec = rng.choice(CODECS)
    if which == "codecs":
        content["codecs"] = rng.choice(
            [[codec], [*content["codecs"], codec], [codec, *content["codecs"]]]
        )
    elif which == "dtype":
        content["data_type"] = rng.choice(
            ["object", "|O", {"name": "evil.Evil"}, "null_terminated_bytes"]
        )
    elif which == "chunk_key":
        content["chunk_key_encoding"] = {"name": "evil", "configuration": {"separator": "/../../"}}
    elif which == "grid":
        content["chunk_grid"] = {"name": "evil.Evil", "configuration": {}}
    else:
        old = {
            "zarr_format": 2, "shape": [64, 4], "chunks": [64, 4], "dtype": "|O", "order": "C",
            "fill_value": None, "compressor": None,
            "filters": [{"id": rng.choice(["pickle", "evil", "msgpack2", "json2"])}],
        }  # fmt: skip
        (place / "rows.zarr" / ".zarray").write_text(json.dumps(old))
        file.unlink()
        return lambda: FolderActivations(place / "rows.zarr").prepare()
    file.write_text(json.dumps(content))
    return lambda: FolderActivations(place / "rows.zarr").prepare()


def _remote(rng, place, canary, lm) -> Callable[[], object]:
    """Data sets and LMs by names that are no repositories."""
    from sae.language import LMSource, corpus_from_config

    name = rng.choice(
        [*hostile.DATASETS, "../../CANARY", "evil/../..", "https://127.0.0.1:9/x", "file:///x"]
    )
    if rng.random() < 0.5:
        return lambda: corpus_from_config(
            {"kind": "hub", "name": "x", "dataset": name, "streaming": False}
        )
    return lambda: LMSource.from_config({"kind": "hub", "name": "x", "repo": f"{name}/../x"})


KINDS: dict[str, Callable[..., Callable[[], object]]] = {
    "wheel of an SAE": _wheel_of_an_sae, "wheel of a run": _wheel_of_a_run, "pickle": _pickle,
    "array of objects": _array_of_objects, "YAML tag or target": _yaml, "LM folder": _lm_folder,
    "zip slip": _zip_slip, "zarr": _zarr, "remote name": _remote,
}  # fmt: skip
