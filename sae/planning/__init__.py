"""Plans a run before anything starts: disk, memory, and whether it fits."""

from sae.planning.machine import Machine
from sae.planning.plan import Plan, Stage, check_fits
from sae.planning.stages import check_sweep, members_of, plan_runs
from sae.planning.table import print_plan

__all__ = [
    "Machine",
    "Plan",
    "Stage",
    "check_fits",
    "check_sweep",
    "members_of",
    "plan_runs",
    "print_plan",
]
