"""A Hydra launcher: the jobs of a multirun that read the same activations train from one read.

`python train.py -m l1=3e-4,1e-3,3e-3 launcher=ensemble`, or, which is the same by
`conf.commandline.as_sweep`, `python train.py 'l1=[3e-4,1e-3,3e-3]'`.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from conf.schema import checked_job
from sae.lockstep import lockstep
from sae.provenance import content_key
from sae.sharing import sharing

log = logging.getLogger(__name__)


class EnsembleLauncher(Launcher):
    """Runs jobs that share their data in lockstep, in this process; such groups one by one.

    Each job is what it is under any launcher: its own folder, configuration, checkpoint and
    result. Only the log is one, `train.log` in the sweep's folder, with the job in front of a line.
    """

    __module__ = "hydra_plugins.ensemble"  # see `register`

    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what `launch` needs."""
        self.config, self.hydra_context = config, hydra_context
        self.task_function = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; a job that fails does not stop the others."""
        from callbacks.interruption import Interrupted, handling

        setup_globals()
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        groups: dict[str, dict[str, DictConfig]] = {}
        names = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            job = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(job):
                job.hydra.job.id = job.hydra.job.num = number
            own = [word for word in filter_overrides(overrides) if word not in common]
            names.append(" ".join([f"#{number}", *own]))
            groups.setdefault(_data_key(overrides), {})[names[-1]] = job

        returned: dict[str, JobReturn] = {}
        before = HydraConfig.instance().cfg
        try:
            with _one_log(self.config, folder), handling():
                for group in groups.values():
                    log.info("%d SAEs from one read: %s", len(group), ", ".join(group))
                    returned |= lockstep(
                        {name: partial(self._run, job) for name, job in group.items()}
                    )
        except Interrupted as stopped:
            sys.stderr.write(
                f"Stopped by {stopped}. The same command with sweep_dir={folder} continues.\n"
            )
            raise
        HydraConfig.instance().cfg = before  # jobs that ran together put back each other's
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [returned[name] for name in names]

    def _run(self, job: DictConfig) -> JobReturn:
        keys = "hydra.sweep.dir", "hydra.sweep.subdir"
        return run_job(self.task_function, job, *keys, self.hydra_context, configure_logging=False)


def register() -> None:
    """Make the launcher known to Hydra, which takes plugins from a package of its own only."""
    sys.modules[EnsembleLauncher.__module__] = sys.modules[__name__]
    Plugins.instance().register(EnsembleLauncher)


def _data_key(overrides: Sequence[str]) -> str:
    """Equal for jobs that read the same batches in the same order."""
    config = checked_job(list(filter_overrides(overrides)))
    shared = {name: config[name] for name in ("activations", "lm", "corpus", "epochs")}
    return content_key(shared | {"batch_size": config["trainer"]["batch_size"]})


@contextmanager
def _one_log(config: DictConfig, folder: Path) -> Iterator[None]:
    """The jobs' logging, into one file, with the name of the job in front of its lines."""
    config = config.copy()
    with open_dict(config):
        config.hydra.runtime.output_dir = str(folder.resolve())
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    factory = logging.getLogRecordFactory()

    def named(*args: object, **kwargs: object) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        if name := sharing().name:
            name = name.replace("%", "%%") if record.args else name
            record.msg = f"{name}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
