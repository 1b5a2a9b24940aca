"""`manifest.json`: what a run was made with, when it ran and how long each stage took."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only

from callbacks.interruption import Interrupted
from sae.checksums import read_unsealed, seal
from sae.errors import ArtifactError
from sae.provenance import provenance, write_json
from sae.sharing import Stopped

log = logging.getLogger(__name__)

_INTERRUPTIONS = (KeyboardInterrupt, Interrupted, Stopped)


class Manifest(L.Callback):
    """Write versions, commit, machine, command, configuration, seeds and timing.

    Every process that works on the run adds an entry to `sessions`, so that a run that was killed
    and resumed shows where. Numbers that depend on the clock belong here and nowhere else.

    Args:
        path: The file.
        config: Resolved configuration; plain JSON values.
        seeds: Named seeds.

    Attributes:
        training: Numbers of this session: `vectors`, `seconds` and `vectors_per_second`, without
            validation.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        seeds: Mapping[str, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.training: dict[str, float] = {"vectors": 0, "seconds": 0.0}
        self._given = {"config": dict(config or {}), "seeds": dict(seeds or {})}
        self._session: dict[str, Any] | None = None
        self._stages: dict[str, float] = {}
        self._clock = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage outside training, for example `with manifest.stage("harvest"):`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - start)
            if self._session is not None:
                self._write()

    @contextmanager
    def session(self) -> Iterator[None]:
        """A session without a Trainer, around the work on what is fitted instead of trained."""
        self._open(0)
        try:
            yield
        except BaseException as error:
            self._fail(0, error)
            raise
        self._note(0, "finished")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a session."""
        self._open(trainer.global_step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock: what came before was setting up."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count vectors, of all processes."""
        self.training["vectors"] += len(batch) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting time as training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._lap("train")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note how far the run is: a killed process cannot."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._lap("validate")
            self._note(trainer.global_step, "running")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the session."""
        self._lap("train")
        self._note(trainer.global_step, "interrupted" if trainer.interrupted else "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the session and say what happened."""
        if self._session is not None:
            self._fail(trainer.global_step, exception)

    def _lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._add(stage, now - self._clock)
        self._clock = now
        self.training["seconds"] = self._stages.get("train", 0.0)
        seconds = max(self.training["seconds"], 1e-9)
        self.training["vectors_per_second"] = self.training["vectors"] / seconds

    def _add(self, stage: str, seconds: float) -> None:
        self._stages[stage] = self._stages.get(stage, 0.0) + seconds

    def _open(self, step: int) -> None:
        self._session = {
            "started_utc": _now(),
            "ended_utc": None,
            "status": "running",
            "from_step": step,
            "to_step": step,
            "resume_with": self._given["config"].get("resume_with"),
            **provenance(),
        }
        self._write()

    def _fail(self, step: int, error: BaseException) -> None:
        assert self._session is not None
        self._session["error"] = f"{type(error).__name__}: {error}"
        self._note(step, "interrupted" if isinstance(error, _INTERRUPTIONS) else "failed")

    def _note(self, step: int, status: str) -> None:
        """Note how the session stands; only a status other than `running` ends it."""
        assert self._session is not None
        ended = None if status == "running" else _now()
        self._session.update(to_step=step, status=status, ended_utc=ended)
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        assert self._session is not None
        session = self._session | {"stage_seconds": self._stages, "training": self.training}
        content = {**self._given, "sessions": [*self._earlier(), session]}
        write_json(self.path, seal(content))

    def _earlier(self) -> list[dict[str, Any]]:
        """Sessions of other processes; one that still says `running` was killed."""
        assert self._session is not None
        if not os.path.lexists(self.path):
            return []
        try:
            sessions = read_unsealed(self.path)["sessions"]
            own = self._session["started_utc"], self._session["from_step"]
            earlier = [s for s in sessions if (s["started_utc"], s["from_step"]) != own]
            return [s | {"status": "killed"} if s["status"] == "running" else s for s in earlier]
        except (ArtifactError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): its earlier sessions are lost.", self.path, error)
            return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
