"""Weights & Biases (W&B): the only file that imports wandb, and only when it is asked for.

Nothing here asks a question or stops a run: no login means an offline run, no server means an
offline run, and a failure in the middle means one warning and a run without W&B. The same
numbers are always in `metrics.csv` and `results.json`.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from sae.errors import ConfigError
from sae.features.plain import marked
from sae.sharing import sharing

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
_MODES: tuple[str, ...] = get_args(Mode)
_WANDB_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline",
                "dryrun": "offline", "disabled": "disabled"}  # fmt: skip

_INIT_TIMEOUT_SECONDS = 15.0
_FINISH_TIMEOUT_SECONDS = 300.0
_TEARDOWN_TIMEOUT_SECONDS = 5.0  # it takes milliseconds where it ends at all
# A run's best value where more training can make it worse; everything else: the last value.
_SUMMARIES = {
    "val/fvu": "min,last",
    "val/fvu_median": "min,last",
    "val/mse": "min,last",
    "val/kl": "min,last",
    "val/ce_sae": "min,last",
    "val/perplexity_sae": "min,last",
    "val/ce_recovered_zero": "max,last",
    "val/ce_recovered_mean": "max,last",
}


def make_wandb_logger(
    mode: str = "auto",
    *,
    folder: str | Path,
    project: str = "lightning-sae",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> "WandbRun | None":
    """Start a W&B run, or continue the one whose id is in `wandb_id.txt` of its folder.

    Args:
        mode: `auto`: what `WANDB_MODE` says, else online when logged in and offline otherwise;
            `online` is the same but warns when there is no login; `offline`; `disabled`.
        folder: Run folder; W&B writes into its sub-folder `wandb/`, unless `WANDB_DIR` is set.
        project: W&B project.
        entity: User or team; default: the account's own.
        group: Name that all jobs of a sweep share.
        name: Name of the run.
        config: Configuration to show and filter by.

    Returns:
        A Lightning logger; None when W&B is off, cannot even start offline, or on other ranks.

    Raises:
        ConfigError: If `mode` is unknown.
    """
    if mode not in _MODES:
        raise ConfigError(f"logger mode {mode!r} is not known. Choose one of {', '.join(_MODES)}.")
    wish = _WANDB_MODES.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "auto" else mode
    if wish == "disabled" or rank_zero_only.rank != 0:
        return None
    folder = Path(folder).resolve()
    # read here, not by wandb, which looks at the environment once in the life of a process
    written_to = Path(os.environ.get("WANDB_DIR") or folder).resolve()
    id_file = folder / "wandb_id.txt"
    arguments = {
        "project": project,
        "entity": entity,
        "group": group,
        "name": name,
        "config": dict(config or {}),
        "job_type": "train",
        "dir": str(written_to),
        "id": _run_id(id_file),
    }
    try:
        for needed in (written_to, folder):
            needed.mkdir(parents=True, exist_ok=True)
        run = _start(arguments, online=wish != "offline", expected=wish == "online")
        id_file.write_text(run.id + "\n")
        _define_metrics(run)
    except Exception as error:  # whatever goes wrong in there, training does not depend on it
        log.warning("W&B is off for this run, it could not start: %s", _short(error))
        return None
    return WandbRun(run)


class WandbRun(WandbLogger):
    """Lightning's WandbLogger around a run that exists, which never lets W&B stop training."""

    def __init__(self, run: Any) -> None:
        super().__init__(
            experiment=run, project=run.project, save_dir=run.settings.root_dir, id=run.id
        )
        self._run = run
        self._broken = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of a step to W&B."""
        kept = {key: value for key, value in metrics.items() if key != "epoch"}
        self._attempt(lambda: WandbLogger.log_metrics(self, kept, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add parameters to the configuration of the W&B run."""
        self._attempt(lambda: WandbLogger.log_hyperparams(self, params))

    def log_firing_histogram(self, histogram: Mapping[str, Any], step: int) -> None:
        """Draw what `sae.functional.firing_histogram` returns."""

        def send() -> None:
            import wandb

            drawn = wandb.Histogram(np_histogram=(histogram["latents"], histogram["log10_edges"]))
            self._run.log({"val/firing_log10_frequency": drawn, "trainer/global_step": step})

        self._attempt(send)

    def log_latents(self, latents: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show latents (`Record.as_plain`) as a table: a row for each context, its peak in «»."""

        def send() -> None:
            import wandb

            columns: list[Any] = ["latent", "density", "max", "context"]
            rows: list[Any] = [
                [one["latent"], one["density"], one["max"], marked(context)]
                for one in latents
                for context in one["contexts"] or [None]
            ]
            table = wandb.Table(columns=columns, data=rows)
            self._run.log({"val/features": table, "trainer/global_step": step})

        self._attempt(send)

    def log_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the final table, and put its values into the run's summary as `final/<metric>`.

        Args:
            rows: One mapping a metric with the same keys, among them `metric` and `value`
                (`sae.reports.results_table`).
        """

        def send() -> None:
            import wandb

            columns: list[Any] = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
            self._run.log({"final": table})
            final = {f"final/{r['metric']}": r["value"] for r in rows if r["value"] is not None}
            self._run.summary.update(final)

        if rows:
            self._attempt(send)

    def log_sae(self, folder: str | Path, metadata: Mapping | None = None) -> None:
        """Keep the folder of a saved SAE as an artifact of the run.

        Offline, its files stay where they are and are uploaded by `wandb sync`.
        """

        def send() -> None:
            import wandb

            name, known = f"sae-{self._run.id}", dict(metadata or {})
            artifact = wandb.Artifact(name, type="sae", metadata=known)
            # immutable: no second copy in W&B's staging area; a finished SAE does not change
            artifact.add_dir(str(folder), policy="immutable")
            self._run.log_artifact(artifact)

        self._attempt(send)

    def close(self, exit_code: int = 0) -> None:
        """Finish the run, so that the next job of a sweep starts its own. May be called twice."""
        offline = self._run.offline
        self._broken = False  # try once more: finishing writes what is left
        self._attempt(lambda: self._run.finish(exit_code=exit_code))
        if offline:
            log.info("W&B run kept offline; upload it with: wandb sync %s", self.sync_folder)

    @property
    def sync_folder(self) -> Path:
        """Folder of the run that `wandb sync` takes."""
        return Path(self._run.settings.sync_dir)

    def _attempt(self, call: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:  # a logger must not end a training run of hours
            self._broken = True
            log.warning("W&B stopped, training goes on without it: %s", _short(error))


def _start(arguments: Mapping[str, Any], *, online: bool, expected: bool) -> Any:
    """Start the run, online if wished and possible."""
    import wandb

    settings = wandb.Settings(
        init_timeout=_INIT_TIMEOUT_SECONDS,
        finish_timeout=_FINISH_TIMEOUT_SECONDS,
        console="off",  # progress bars would fill the captured output
        quiet=True,
    )
    # create_new leaves a run alone that a notebook may have open
    arguments = {**arguments, "settings": settings, "reinit": "create_new"}
    neighbours: list[str] = sharing().once("W&B runs", list)
    if online and "offline" not in neighbours:  # what the first found out holds for all
        try:
            if wandb.login(prompt=False, verify=True):
                run = wandb.init(mode="online", resume="allow", **arguments)
                neighbours.append("online")
                return run
            if expected:
                log.warning("W&B is not logged in (run `wandb login`); this run is kept offline.")
        except Exception as error:  # no server, no access, wrong key: the reason is in the message
            log.warning("W&B cannot be used online, this run is kept offline: %s", _short(error))
            if not neighbours:  # it would end their runs
                _end_service()  # a half-started run would keep its id taken
    neighbours.append("offline")
    return wandb.init(mode="offline", **arguments)


def _end_service() -> None:
    """End W&B's own process, or leave it behind: it can miss the order, and ends with ours then.

    It answers the question that timed out just when we hang up, finds nobody there, and stops
    reading before the order to end; `wandb.teardown` waits for it without a limit.
    """
    import wandb

    waiting = threading.Thread(target=wandb.teardown, daemon=True)
    waiting.start()
    waiting.join(_TEARDOWN_TIMEOUT_SECONDS)


def _define_metrics(run: Any) -> None:
    """Draw everything over the tokens seen, the one axis that runs of all batch sizes share."""
    run.define_metric("trainer/global_step", hidden=True)
    run.define_metric("tokens", hidden=True)
    run.define_metric("*", step_metric="tokens", step_sync=True)
    for name, summary in _SUMMARIES.items():
        run.define_metric(name, step_metric="tokens", step_sync=True, summary=summary)


def _run_id(file: Path) -> str:
    known = file.read_text(errors="replace").strip() if file.is_file() else ""
    return known or secrets.token_hex(4)


def _short(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
