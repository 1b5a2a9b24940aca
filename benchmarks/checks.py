"""Cost of checksums: loading an SAE, resuming a run, training.

    python -m benchmarks.checks

"Without" is the same code with that checksum left out, in turn with it.
"""

import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import lightning as L
import torch

from benchmarks.common import Result, Table, arguments, interleaved, ratios, spread
from benchmarks.runs import configuration, prepared_data, temporary_cache
from callbacks.from_config import build_loggers
from callbacks.manifest import Manifest
from callbacks.metrics_csv import MetricsCSV
from callbacks.trainer import build_trainer
from sae.activations.datamodule import ActivationDataModule
from sae.artifacts import load, native, save_sae
from sae.checksums import crc32_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.training import checkpoints
from sae.training.from_config import build_module

TRAINING = (
    "activations=superposition", "activations.d_in=64", "activations.num_features=256",
    "tokens=16384", "activations.val_tokens=1024", "activations.test_tokens=1024", "sae=topk",
    "k=8", "trainer.batch_size=256", "trainer.checkpoint_every_steps=10", "trainer.validations=0",
    "trainer.log_every_steps=10",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 15)
    result = Result(given.name or "checks", {k: v for k, v in vars(given).items() if k != "out"})
    with tempfile.TemporaryDirectory() as folder, temporary_cache():
        d_in = 32 if given.quick else 576
        result.tables += [
            _loading(Path(folder), d_in, given.rounds),
            _resuming(Path(folder), d_in, given.rounds),
            _training(Path(folder), max(2, given.rounds // 3), given.quick),
        ]
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out)


def _compared(title: str, seconds: dict[str, list[float]], plain: str) -> Table:
    table = Table(title, ["what", "ms", f"÷ {plain}"])
    for name, taken in seconds.items():
        milliseconds = spread([1e3 * s for s in taken])
        table.rows.append([name, milliseconds, ratios(taken, seconds[plain])])
    return table


def _loading(folder: Path, d_in: int, rounds: int) -> Table:
    """An SAE of 8 latents a dimension."""
    d_sae = 8 * d_in
    W = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
    weights = W.T.contiguous(), torch.zeros(d_sae), W, torch.zeros(d_in)
    metadata = {"scale": 1.0, "settings": {f"x{i}": i / 7 for i in range(200)}}
    save_sae(folder / "sae", SAE(*weights, SAEConfig("l1", "relu", d_in, d_sae), metadata))
    size = sum(file.stat().st_size for file in (folder / "sae").iterdir()) / 1e6

    def without(*names: str) -> Callable[[], object]:
        made = {"unseal": lambda content, file: _unsealed(content), "_checksum": lambda file: sha}

        def turn() -> None:
            with ExitStack() as patched:
                for name in names:
                    patched.enter_context(mock.patch.object(native, name, made[name]))
                load(folder / "sae")

        return turn

    sha = native._checksum(folder / "sae" / native.WEIGHTS_FILE)
    turns = {
        "all checks": without(), "without that of config.json": without("unseal"),
        "without any": without("unseal", "_checksum"),
    }  # fmt: skip
    title = f"Loading an SAE, {d_in} x {d_sae} ({size:.0f} MB, in the page cache)"
    return _compared(title, interleaved(turns, rounds), "without that of config.json")


def _unsealed(content: dict) -> dict:
    return {name: value for name, value in content.items() if name != "checksum"}


def _resuming(folder: Path, d_in: int, rounds: int) -> Table:
    """The checkpoint of an SAE with Adam's moments."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    file = checkpoints.checkpoint_file(run)
    tensors = {f"{i}": torch.randn(8 * d_in, d_in) for i in range(6)}
    torch.save({"state_dict": tensors, "global_step": 1}, file)

    def unchecked() -> None:
        with mock.patch.object(checkpoints, "check_zip"):
            checkpoints.read_checkpoint(run)

    turns: dict[str, Callable[[], object]] = {
        "checked": lambda: checkpoints.read_checkpoint(run), "unchecked": unchecked,
        "crc32 of the file": lambda: crc32_of(file), "zlib.crc32 of its bytes": _in_memory(file),
    }  # fmt: skip
    title = f"Reading a checkpoint of {file.stat().st_size / 1e6:.0f} MB"
    return _compared(title, interleaved(turns, rounds), "crc32 of the file")


def _in_memory(file: Path) -> Callable[[], object]:
    content = file.read_bytes()
    return lambda: zlib.crc32(content)


def _training(folder: Path, rounds: int, quick: bool) -> Table:
    """Whole trainings with a checkpoint every 10 steps."""
    words = [word for word in TRAINING if not (quick and word.startswith("tokens"))]
    config = configuration([*words, *(["tokens=4096"] if quick else []), "epochs=1"], False)
    data = prepared_data(config)
    number = iter(range(10**6))

    def train(checked: bool) -> Callable[[], object]:
        def turn() -> None:
            with _curves_checked(checked):
                _fit(config, data, folder / f"training{next(number)}")

        return turn

    turns = {"with checksums": train(True), "without": train(False), "without again": train(False)}
    title = f"Training, {data.steps} steps, a checkpoint every 10"
    return _compared(title, interleaved(turns, rounds, warmup=1), "without")


@contextmanager
def _curves_checked(checked: bool) -> Iterator[None]:
    if checked:
        yield
        return
    with mock.patch.object(MetricsCSV, "checksum", 0):
        yield


def _fit(config: dict, data: ActivationDataModule, run: Path) -> None:
    L.seed_everything(0, verbose=False)
    loggers = build_loggers(config, run, 0)
    manifest = Manifest(run / "manifest.json", config, {})
    trainer = build_trainer(config, run, data, manifest, loggers)
    trainer.fit(build_module(config, data), datamodule=data)


if __name__ == "__main__":
    main()
