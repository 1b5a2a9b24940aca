"""A plan as people read it."""

from rich.console import Console
from rich.table import Table

from sae.errors import ConfigError
from sae.planning.machine import Machine, free_disk
from sae.planning.measured import measure
from sae.planning.plan import Plan, check_fits, size
from sae.progress import duration


def print_plan(plan: Plan, machine: Machine) -> None:
    """Print what each stage costs, the sums, and whether this machine can have it.

    Args:
        plan: Of one or several runs.
        machine: Where they would run. If it can, and the LM is here, the harvest is timed.
    """
    problem, paces = None, {}
    try:
        check_fits(plan, machine)
        paces = measure(one for stage in plan.stages for one in stage.captures or ())
    except ConfigError as error:
        problem = error
    runs = f"{plan.members} SAEs" if plan.members > 1 else "one SAE"
    table = Table(title=f"Plan for {runs}; nothing was started", title_justify="left")
    table.add_column("stage")
    table.add_column("found", overflow="fold")
    for name in ("to cache", "RAM peak", "steps", "time"):
        table.add_column(name, justify="right")
    seconds = [stage.time(paces) for stage in plan.stages]
    for stage, needed in zip(plan.stages, seconds, strict=True):
        later = "known after the first batch" if stage.name != "fetch" else "as the network is"
        table.add_row(
            stage.name,
            stage.found,
            "?" if stage.disk is None else size(stage.disk) if stage.disk else "–",
            "?" if stage.peak is None else size(stage.peak) if stage.memory else "–",
            "?" if stage.steps is None else f"{stage.steps:,}" if stage.steps else "–",
            later if needed is None else f"~{duration(needed)}" if needed else "–",
        )
    known, peak = sum(needed or 0 for needed in seconds), plan.largest.peak or 0
    table.add_section()
    table.add_row(
        "in all", "", size(plan.disk), size(peak), f"{sum(s.steps or 0 for s in plan.stages):,}",
        f"over {duration(known)}" if known else "",
    )  # fmt: skip
    console = Console()
    console.print(table)
    if any(stage.disk is None for stage in plan.stages):
        console.print("?: unknown until the LM is fetched; the sums are of what is known.")
    if paces:
        console.print(
            "Time: of the LM's passes, one batch run now; what else a stage does comes on top.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    console.print(
        f"Free: {size(free_disk(plan.cache))} of disk in {plan.cache}, "
        f"{size(machine.memory)} of memory.",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    if problem is not None:
        console.print(f"It does not fit. {problem}", soft_wrap=True, markup=False, highlight=False)
