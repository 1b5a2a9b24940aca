"""A look at the same latents at each validation: how they form, by their strongest contexts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch

from callbacks.outputs import field
from sae.errors import ArtifactError
from sae.features.watched import WatchedText, by_hash
from sae.provenance import write_json
from sae.reading import read_object
from sae.training.ranks import gather

FILE = "features.json"
"""In the run folder: a list of looks, the first one foremost."""


@runtime_checkable
class LatentLogger(Protocol):
    """A Lightning logger that can show latents."""

    def log_latents(self, latents: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show latents as `Record.as_plain` gives them."""
        ...


class Features(L.Callback):
    """Keep, at each validation, where the same latents fire, in `features.json` and the loggers.

    The hash of the number chooses the latents, before anything is known about them: some may be
    silent. The codes are those of the validation itself, so that nothing is encoded twice.

    Args:
        text: The text of the validation rows.
        latents: Number of latents to watch.
        contexts: Strongest contexts of each.
    """

    def __init__(self, text: WatchedText, *, latents: int = 12, contexts: int = 2) -> None:
        self._text, self._count, self._contexts = text, latents, contexts
        self._latents: list[int] = []
        self._found: list[np.ndarray] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start over."""
        self._found = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the firings of the chosen latents: (latent, row, activation)."""
        if not self._text.contains(batch_idx):
            return
        code = field(outputs, "code")
        self._latents = self._latents or by_hash(range(code.d_sae))[: self._count]
        first, stop = self._text.rows.chunk_bounds(batch_idx)
        bounds = np.array_split(np.arange(first, stop), trainer.world_size)[trainer.global_rank]
        values = code.of(torch.tensor(self._latents, device=code.values.device)).float().cpu()
        row, column = values.nonzero(as_tuple=True)
        found = (column.numpy(), bounds[row.numpy()], values[row, column].numpy())
        self._found.append(np.stack(found).astype(np.float64))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `features.json` and show the latents with loggers that can."""
        if trainer.sanity_checking or not self._latents:
            return
        found = np.concatenate([part for rank in gather(self._found) for part in rank], axis=1)
        if trainer.global_rank != 0:
            return
        found = found[:, np.lexsort((found[1], found[0]))]
        module: Any = pl_module
        units = module.dictionary.units(module.scale)
        latents = []
        for i, latent in enumerate(self._latents):
            _, row, value = found[:, found[0] == i]
            unit = float(units[latent])
            latents.append(
                self._text.look(latent, row.astype(np.int64), value * unit, self._contexts)
            )
        step = trainer.global_step
        look = {"step": step, "tokens": int(module.tokens_seen), "latents": latents}
        file = Path(trainer.default_root_dir) / FILE
        write_json(file, {"looks": [*_before(file, step), look]})
        for logger in trainer.loggers:
            if isinstance(logger, LatentLogger):
                logger.log_latents(latents, step)


def _before(file: Path, step: int) -> list[dict[str, Any]]:
    """The looks at earlier steps; a run that was killed comes by the later ones again."""
    try:
        looks = read_object(file)["looks"] if file.exists() else []
        return [look for look in looks if look["step"] < step]
    except (ArtifactError, KeyError, TypeError):
        return []  # damaged: what comes now is still worth keeping
