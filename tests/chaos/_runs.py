"""Tiny runs of every kind, and what of a finished one must not depend on what happened to it."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _forks import Child, program

WORLD = (
    "activations=superposition", "activations.d_in=8", "activations.num_features=16",
    "activations.active=2", "tokens=2048", "activations.val_tokens=512",
    "activations.test_tokens=512",
    "trainer.batch_size=32", "epochs=1", "eval=[core]", "logger=none", "trainer.precision=32-true",
    "trainer.log_every_steps=5", "trainer.checkpoint_every_steps=9", "trainer.validations=2",
    "trainer.accelerator=cpu", "resample.at_tokens=[15%,30%,45%]",
    "resample.dead_after_tokens=256", "resample.sample_tokens=256",
)  # fmt: skip
FITTED = tuple(
    word for word in WORLD if not word.startswith(("trainer.", "resample.", "epochs="))
)  # fmt: skip
LM = (
    "debug=tiny", "epochs=2", "eval=[core]", "trainer.checkpoint_every_steps=9",
    "trainer.validations=2", "resample.at_tokens=[15%,30%,45%]", "resample.dead_after_tokens=256",
    "resample.sample_tokens=256", "callbacks.downstream.num_tokens=64", "trainer.accelerator=cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: For the table.
        words: Of its command line, without its folder.
        sweep: Whether it is a multirun.
        ranks: Processes that train together.
        own_cache: Whether each run begins with an empty cache, as a harvest does.
        weight: How often it is chosen; runs that start interpreters take half a minute.
        evals: Evaluations of the finished run, as evaluate.py makes them.
    """

    name: str
    words: tuple[str, ...]
    sweep: bool = False
    ranks: int = 1
    own_cache: bool = False
    weight: float = 1.0
    evals: tuple[str, ...] = ()

    def start(self, folder: Path, cache: Path, log: Path) -> list[Child]:
        """Begin the run or go on with it: one child a rank."""
        environment = {"SAE_CACHE": str(cache)}
        call: Callable[[], object]
        if self.sweep:
            call = program("train", "-m", *self.words, f"sweep_dir={folder}")
        elif self.name == "harvest":
            call = program("train", *self.words, f"run_dir={folder}")
        else:
            call = _plain(self.words, folder, self.evals)
        if self.ranks == 1:
            return [Child(call, log, environment)]  # pyright: ignore[reportArgumentType]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "chaos",
        }  # fmt: skip
        return [
            Child(
                _ranked(call, rank), log.with_suffix(f".{rank}.log"),
                environment | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(self.ranks)
        ]  # fmt: skip


def _plain(words: tuple[str, ...], folder: Path, evals: tuple[str, ...] = ()) -> Callable[[], None]:
    from evaluate import evaluate
    from train import compose, train

    config = compose(words)  # here, where it is kept for the next run of the kind

    def call() -> None:
        from callbacks.interruption import Interrupted, handling

        try:
            with handling():
                train(config, folder)
                if evals:
                    evaluate(folder, {name: {} for name in evals}, device="cpu")
        except Interrupted as stopped:
            raise SystemExit(stopped.code) from None

    return call


def _ranked(call: Callable[[], object], rank: int) -> Callable[[], None]:
    def ranked() -> None:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank  # a fork has the number that was true when it was imported
        call()

    return ranked


KINDS = (
    Kind("topk, resampling", (*WORLD, "sae=topk", "k=2")),
    Kind("l1", (*WORLD, "sae=l1", "l1=1e-2")),
    Kind("l1, worst example", (*WORLD, "sae=l1", "l1=1e-2", "resample=worst_example")),
    Kind("jumprelu, target_l0", (*WORLD, "sae=jumprelu", "target_l0=2")),
    Kind("tied", (*WORLD, "sae=tied", "l1=1e-2")),
    Kind("batch_topk", (*WORLD, "sae=batch_topk", "k=2")),
    Kind("gated", (*WORLD, "sae=gated", "l1=1e-2")),
    Kind("LM and harvest", (*LM, "sae=topk", "k=4"), own_cache=True),
    Kind(
        "records and pages", (*LM, "sae=topk", "k=4"), own_cache=True, evals=("dashboard",)
    ),
    Kind("crosscoder", (*LM, "sae=crosscoder", "layer=[0,1]", "l1=1e-2")),
    Kind("end to end", (*LM, "experiment=e2e", "sae=topk", "k=4", "epochs=1", "tokens=2048")),
    Kind("fitted: pca", (*FITTED, "sae=pca", "k=2"), own_cache=True),
    Kind("fitted: kmeans", (*FITTED, "sae=kmeans"), own_cache=True),
    Kind("harvest", ("debug=tiny", "layer=[0,1,2]", "harvest_only=true"), own_cache=True),
    Kind("ensemble", (*WORLD, "sae=topk", "k=1,2", "launcher=ensemble"), sweep=True),
    Kind("sweep", (*WORLD, "sae=l1", "l1=1e-3,1e-2"), sweep=True),
    Kind("ddp, 2 ranks", (*WORLD, "sae=topk", "k=2", "trainer=ddp"), ranks=2),
    Kind("ddp, 2 ranks, l1", (*WORLD, "sae=l1", "l1=1e-2", "trainer=ddp"), ranks=2),
    Kind(
        "optuna",
        (*WORLD, "sae=l1", "sweeper=optuna", "l1=tag(log,interval(1e-3,1e-1))",
         "hydra.sweeper.n_trials=2"),
        sweep=True,
    ),
    Kind(
        "joblib, 8 workers",
        (*WORLD, "sae=l1", "l1=1e-3,2e-3,4e-3,8e-3,1e-2,2e-2,4e-2,8e-2", "launcher=joblib",
         "hydra.launcher.n_jobs=8"),
        sweep=True, weight=0.2,
    ),
    Kind(
        "submitit", (*WORLD, "sae=l1", "l1=1e-3,1e-2", "launcher=submitit_local"),
        sweep=True, weight=0.15,
    ),
)  # fmt: skip


def facts(folder: Path, cache: Path | None = None) -> dict[str, object]:
    """All that a run or a sweep gives, without what depends on the clock."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name, key = file.name, str(file.relative_to(folder))
        if ".hydra" in key or ".submitit" in key:
            continue
        page = "dashboard/" in key and file.is_file()
        if page or name in ("metrics.csv", "sae.safetensors", "features.json"):
            # a page has a command with the run's own folder
            found[key] = file.read_bytes().replace(str(folder).encode(), b"<run>")
        elif name == "results.json":
            results = json.loads(file.read_text())
            (results.get("training") or {}).pop("vectors_per_second", None)
            found[key] = json.dumps(_timeless(results), sort_keys=True)
        elif name == "last.ckpt":
            found[key] = _checkpoint(file)
        elif name in ("previous.ckpt", "error.txt") or name.endswith((".tmp", ".new")):
            found[key] = "litter"
    for file in sorted((cache / "features").rglob("*.safetensors")) if cache else ():
        found[str(file.relative_to(cache))] = file.read_bytes()
    for file in sorted((cache / "activations").rglob("*")) if cache else ():
        if file.is_file() and "c" in file.relative_to(cache).parts:
            found[str(file.relative_to(cache))] = file.read_bytes()
        elif file.name.endswith((".tmp", ".new")) and file.is_dir():
            found[str(file.relative_to(cache))] = "litter"
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        skip = ("time_utc", "seconds", "provenance", "command", "vectors_per_second")
        return {k: _timeless(v) for k, v in value.items() if k not in skip}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _checkpoint(file: Path) -> bytes:
    import hashlib

    import torch

    content = torch.load(file, weights_only=True)
    digest = hashlib.sha256()

    def walk(node: object) -> None:
        if isinstance(node, torch.Tensor):
            digest.update(f"{node.dtype}{list(node.shape)}".encode())
            digest.update(
                node.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                if node.numel()
                else b""
            )
        elif isinstance(node, dict):
            for name in sorted(node, key=str):
                digest.update(str(name).encode())
                walk(node[name])
        elif isinstance(node, list | tuple):
            for item in node:
                walk(item)
        else:
            digest.update(repr(node).encode())

    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        walk(content.get(part))
    return digest.digest()


def differences(one: dict[str, object], other: dict[str, object]) -> str | None:
    """Names of what differs; None: nothing."""
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    litter = [name for name in names if other.get(name) == "litter"]
    if not names:
        return None
    return f"differs: {sorted(names)[:4]}" + (f", left: {litter[:3]}" if litter else "")
