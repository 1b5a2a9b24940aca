"""Rows of the tables of steering: means over features, prompts and draws, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.features.output_effects import Effect
from sae.features.steered import ARMS, DIFF_MEAN, FEATURE, UNPUSHED, Cost
from sae.features.steered_draws import Resamples
from sae.features.steered_studies import Studied
from sae.language.pieces import pieces, token_bytes, visible
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import interval
from sae.metrics.crossed import crossed_means
from sae.tables import Type

Study = Mapping[str, Any]
Row = dict[str, Any]
SCORES = ("score", "concept", "fluency")
ENDS = ("", "_low", "_high")
CEILING = f"{DIFF_MEAN} at its own KL"
ARMS_TABLE: dict[str, tuple[Type, str]] = {
    "arm": ("string", ""),
    **{f"{name}{end}": ("float64", "") for name in (*SCORES, "feature_less_arm") for end in ENDS},
    "kl": ("float64", "nats"), "reached": ("float64", "share"), "size": ("float64", ""),
    **{f"neutral_{name}{end}": ("float64", "nats") for name in ("kl", "ce") for end in ENDS},
}  # fmt: skip
CURVES_TABLE: dict[str, tuple[Type, str]] = {
    "arm": ("string", ""), "target": ("float64", "nats"), "kl": ("float64", "nats"),
    **{f"{name}{end}": ("float64", "") for name in SCORES for end in ENDS},
    "reached": ("float64", "share"),
}  # fmt: skip
FEATURES_TABLE: dict[str, tuple[Type, str]] = {
    "latent": ("int64", ""), "chosen": ("bool", ""), "difference": ("float64", ""),
    "output_score": ("float64", ""), "confidence": ("float64", "nats"), "promoted": ("string", ""),
    "target": ("float64", "nats"), "size": ("float64", ""), "choosing": ("float64", ""),
    **{f"reporting{end}": ("float64", "") for end in ENDS},
}  # fmt: skip
TEXTS_TABLE: dict[str, tuple[Type, str]] = {
    "latent": ("int64", ""), "arm": ("string", ""), "prompt": ("string", ""),
    "draw": ("int64", ""), "text": ("string", ""), "target": ("float64", "nats"),
    **{f"{judge}{name}": ("float64", "") for judge in ("", "rated_") for name in SCORES},
}  # fmt: skip
RATINGS_TABLE: dict[str, tuple[Type, str]] = {
    "arm": ("string", ""),
    **{f"{name}{end}": ("float64", "") for name in (*SCORES, "feature_less_arm") for end in ENDS},
    "rated": ("float64", "share"),
}  # fmt: skip
_SHOWN_TOKENS, _SHOWN_LETTERS = 8, 12


def arm_rows(studied: Studied, bootstrap: Bootstrap) -> list[Row]:
    """A row for each arm, at the target KL that every feature chose, and for the ceiling.

    `feature_less_arm` is the paired difference of scores; it is missing where the arm or the
    feature did not reach the KL: they are not at the same cost then. `reached` is the share of
    features for which the arm did. Costs are means over the predictions of all documents.

    Args:
        studied: The studies.
        bootstrap: How features, prompts, texts and documents are drawn.
    """
    studies = studied.studies
    drawn = Resamples(studies, bootstrap)
    at_own_kl = drawn.chosen(studied.shared).repeat(len(studies), 1)
    feature = drawn.means(_values(studied, FEATURE, "score"), drawn.at)
    rows = []
    for arm in (*ARMS, CEILING):
        row: Row = {"arm": arm}
        at = at_own_kl if arm == CEILING else drawn.at
        means = {name: drawn.means(_values(studied, arm, name), at) for name in SCORES}
        for name, found in means.items():
            row |= _interval(name, found, bootstrap)
        reports = [_report(study, studied.shared, arm) for study in studies.values()]
        if arm != FEATURE:
            equal = arm in (*UNPUSHED, CEILING) or all(
                study["report"][FEATURE]["reached"][at] and report["reached"][at]
                for study, (report, at) in zip(studies.values(), reports, strict=True)
            )
            if equal:
                row |= _interval("feature_less_arm", feature - means["score"], bootstrap)
        for name, kind in (("kl", "kl"), ("size", "sizes"), ("reached", "reached")):
            if kind in reports[0][0]:
                row[name] = float(np.mean([report[kind][at] for report, at in reports]))
        if arm not in UNPUSHED:
            costs = [_cost(studied, latent, arm) for latent in studies]
            for name in ("kl", "ce"):
                sums, counts = (
                    crossed_means(np.array([cost[kind] for cost in costs]), bootstrap)
                    for kind in (name, "predictions")
                )
                row |= _interval(f"neutral_{name}", sums / counts, bootstrap)
        rows.append(row)
    return rows


def curve_rows(
    studied: Studied, targets: Sequence[float], bootstrap: Bootstrap
) -> Iterator[Row]:  # fmt: skip
    """A row for each arm and target KL; arms without a push have one row."""
    studies = studied.studies
    drawn = Resamples(studies, bootstrap)
    for arm in ARMS:
        reports = [_report(study, studied.shared, arm)[0] for study in studies.values()]
        for i, target in enumerate([None] if arm in UNPUSHED else targets):
            row: Row = {"arm": arm}
            if target is not None:
                row["target"] = target
                row["kl"] = float(np.mean([report["kl"][i] for report in reports]))
                row["reached"] = float(np.mean([report["reached"][i] for report in reports]))
            at = np.full_like(drawn.at, i)
            for name in SCORES:
                means = drawn.means(_values(studied, arm, name), at)
                row |= _interval(name, means, bootstrap)
            yield row


def feature_rows(
    every: Sequence[Effect], studies: Mapping[int, Study], targets: Sequence[float], tokenizer: Any,
    bootstrap: Bootstrap,
) -> Iterator[Row]:  # fmt: skip
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
            alone = Resamples({effect.latent: study}, bootstrap)
            means = alone.means(np.array([report["score"]]), alone.at)
            row |= {
                "target": targets[at], "size": report["sizes"][at], "choosing": on_choosing(study),
                **_interval("reporting", means, bootstrap),
            }  # fmt: skip
        yield row


def text_rows(studied: Studied, prompts: Sequence[str], targets: Sequence[float]) -> Iterator[Row]:
    """A row for each text at the target KL that its feature chose."""
    for latent, study in studied.studies.items():
        for arm in ARMS:
            report, at = _report(study, studied.shared, arm)
            target = None if arm in UNPUSHED else targets[at]
            at = 0 if arm in UNPUSHED else at
            for draw, texts in enumerate(report["texts"][at]):
                for i, prompt in enumerate(prompts):
                    yield {
                        "latent": latent, "arm": arm, "prompt": prompt, "draw": draw,
                        "text": texts[i], "target": target,
                        **{name: report[name][at][draw][i] for name in SCORES},
                    }  # fmt: skip


def shown(row: Row) -> str:
    """A text as a chat LM gets it: its prompt stands before it."""
    return row["prompt"] + row["text"]


def rating_rows(studied: Studied, texts: Sequence[Row], bootstrap: Bootstrap) -> list[Row]:
    """A row for each arm, of the ratings by a chat LM at the KL that every feature chose.

    Texts without a rating are left out; `rated` is the share of the others. Intervals do not hold
    the choice of the KL: texts at other KLs have no ratings.

    Args:
        studied: The studies.
        texts: As `text_rows` gives them, with their ratings.
        bootstrap: How features, prompts and texts are drawn.
    """
    drawn = Resamples(studied.studies, bootstrap)
    shape = (len(studied.studies), *_values(studied, FEATURE, "score").shape[2:])
    means = {
        (arm, name): drawn.means_of_known(np.array(
            [row[f"rated_{name}"] for row in texts if row["arm"] == arm], float
        ).reshape(shape))
        for arm in ARMS for name in SCORES
    }  # fmt: skip
    rows = []
    for arm in ARMS:
        row: Row = {"arm": arm}
        for name in SCORES:
            row |= _interval(name, means[arm, name], bootstrap)
        if arm != FEATURE:
            less = means[FEATURE, "score"] - means[arm, "score"]
            row |= _interval("feature_less_arm", less, bootstrap)
        known = [row["rated_score"] is not None for row in texts if row["arm"] == arm]
        rows.append(row | {"rated": float(np.mean(known))})
    return rows


def on_choosing(study: Mapping[str, Any]) -> float:
    """Mean score of a feature on the choosing prompts, at the target that it chose."""
    return float(np.mean(study["choose"]["score"][study["at"]]))


def metrics(rows: Sequence[Row], prefix: str = "") -> dict[str, tuple[float | None, ...]]:
    """Scores of every arm, and how far the feature is ahead of it, with intervals."""
    found = {}
    for row in rows:
        word = row["arm"].lower().replace(" ", "_")
        for name in (*SCORES, "feature_less_arm"):
            if name in row or name == "feature_less_arm" and row["arm"] != FEATURE:
                key = f"{name}_{word}" if name in SCORES else f"feature_less_{word}"
                found[f"{prefix}{key}"] = tuple(row.get(f"{name}{end}") for end in ENDS)
    return found


def _report(study: Mapping[str, Any], shared: Mapping[str, Any], arm: str) -> tuple[Any, int]:
    """Results of an arm on the reporting prompts, and the number of the target that counts."""
    if arm == CEILING:
        return shared["report"][DIFF_MEAN], shared["at"]
    side = study if arm in study["report"] else shared
    return side["report"][arm], study["at"]


def _values(
    studied: Studied, arm: str, name: str
) -> Float[np.ndarray, "features targets draws prompts"]:
    """Scores on the reporting prompts; those of arms without a push are the same at each target."""
    studies = studied.studies.values()
    values = np.array([_report(study, studied.shared, arm)[0][name] for study in studies])
    targets = len(next(iter(studies))["report"][FEATURE]["sizes"])
    return np.broadcast_to(values, (len(values), targets, *values.shape[2:]))


def _cost(studied: Studied, latent: int, arm: str) -> Cost:
    study = studied.studies[latent]
    at = _report(study, studied.shared, arm)[1]
    if arm in study["report"]:
        return studied.neutral[latent, arm, at]
    return studied.neutral[None, DIFF_MEAN if arm == CEILING else arm, at]


def _interval(name: str, drawn: np.ndarray, bootstrap: Bootstrap) -> Row:
    value = float(drawn[0]) if np.isfinite(drawn[0]) else None
    low, high = interval(drawn, bootstrap.level) or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
