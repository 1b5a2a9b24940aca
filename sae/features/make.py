"""Makes the records of an SAE on a text, step by step; a killed one goes on where it stopped."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool
from torch import Tensor

from sae.activations.sources import LMActivations
from sae.activations.store import ActivationStore
from sae.artifacts import load
from sae.artifacts.placed import PlacedSAE, source_of
from sae.cached import cached_tensors
from sae.checksums import seal, sha256_of
from sae.dictionaries.sae import SAE, SIGNED
from sae.errors import ArtifactError, ConfigError
from sae.features.co_firing import co_firing
from sae.features.columns import pack
from sae.features.firings import FiringStore, collect
from sae.features.record import Text
from sae.features.records import CO_FIRING, FACTS, TEXT, Records, group_file
from sae.features.summary import Place, summarise
from sae.features.weights import weight_statistics, written_at
from sae.language.pieces import token_bytes
from sae.memory import return_freed_memory
from sae.progress import progress
from sae.provenance import cache_dir, content_key, make_cache_dir, write_json
from sae.types import Split

log = logging.getLogger(__name__)
FORMAT_VERSION = 3


def records(
    run: str | Path | PlacedSAE,
    *,
    split: Split | None = None,
    num_tokens: int = 1_000_000,
    seed: int = 0,
    batch_rows: int = 2048,
    against: Sequence[SAE] = (),
) -> Records:
    """Records of all latents that fire, made at the first call and read from the cache after.

    Args:
        run: A run folder, or an SAE at its place (`sae.evaluation.place`).
        split: The text; None: the training text where its activations are cached, else the test
            text. What is scored must not be read from the training text.
        num_tokens: Tokens that are read at most, the first ones.
        seed: Seed of the contexts that are drawn.
        batch_rows: Vectors encoded at once.
        against: SAEs of other seeds, for the stability.

    Raises:
        SAEError: If there is no SAE or no text, or no room on the disk.
    """
    if not isinstance(run, PlacedSAE):
        run = PlacedSAE(load(Path(run)), source_of)
    source = run.source
    if not isinstance(source, LMActivations):
        raise ConfigError(
            "Records need the tokens behind the activations, which are not known here. Choose an "
            "SAE of an LM's activations."
        )
    if split is None:
        split = "train" if source.is_cached("train") else "test"
        log.info("latents are read on the %s split", split)
    spec = source.specs[split]
    if split == "train" and spec.val_fraction + spec.test_fraction >= 1:
        raise ConfigError(
            f"The text {source.corpus.name} was never trained on: all of it is test text. Choose "
            "text=test."
        )
    for other in against:
        _check_seed(run, other)
    run.prepare(split)
    store = source.store(split)
    contexts = contexts_in(store, num_tokens)
    folder = _folder(run, split, contexts, seed)
    make_cache_dir(folder)
    with FileLock(f"{folder}.lock"):
        weights = _weights(folder, run, against)  # first: the LM is gone when the rest needs room
        if not _is_complete(folder):
            signed = run.sae.config.activation in SIGNED
            num_rows = contexts * store.spec.rows_per_context
            firings = collect(folder, run.sae, run.rows(split), num_rows, batch_rows)
            text = text_of(source, split, firings.counted, contexts)
            _once(folder / TEXT, lambda: _packed(text))
            _once(folder / CO_FIRING, lambda: co_firing(firings))
            groups = _summarise(folder, firings, place_of(text, store, seed))
            facts = {
                "d_sae": run.sae.d_sae,
                "latents": firings.num_latents,
                "groups": groups,
                "signed": signed,
                "rows": int(text.counted.sum()),
                "all_rows": num_rows,
                "split": split,
                "text": text.name,
                "tokens": text.tokens.size,
                "ctx": store.spec.ctx,
                "rows_per_context": store.spec.rows_per_context,
                "lm": source.source.name,
                "point": str(run.ends),
            }
            write_json(folder / FACTS, seal(facts))
    return Records(folder, weights)


def features_dir() -> Path:
    """The folder that all records are kept in."""
    return cache_dir() / "features"


def all_firings(
    run: PlacedSAE, split: Split, *, num_tokens: int, batch_rows: int = 2048
) -> FiringStore:
    """Every firing on the first tokens of a split: the first pass of `records`, shared with it.

    Args:
        run: An SAE of an LM's activations, whose split is prepared.
        split: The text.
        num_tokens: Tokens that are read at most.
        batch_rows: Vectors encoded at once.

    Raises:
        StoreError: If the disk has no room.
    """
    store = run.source.store(split)
    contexts = contexts_in(store, num_tokens)
    folder = _folder(run, split, contexts, seed=0)
    make_cache_dir(folder)
    num_rows = contexts * store.spec.rows_per_context
    with FileLock(f"{folder}.lock"):
        return collect(folder, run.sae, run.rows(split), num_rows, batch_rows)


def contexts_in(store: ActivationStore, num_tokens: int) -> int:
    """Number of whole contexts in the first tokens of a store, at least one."""
    return min(store.num_contexts, max(1, num_tokens // store.spec.ctx))


def _check_seed(run: PlacedSAE, other: SAE) -> None:
    """Refuse an SAE that tells nothing about the stability of latents."""
    made_of = other.metadata.get("activations")
    point = made_of.get("point") if isinstance(made_of, Mapping) else None
    if other.d_out != run.sae.d_out:
        difference = f"has atoms of width {other.d_out}, this one of width {run.sae.d_out}"
    elif point not in (None, str(run.ends)):
        difference = f"is at {point}, this one at {run.ends}"
    elif torch.equal(other.W_dec.cpu(), run.sae.W_dec.cpu()):
        difference = "has the same atoms as this one: every latent would look stable"
    else:
        return
    raise ConfigError(
        f"An SAE to compare with (against) {difference}. Give SAEs of the same point, of other "
        "seeds."
    )


def _folder(run: PlacedSAE, split: Split, contexts: int, seed: int) -> Path:
    """Folder of everything about an SAE on these contexts."""
    identity = {
        "version": FORMAT_VERSION, "sae": asdict(run.sae.config),
        "weights": sha256_of(run.sae.state_dict()),
        "store": run.source.store(split).spec.key, "ends": str(run.ends), "contexts": contexts,
        "seed": seed, "counted": run.source.counted.to_json(),
    }  # fmt: skip
    return features_dir() / content_key(identity)


def _is_complete(folder: Path) -> bool:
    if not (folder / FACTS).exists():
        return False
    with suppress(ArtifactError):
        Records(folder).check()
        return True
    log.warning("Records in %s are damaged. What is damaged is made again.", folder)
    return False


def _summarise(folder: Path, firings: FiringStore, place: Place) -> list[int]:
    """Write the files of all groups that are missing; returns the first latent of each."""
    groups = firings.groups()
    with progress("summarise latents", firings.num_latents, "latents") as advance:
        for n, group in enumerate(groups):
            _once(group_file(folder, n), lambda group=group: _group(firings, group, place))
            advance(len(group))
    return [group.start for group in groups]


def _group(firings: FiringStore, group: range, place: Place) -> dict[str, Tensor]:
    fired = {i: one for i, one in zip(group, firings.read(group), strict=True) if len(one.row)}
    return pack(list(fired), [summarise(i, one, place) for i, one in fired.items()])


def text_of(
    source: LMActivations, split: Split, counted: Bool[np.ndarray, " rows"], contexts: int
) -> Text:
    """The first contexts of a split.

    Args:
        source: Source of the contexts.
        split: The split.
        counted: Mask of the rows that count.
        contexts: Number of contexts.
    """
    store = source.store(split)
    tokens = store.tokens[:contexts]
    mask = np.zeros(tokens.shape, dtype=bool)
    mask[:, store.spec.ctx - store.spec.rows_per_context :] = counted.reshape(contexts, -1)
    return Text(
        name=f"{source.corpus.name} ({split})", is_training=split == "train", tokens=tokens,
        counted=mask, vocabulary=token_bytes(source.source.load_tokenizer()),
    )  # fmt: skip


def place_of(text: Text, store: ActivationStore, seed: int) -> Place:
    """The text by rows of its store."""
    occurrences = np.bincount(text.tokens[text.counted], minlength=int(text.tokens.max()) + 1)
    return Place(text.tokens, store.spec.rows_per_context, occurrences, seed)


def _packed(text: Text) -> dict[str, Tensor]:
    joined = np.frombuffer(b"".join(text.vocabulary), np.uint8).copy()
    return {
        "tokens": torch.from_numpy(text.tokens), "counted": torch.from_numpy(text.counted),
        "bytes": torch.from_numpy(joined),
        "token_bytes": torch.tensor(list(map(len, text.vocabulary))),
    }  # fmt: skip


def _weights(folder: Path, run: PlacedSAE, against: Sequence[SAE]) -> str:
    """Name of the file of weight statistics, written first where it is missing."""
    hashes = [sha256_of(sae.state_dict()) for sae in against]
    others = content_key({"against": hashes, "random": "as many as each"})
    file = folder / ("weights.safetensors" if not against else f"weights-{others}.safetensors")
    point = written_at(run.ends)
    had_lm = "lm" in run.__dict__  # another evaluation loaded it, and may need it again

    def make() -> dict[str, Tensor]:
        lm = None if point is None or point.site == "mlp_in" else run.lm
        return weight_statistics(run.sae, lm, point, against)

    _once(file, make)
    if not had_lm:
        run.__dict__.pop("lm", None)
    return_freed_memory()
    return file.name


def _once(file: Path, make: Callable[[], dict[str, Tensor]]) -> None:
    """Write a file of tensors unless it is there, whole."""
    cached_tensors(file, lambda: (make(), None))
