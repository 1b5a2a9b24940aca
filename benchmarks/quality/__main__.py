"""Quality beside other libraries: python -m benchmarks.quality {plan,run,report,train}."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import RESULTS, show_log
from benchmarks.quality.contender import Setting
from benchmarks.quality.data import SYNTHETIC, Size

if TYPE_CHECKING:
    from benchmarks.quality.protocol import Plan

WORK = Path("outputs/quality")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a part of the comparison."""
    options = parser()
    given = options.parse_args(argv)
    if given.what == "train" and None in (given.method, given.lr, given.value):
        options.error("train needs --method, --lr and --value.")
    show_log()
    from benchmarks.quality.protocol import run
    from benchmarks.quality.report import estimate, report

    plan = plan_of(given)
    if given.what == "run":
        run(plan, given.methods, given.jobs)
    elif given.what == "report":
        report(plan, given.out)
    elif given.what == "plan":
        sys.stdout.write(estimate(plan, given.methods, given.jobs))
    else:
        _train(given)


def parser() -> argparse.ArgumentParser:
    """The options; sizes are meant for two cores and about an hour."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    made.add_argument("what", choices=("plan", "run", "report", "train"))
    made.add_argument("--data", nargs="*", default=[SYNTHETIC, "resid.4", "resid.15"])
    made.add_argument("--methods", nargs="*", default=[], help="parts of keys; default: all")
    made.add_argument("--vectors", type=int, default=81_920, help="of the LM")
    made.add_argument("--synthetic-vectors", type=int, default=204_800)
    made.add_argument("--tuning-share", type=float, default=0.5, help="of the vectors, for tuning")
    made.add_argument("--lrs", type=int, default=5, help="learning rates that everybody tries")
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--ratio", type=float, default=4, help="d_sae over d_in")
    made.add_argument("--l0", type=float, default=32, help="on activations of the LM")
    made.add_argument("--synthetic-l0", type=float, default=8)
    made.add_argument(
        "--frontier",
        type=float,
        nargs="*",
        default=[0.5, 2],
        help="times the L0, one seed each",
    )
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--ce-contexts", type=int, default=16, help="0: no cross entropy")
    made.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    made.add_argument("--work", type=Path, default=WORK, help="folder of data and records")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    one = made.add_argument_group("train", "one training, shown as JSON")
    one.add_argument("--method", help="key, such as sae-lens/topk")
    one.add_argument("--lr", type=float)
    one.add_argument("--value", type=float, help="k, target L0 or penalty")
    one.add_argument("--seed", type=int, default=0)
    return made


def plan_of(given: argparse.Namespace) -> "Plan":
    """Meaning of the options."""
    from benchmarks.quality.protocol import Plan, Task

    tasks, tuned_on_lm = [], None
    for name in given.data:
        synthetic = name == SYNTHETIC
        size = size_of(given, name)
        share = round(given.tuning_share * size.vectors)
        l0 = given.synthetic_l0 if synthetic else given.l0
        lr_from = None if synthetic else tuned_on_lm
        tasks.append(
            Task(
                name,
                size,
                Size(share, size.val, size.test, size.batch),
                d_sae_of(given, name),
                l0,
                tuple(part * l0 for part in given.frontier),
                lr_from,
                given.ce_contexts,
            )
        )
        if not synthetic and tuned_on_lm is None:
            tuned_on_lm = name
    options = {
        name: getattr(given, name)
        for name in ("vectors", "synthetic_vectors", "tuning_share", "lrs", "batch", "ratio", "l0",
                     "synthetic_l0", "seeds", "ce_contexts")
    }  # fmt: skip
    return Plan(tasks, given.seeds, given.work, given.lrs, options)


def size_of(given: argparse.Namespace, name: str) -> Size:
    """Vectors of a data set."""
    vectors = given.synthetic_vectors if name == SYNTHETIC else given.vectors
    return Size(vectors, val=8192, test=16_384, batch=given.batch)


def d_sae_of(given: argparse.Namespace, name: str) -> int:
    """Latents on a data set."""
    if name == SYNTHETIC:
        from benchmarks.quality.data import problem_a

        return round(given.ratio * problem_a().features.shape[1])
    from benchmarks.quality.data import lm_source

    return round(given.ratio * lm_source(name).split("train").d_in)


def _train(given: argparse.Namespace) -> None:
    from benchmarks.quality.contenders import contenders
    from benchmarks.quality.records import trained

    for name in given.data:
        contexts = 0 if name == SYNTHETIC else given.ce_contexts
        setting = Setting(given.lr, given.value, given.seed)
        record = trained(
            contenders()[given.method], name, size_of(given, name), d_sae_of(given, name),
            setting, given.work, contexts,
        )  # fmt: skip
        sys.stdout.write(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
