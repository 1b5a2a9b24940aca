"""A plan as people read it."""

from rich.console import Console
from rich.table import Table

from sae.errors import ConfigError
from sae.planning.machine import Machine, free_disk
from sae.planning.plan import Plan, check_fits, size


def print_plan(plan: Plan, machine: Machine) -> None:
    """Print the costs of each stage, the sums, and whether they fit on this machine.

    Args:
        plan: Plan of one or several runs.
        machine: Machine that they would run on.
    """
    runs = f"{plan.members} SAEs" if plan.members > 1 else "one SAE"
    table = Table(title=f"Plan for {runs}; nothing was started", title_justify="left")
    table.add_column("stage")
    table.add_column("found", overflow="fold")
    for name in ("to cache", "RAM peak", "steps"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            stage.found,
            "?" if stage.disk is None else size(stage.disk) if stage.disk else "–",
            "?" if stage.peak is None else size(stage.peak) if stage.memory else "–",
            "?" if stage.steps is None else f"{stage.steps:,}" if stage.steps else "–",
        )
    table.add_section()
    steps, peak = sum(stage.steps or 0 for stage in plan.stages), plan.largest.peak or 0
    table.add_row("in all", "", size(plan.disk), size(peak), f"{steps:,}")
    console = Console()
    console.print(table)
    if any(stage.disk is None for stage in plan.stages):
        console.print("?: unknown until the LM is fetched; the sums are of what is known.")
    console.print(
        f"Free: {size(free_disk(plan.cache))} of disk in {plan.cache}, "
        f"{size(machine.memory)} of memory.",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    try:
        check_fits(plan, machine)
    except ConfigError as problem:
        console.print(f"It does not fit. {problem}", soft_wrap=True, markup=False, highlight=False)
