"""One LM pass for several runs: all points that any of them reads in the same text."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sae.activations.from_config import lm_activations, points_of
from sae.activations.sources import LMActivations
from sae.errors import SAEError, SiteError
from sae.provenance import content_key
from sae.types import Ends, Point

Config = Mapping[str, Any]
log = logging.getLogger(__name__)


def harvest_all(configs: Iterable[Config], device_of: Callable[[Config], str]) -> None:
    """One LM pass for each text and LM, over all points that any of the runs reads there.

    Sources that fail are logged: the runs that need them fail later, the others go on.

    Args:
        configs: Checked configurations.
        device_of: Gives the device for the LM of a configuration.
    """
    wanted: dict[str, tuple[Config, list[Point]]] = {}
    for config in configs:
        activations = config["activations"]
        if activations["kind"] != "lm" or activations.get("stream"):  # nothing to harvest
            continue
        shared = {k: v for k, v in activations.items() if k not in ("layer", "site", "target")}
        key = content_key({"lm": config["lm"], "corpus": config["corpus"], "activations": shared})
        points = wanted.setdefault(key, (config, []))[1]
        points += [point for point in points_of(activations) if point not in points]
    for config, points in wanted.values():
        try:
            _harvest_those_there(source_at(config, points[0], device_of(config)), points)
        except SAEError as error:
            log.error("%s: %s", type(error).__name__, error)


def source_at(config: Config, point: Point, device: str) -> LMActivations:
    """The source of a configuration at one of its points."""
    return lm_activations(config["lm"], config["corpus"], point, config["activations"], device)


def _harvest_those_there(source: LMActivations, points: Sequence[Point]) -> None:
    """Harvest the points that the LM has, and log those that it has not."""
    try:
        source.prepare(also=points[1:])
    except SiteError:
        lm, there = source.source.load(), []
        for point in points:
            try:
                lm.check(point)
                there.append(point)
            except SiteError as error:
                log.error("SiteError: %s", error)
        if there:
            source.ends = Ends.at(there[0])
            source.prepare(also=there[1:])
