"""A plan as people read it."""

from rich.console import Console
from rich.table import Table

from sae.errors import ConfigError
from sae.planning.machine import Machine, free_disk
from sae.planning.plan import Plan, check_fits, size


def print_plan(plan: Plan, machine: Machine) -> None:
    """Print what each stage costs, the sums, and whether this machine can have it.

    Args:
        plan: Of one or several runs.
        machine: Its speed is measured here, for a second or two.
    """
    runs = f"{plan.members} SAEs" if plan.members > 1 else "one SAE"
    table = Table(title=f"Plan for {runs}; nothing was started", title_justify="left")
    table.add_column("stage")
    table.add_column("found", overflow="fold")
    for name in ("to cache", "RAM peak", "steps", "TFLOP", "time"):
        table.add_column(name, justify="right")
    seconds = [stage.time(machine) for stage in plan.stages]
    for stage, needed in zip(plan.stages, seconds, strict=True):
        table.add_row(
            stage.name,
            stage.found,
            "?" if stage.disk is None else size(stage.disk) if stage.disk else "–",
            "?" if stage.peak is None else size(stage.peak) if stage.memory else "–",
            "?" if stage.steps is None else f"{stage.steps:,}" if stage.steps else "–",
            "?" if stage.flops is None else f"{stage.flops / 1e12:,.3g}" if stage.flops else "–",
            duration(needed),
        )
    known = sum(needed or 0 for needed in seconds)
    peak, flops = plan.largest.peak or 0, sum(stage.flops or 0 for stage in plan.stages)
    table.add_section()
    table.add_row(
        "in all", "", size(plan.disk), size(peak), f"{sum(s.steps or 0 for s in plan.stages):,}",
        f"{flops / 1e12:,.3g}", duration(known),
    )  # fmt: skip
    console = Console()
    console.print(table)
    if None in seconds:
        console.print("?: unknown until the LM is fetched; the sums are of what is known.")
    for product, rate in machine.rates.items():
        shape = f"[{product.rows} {product.inner}] @ [{product.inner} {product.columns}]"
        console.print(f"{product.dtype} {shape}: {rate / 1e9:,.0f} GFLOP/s", markup=False)
    console.print(
        f"Free: {size(free_disk(plan.cache))} of disk in {plan.cache}, "
        f"{size(machine.memory)} of memory. Downloads take what the network takes.",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    try:
        check_fits(plan, machine)
    except ConfigError as error:
        console.print(f"It does not fit. {error}", soft_wrap=True, markup=False, highlight=False)


def duration(seconds: int | float | None) -> str:
    """An estimate of time in words.

    Example:
        >>> duration(None), duration(0), duration(41), duration(200), duration(9000)
        ('?', '–', '~41 s', '~3.3 min', '~2.5 h')
    """
    if seconds is None:
        return "?"
    if not seconds:
        return "–"
    if seconds < 100:
        return f"~{seconds:.0f} s" if seconds >= 1 else "~1 s"
    return f"~{seconds / 60:.1f} min" if seconds < 6000 else f"~{seconds / 3600:.1f} h"
