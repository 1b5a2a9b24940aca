"""A W&B workspace for SAE runs, laid out by code.

    python -m callbacks.workspace --entity me --project lightning-sae           saves it
    python -m callbacks.workspace --entity me --project lightning-sae --json    only shows it

Building needs the package `wandb-workspaces` (extra `wandb`) and no account; saving needs a login.
"""

import argparse
import json
import sys
from typing import Any

from sae.errors import ConfigError

# Section, then its curves: title -> (metrics, logarithmic values?)
_CURVES: dict[str, dict[str, tuple[list[str], bool]]] = {
    "Quality": {
        "FVU": (["val/fvu", "val/fvu_median", "train/fvu"], True),
        "L0": (["val/l0", "train/l0"], True),
        "CE recovered": (["val/ce_recovered_zero", "val/ce_recovered_mean"], False),
        "Dead, silent, dense": (["train/dead", "val/silent", "val/dense"], False),
    },
    "Loss": {
        "Loss": (["train/loss"], True),
        "Reconstruction": (["train/loss_reconstruction"], True),
        "Learning rate": (["train/lr"], False),
        "KL and cross entropy": (["val/kl", "val/ce_sae", "val/ce_clean"], False),
    },
}
_SCATTERS = {
    "L0 against FVU": ("final/l0", "final/fvu"),
    "L0 against CE recovered": ("final/l0", "final/ce_recovered_zero"),
}


def build_workspace(entity: str, project: str, name: str = "Sparse autoencoders") -> Any:
    """Lay out curves over tokens, and L0 against what it costs, a point for each run.

    Args:
        entity: User or team that it will belong to.
        project: W&B project.
        name: Title of the view.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; its `save()` needs a login.

    Raises:
        ConfigError: If `wandb-workspaces` is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws  # pyright: ignore[reportMissingImports]
        from wandb_workspaces.reports.v2 import (  # pyright: ignore[reportMissingImports]
            LinePlot,
            ScatterPlot,
        )
    except ImportError as error:
        raise ConfigError(
            "A workspace needs the package wandb-workspaces: "
            'pip install "lightning-sae[wandb]", or lay it out by hand (docs/guides/wandb.md).'
        ) from error
    sections = [
        ws.Section(
            name=section,
            is_open=True,
            panels=[
                LinePlot(title=title, x="tokens", y=list(metrics), log_y=log or None)
                for title, (metrics, log) in plots.items()
            ],
        )
        for section, plots in _CURVES.items()
    ]
    scatters = [
        ScatterPlot(title=title, x=x, y=y, log_x=True) for title, (x, y) in _SCATTERS.items()
    ]
    sections.insert(1, ws.Section(name="Trade-off", is_open=True, panels=list(scatters)))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=50),
    )


def main(arguments: list[str] | None = None) -> None:
    """Save the workspace, or show it."""
    parser = argparse.ArgumentParser(description="A W&B workspace for SAE runs.")
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="lightning-sae")
    parser.add_argument("--json", action="store_true", help="show it, save nothing, no login")
    options = parser.parse_args(arguments)
    try:
        workspace = build_workspace(options.entity, options.project)
        if not options.json:
            workspace.save()
    except Exception as error:  # no package, no login, no server: say which, without a traceback
        parser.exit(1, f"The workspace was not saved. {type(error).__name__}: {error}\n")
    if options.json:
        content = workspace._to_model().model_dump(by_alias=True, mode="json")
        sys.stdout.write(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
