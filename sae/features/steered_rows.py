"""Rows of the tables of steering: means over features and prompts, with intervals over both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae.features.output_effects import Effect
from sae.features.steered import ARMS, DIFF_MEAN, FEATURE, UNPUSHED
from sae.language.pieces import pieces, token_bytes, visible
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import interval
from sae.metrics.crossed import crossed_means

Studies = Mapping[int, Mapping[str, Any]]
Row = dict[str, Any]
SCORES = ("score", "concept", "fluency")
ENDS = ("", "_low", "_high")
CEILING = f"{DIFF_MEAN} at its own KL"
_SHOWN_TOKENS, _SHOWN_LETTERS = 8, 12


def arm_rows(studies: Studies, shared: Mapping[str, Any], bootstrap: Bootstrap) -> list[Row]:
    """A row for each arm, at the target KL that every feature chose, and for the ceiling.

    `feature_less_arm` is the paired difference of scores; it is missing where the arm or the
    feature did not reach the KL: they are not at the same cost then. `reached` is the share of
    features for which the arm did. Costs are means over the predictions of all documents.

    Args:
        studies: Studies by feature, as `study_feature` gives them.
        shared: As `study_shared` gives it.
        bootstrap: Settings of the draws of features, prompts and documents.
    """
    of_feature = _values(studies, shared, FEATURE, "score")
    rows = []
    for arm in (*ARMS, CEILING):
        row: Row = {"arm": arm}
        values = {name: _values(studies, shared, arm, name) for name in SCORES}
        for name, found in values.items():
            row |= _ends(name, found, bootstrap)
        reports = [_report(study, shared, arm) for study in studies.values()]
        if arm != FEATURE:
            equal = arm in (*UNPUSHED, CEILING) or all(
                study["report"][FEATURE]["reached"][at] and report["reached"][at]
                for study, (report, at) in zip(studies.values(), reports, strict=True)
            )
            if equal:
                row |= _ends("feature_less_arm", of_feature - values["score"], bootstrap)
        for name, kind in (("kl", "kl"), ("size", "sizes"), ("reached", "reached")):
            if kind in reports[0][0]:
                row[name] = float(np.mean([report[kind][at] for report, at in reports]))
        costs = [_cost(study, shared, arm) for study in studies.values()]
        for name in ("kl", "ce") if costs[0] else ():
            sums, counts = (
                crossed_means(np.array([cost[kind] for cost in costs if cost]), bootstrap)
                for kind in (name, "predictions")
            )
            row |= _interval(f"neutral_{name}", sums / counts, bootstrap)
        rows.append(row)
    return rows


def curve_rows(
    studies: Studies, shared: Mapping[str, Any], targets: Sequence[float], bootstrap: Bootstrap
) -> Iterator[Row]:
    """A row for each arm and target KL; arms that are not steered have one row for each draw."""
    for arm in ARMS:
        reports = [study["report"][arm] for study in studies.values() if arm in study["report"]]
        reports = reports or [shared["report"][arm]]
        for i, target in enumerate(targets):
            row: Row = {"arm": arm, "draw": i}
            if "kl" in reports[0]:
                row["target"] = target
                row["kl"] = float(np.mean([report["kl"][i] for report in reports]))
                row["reached"] = float(np.mean([report["reached"][i] for report in reports]))
            for name in SCORES:
                values = np.array([report[name][i] for report in reports])
                row |= _ends(name, values, bootstrap)
            yield row


def feature_rows(
    every: Sequence[Effect], studies: Studies, targets: Sequence[float], tokenizer: Any
) -> Iterator[Row]:
    """A row for each latent that was a candidate; those that were chosen have scores."""
    vocabulary = token_bytes(tokenizer)
    for effect in every:
        tokens = [visible(pieces([i], vocabulary)[0]) for i in effect.promoted[:_SHOWN_TOKENS]]
        row: Row = {
            **effect._asdict(), "chosen": effect.latent in studies,
            "promoted": " · ".join(token[:_SHOWN_LETTERS] for token in tokens),
        }  # fmt: skip
        if effect.latent in studies:
            study = studies[effect.latent]
            at, report = study["at"], study["report"][FEATURE]
            row |= {
                "target": targets[at], "size": report["sizes"][at], "choosing": on_choosing(study),
                "reporting": float(np.mean(report["score"][at])),
            }  # fmt: skip
        yield row


def text_rows(
    studies: Studies, shared: Mapping[str, Any], prompts: Sequence[str], targets: Sequence[float]
) -> Iterator[Row]:
    """A row for each text at the target KL that its feature chose."""
    for latent, study in studies.items():
        for arm in ARMS:
            report, at = _report(study, shared, arm)
            for i, prompt in enumerate(prompts):
                yield {
                    "latent": latent, "arm": arm, "prompt": prompt,
                    "text": report["texts"][at][i],
                    "target": None if arm in UNPUSHED else targets[at],
                    **{name: report[name][at][i] for name in SCORES},
                }  # fmt: skip


def on_choosing(study: Mapping[str, Any]) -> float:
    """Mean score of a feature on the choosing prompts, at the target that it chose."""
    return float(np.mean(study["choose"]["score"][study["at"]]))


def metrics(rows: Sequence[Row]) -> dict[str, tuple[float | None, ...]]:
    """Scores of every arm, and how far the feature is ahead of it, with intervals."""
    found = {}
    for row in rows:
        word = row["arm"].lower().replace(" ", "_")
        for name in (*SCORES, "feature_less_arm"):
            if name in row or name == "feature_less_arm" and row["arm"] != FEATURE:
                key = f"{name}_{word}" if name in SCORES else f"feature_less_{word}"
                found[key] = tuple(row.get(f"{name}{end}") for end in ENDS)
    return found


def _report(study: Mapping[str, Any], shared: Mapping[str, Any], arm: str) -> tuple[Any, int]:
    """Results of an arm on the reporting prompts, and the number of the target that counts."""
    if arm == CEILING:
        return shared["report"][DIFF_MEAN], shared["at"]
    side = study if arm in study["report"] else shared
    return side["report"][arm], study["at"]


def _values(studies: Studies, shared: Mapping[str, Any], arm: str, name: str) -> np.ndarray:
    """Values [features, prompts]; those of arms without a KL are means over draws."""
    found = []
    for study in studies.values():
        report, at = _report(study, shared, arm)
        values = np.array(report[name])
        found.append(values.mean(0) if arm in UNPUSHED else values[at])
    return np.array(found)


def _cost(
    study: Mapping[str, Any], shared: Mapping[str, Any], arm: str
) -> Mapping[str, Any] | None:
    if arm in study["neutral"]:
        return study["neutral"][arm]
    of_targets = shared["neutral"].get(DIFF_MEAN if arm == CEILING else arm)
    return of_targets and of_targets[_report(study, shared, arm)[1]]


def _ends(name: str, values: np.ndarray, bootstrap: Bootstrap) -> Row:
    return _interval(name, crossed_means(values, bootstrap), bootstrap)


def _interval(name: str, drawn: np.ndarray, bootstrap: Bootstrap) -> Row:
    low, high = interval(drawn, bootstrap.level) or (None, None)
    return {name: float(drawn[0]), f"{name}_low": low, f"{name}_high": high}
