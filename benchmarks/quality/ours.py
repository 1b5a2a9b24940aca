"""This project's architectures, by the code that users run: `train(compose([...]), run_dir)`."""

import tempfile
from functools import partial
from pathlib import Path

import sae
from benchmarks.quality.contender import Contender, Control, Fitted, Setting
from benchmarks.quality.data import Data
from benchmarks.runs import configuration
from sae.dictionaries import ARCHITECTURES
from train import compose, train

OFF = (
    "~callbacks.downstream", "~callbacks.dead_features", "~callbacks.reconstruction",
    "~eval.downstream", "~eval.core", "~eval.glimpse", "trainer.validations=0",
    "trainer.checkpoint_every_steps=1000000",
)  # fmt: skip
"""Overrides of parts that only watch: none changes the weights."""
AUTHORS = (
    "optimizer=authors_adam", "resample=none", "sae.sparsity_warmup_tokens=0", "sae.start_bias=0",
    "trainer.gradient_clip=0",
)  # fmt: skip
VARIANTS = ("lista", "positive_tied", "thresholding", "crosscoder")
"""They take part only on request: the authors' further SAEs, which no library has, and the
crosscoder, which is `april` on one layer."""
RECIPES = {"april": ("resample=none",)}
"""Settings that a published recipe asks for beside the architecture."""
START = 1e-3


def contenders() -> list[Contender]:
    """Every trainable architecture that there is, and the authors' recipe."""
    found = []
    for word in sorted(ARCHITECTURES):
        if "target_l0" in compose([f"sae={word}"])["sae"]:
            more = RECIPES.get(word, ())
            found.append(_contender("ours", word, "target", "target_l0", more))
        elif "k" in ARCHITECTURES[word].Config.model_fields:
            found.append(_contender("ours", word, "k", "k"))
    return [*found, _contender("authors", "tied", "coefficient", "l1", AUTHORS)]


def _contender(
    library: str, word: str, control: Control, option: str, more: tuple[str, ...] = ()
) -> Contender:
    fit = partial(_fit, word, option, more)
    return Contender(word, library, word, control, _default_lr, START, fit, word in VARIANTS)


def _default_lr(d_sae: int) -> float:
    del d_sae
    return compose([])["optimizer"]["lr"]


def _fit(
    word: str, option: str, more: tuple[str, ...], data: Data, d_sae: int, setting: Setting
) -> Fitted:
    value = round(setting.value) if option == "k" else setting.value
    overrides = [
        f"sae={word}", f"{option}={value!r}", f"dict_ratio={d_sae / data.d_in!r}",
        f"seed={setting.seed}", *more, f"optimizer.lr={setting.lr!r}", *data.overrides(), *OFF,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(configuration(overrides, quick=False), Path(folder) / "run")
        found = sae.load(Path(folder) / "run")
    return Fitted(found.encode, found.decode, found.W_dec.detach(), factor=1.0)
