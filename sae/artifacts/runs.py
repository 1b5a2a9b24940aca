"""Run folders: find them, name them, read their results."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.checksums import check_folder, read_unsealed


def name_runs(runs: Sequence[str | Path]) -> tuple[Path, dict[str, str | Path]]:
    """The folder that all runs are in, and the runs by their paths in it."""
    paths = {run: Path(run).expanduser().resolve() for run in runs}
    parents = [path.parent for path in paths.values() if path.exists()]  # a hub id is not a path
    common = Path(os.path.commonpath(parents)) if parents else Path.cwd()
    return common, {
        str(path.relative_to(common)) if path.exists() else str(run): run
        for run, path in paths.items()
    }


def runs_in(run: str, unfinished: bool = False) -> list[str]:
    """The run itself, or the jobs of a sweep; by default those that are finished."""
    folder = Path(run).expanduser()
    if not (folder / "multirun.yaml").is_file():
        return [run]
    jobs = [job for job in folder.iterdir() if job.is_dir() and job.name.isdigit()]
    return [
        str(job)
        for job in sorted(jobs, key=lambda job: int(job.name))
        if unfinished or (job / "results.json").is_file()
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty when it does not exist.

    Raises:
        ArtifactError: If it exists but is not a JSON object, or is damaged.
    """
    if not os.path.lexists(path):
        return {}
    check_folder(path.parent, [path.name])
    return read_unsealed(path)


def read_results(run: Path, evals: Sequence[str]) -> dict[str, Any]:
    """`results.json` of a run; evaluations that it lacks come from `evals/<eval>.json`.

    Raises:
        ArtifactError: If a file is damaged.
    """
    found = read_json(run / "results.json")
    for name in evals:
        if name not in found and (later := read_json(run / "evals" / f"{name}.json")):
            found[name] = later
    return found


def metric(results: Mapping[str, Any], evaluation: str, name: str) -> dict[str, Any]:
    """`value`, `low` and `high` of a metric in a `results.json`; empty when it is not there."""
    found = mapping(mapping(results.get(evaluation)).get("metrics")).get(name)
    return found if isinstance(found, dict) else {}


def mapping(value: object) -> Mapping[str, Any]:
    """The value itself if it is a mapping, else an empty one: files may hold anything."""
    return value if isinstance(value, Mapping) else {}
