"""This project's architectures, by the code that users run: `train(compose([...]), run_dir)`."""

import tempfile
from functools import partial
from pathlib import Path

import sae
from benchmarks.quality.contender import Contender, Control, Fitted, Setting
from benchmarks.quality.data import Data
from benchmarks.runs import configuration
from conf.schema import SHORT
from sae.dictionaries import ARCHITECTURES
from train import compose, train

OFF = (
    "~callbacks.downstream", "~callbacks.dead_features", "~callbacks.reconstruction",
    "~eval.downstream", "~eval.core", "trainer.validations=0",
    "trainer.checkpoint_every_steps=1000000",
)  # fmt: skip
"""What only watches: nothing of it changes the weights."""
AUTHORS = ("optimizer=authors_adam", "resample=none", "sae.sparsity_warmup_tokens=0")
START = 1e-3


def contenders() -> list[Contender]:
    """Every trainable architecture that there is, and the authors' recipe."""
    found = []
    for word in sorted(ARCHITECTURES):
        control = _control(word)
        if control is not None:
            fit = partial(_fit, word, control, ())
            found.append(Contender(word, "ours", word, control, _default_lr, START, fit))
    fit = partial(_fit, "tied", "coefficient", AUTHORS)
    return [
        *found, Contender("tied", "authors", "tied", "coefficient", _default_lr, START, fit),
    ]  # fmt: skip


def _control(word: str) -> Control | None:
    """None where the architecture has no sparsity to set, so that it is no contender."""
    options = ARCHITECTURES[word].options
    if "k" in options:
        return "k"
    if not options & {"l1", "coefficient"}:
        return None
    return "target" if "target_l0" in SHORT else "coefficient"


def _default_lr(d_sae: int) -> float:
    del d_sae
    return compose([])["optimizer"]["lr"]


def _fit(
    word: str, control: Control, more: tuple[str, ...], data: Data, d_sae: int, setting: Setting
) -> Fitted:
    penalty = "l1" if "l1" in ARCHITECTURES[word].options else "coefficient"
    name = {"k": "k", "target": "target_l0", "coefficient": penalty}[control]
    value = round(setting.value) if control == "k" else setting.value
    overrides = [
        f"sae={word}", f"{name}={value!r}", f"dict_ratio={d_sae / data.d_in!r}",
        f"seed={setting.seed}", *more, f"optimizer.lr={setting.lr!r}", *data.overrides(), *OFF,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(configuration(overrides, quick=False), Path(folder) / "run")
        found = sae.load(Path(folder) / "run")
    return Fitted(found.encode, found.decode, found.W_dec.detach(), factor=1.0)
