"""Settings of the node `activations`, a class for each kind of source."""

from typing import Literal

from sae.activations.cache import StoredDtype
from sae.activations.counted import Special
from sae.registry import Registry
from sae.settings import Settings, setting
from sae.synthetic import World
from sae.types import Site

KINDS: "Registry[type[ActivationsSettings]]" = Registry("activations.kind", "kind")
"""Kinds of sources by the word that `activations.kind` takes."""


class ActivationsSettings(Settings):
    """Settings that all kinds of sources share."""

    where = "activations."

    seed: int = setting(0, ge=0, help="order of the rows in training; what is drawn or split")
    normalize: Literal["spread", "mean_square", "none"] = setting(
        "spread",
        help="entries of ordinary rows get the standard deviation 1/2 (spread), or the mean of "
        "||x||^2 becomes d_in; none is the paper",
    )
    max_norm: float | None = setting(
        10.0, gt=0, help="rows above so many median norms are left out; null: none"
    )
    buffer_rows: int = setting(262144, ge=1, help="rows shuffled together in memory")


@KINDS.register("folder")
class FolderSettings(ActivationsSettings):
    """Arrays of your own."""

    path: str = setting(help="folder of .npy, .pt or zarr arrays [rows d_in]")
    val_fraction: float = setting(0.05, ge=0, lt=1, help="share of the rows, at the end")
    test_fraction: float = setting(0.1, ge=0, lt=1, help="share of the rows, at the end")


@KINDS.register("superposition")
class SuperpositionSettings(ActivationsSettings, World):
    """Vectors of a synthetic world."""

    normalize: Literal["spread", "mean_square", "none"] = setting(
        "mean_square", help="the mean of ||x||^2 becomes d_in; none is the authors' code"
    )
    tokens: int = setting(1_000_000, ge=1, help="training vectors, drawn when they are read")
    val_tokens: int = setting(32768, ge=1, help="validation vectors")
    test_tokens: int = setting(65536, ge=1, help="test vectors")

    @property
    def world(self) -> World:
        """The world that the vectors are drawn from."""
        return World(**{name: getattr(self, name) for name in World.model_fields})


@KINDS.register("lm")
class LMSettings(ActivationsSettings):
    """Activations of an LM on a text, cached on disk."""

    layer: int = setting(4, ge=0, help="LM block to read, from 0")
    site: Site = setting("resid", help="place in the block")
    target: Site | None = setting(
        None, help="site that a transcoder reconstructs; null: the site itself"
    )
    tokens: int = setting(1_000_000, ge=1, help="LM tokens of the training split")
    val_tokens: int = setting(32768, ge=1, help="held-out tokens for metrics during training")
    test_tokens: int = setting(131072, ge=1, help="held-out tokens for the final metrics")
    ctx: int = setting(128, ge=2, help="tokens per context")
    dtype: StoredDtype = setting("bfloat16", help="what activations are stored in")
    keep_first: bool = setting(False, help="keep position 0 of every context, an attention sink")
    special: Special = setting(
        "drop",
        help="special tokens whose rows are left out: drop (separator, BOS, EOS, pad), all, keep",
    )
    val_fraction: float = setting(0.05, ge=0, lt=1, help="share of the documents")
    test_fraction: float = setting(0.1, ge=0, lt=1, help="share of the documents")
    batch_contexts: int = setting(32, ge=1, help="contexts per LM forward pass")
    stream: bool = setting(False, help="keep only tokens on disk, and run the LM in every epoch")
