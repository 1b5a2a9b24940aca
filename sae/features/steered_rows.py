"""Rows of the tables of steering: means over features, prompts and draws, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.features.output_effects import Effect
from sae.features.steered import ARMS, DIFF_MEAN, FEATURE, UNPUSHED, UNSTEERED
from sae.features.steered_draws import Resamples
from sae.features.steered_studies import CEILING, Studied
from sae.language.pieces import pieces, token_bytes, visible
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import interval
from sae.metrics.crossed import crossed_means
from sae.tables import Type

Study = Mapping[str, Any]
Row = dict[str, Any]
SCORES = ("score", "concept", "fluency")
ENDS = ("", "_low", "_high")
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
        bootstrap: Settings of the draws of features, prompts, texts and documents.
    """
    feature = _values(studied, FEATURE, "score")
    drawn = Resamples(feature.shape, bootstrap)
    rows = []
    for arm in (*ARMS, CEILING):
        row: Row = {"arm": arm}
        for name in SCORES:
            row |= _interval(name, drawn.means(_values(studied, arm, name)), bootstrap)
        reports = [studied.report(latent, arm) for latent in studied.features]
        if _compared(studied, arm):
            less = drawn.means(feature - _values(studied, arm, "score"))
            row |= _interval("feature_less_arm", less, bootstrap)
        if arm not in UNPUSHED:
            for name in ("kl", "size", "reached"):
                row[name] = float(np.mean([report[name] for report in reports]))
            costs = [studied.cost(latent, arm) for latent in studied.features]
            most = 1 if len(costs[0]["predictions"]) < 2 else None  # one document: no interval
            for name in ("kl", "ce"):
                sums, counts = (
                    crossed_means(np.array([cost[kind] for cost in costs]), bootstrap)
                    for kind in (name, "predictions")
                )
                row |= _interval(f"neutral_{name}", (sums / counts)[:most], bootstrap)
        rows.append(row)
    return rows


def curve_rows(
    studied: Studied, targets: Sequence[float], bootstrap: Bootstrap
) -> Iterator[Row]:  # fmt: skip
    """A row on the choosing prompts for the arms that choose and each target KL, and unsteered."""
    shared = studied.shared
    choosers = {
        FEATURE: [study["choose"] for study in studied.features.values()],
        DIFF_MEAN: [shared["choose"]], UNSTEERED: [[shared["unsteered"]]],
    }  # fmt: skip
    for arm, listed in choosers.items():
        for i in range(len(listed[0])):
            records = [records[i] for records in listed]
            row: Row = {"arm": arm}
            if arm != UNSTEERED:
                row["target"] = targets[i]
                for name in ("kl", "reached"):
                    row[name] = float(np.mean([record[name] for record in records]))
            for name in SCORES:
                values = np.array([record[name] for record in records])
                means = Resamples(values.shape, bootstrap).means(values)
                row |= _interval(name, means, bootstrap)
            yield row


def feature_rows(
    every: Sequence[Effect], studied: Studied, targets: Sequence[float], tokenizer: Any,
    bootstrap: Bootstrap,
) -> Iterator[Row]:  # fmt: skip
    """A row for each latent that was a candidate; those that were chosen have scores."""
    vocabulary = token_bytes(tokenizer)
    for effect in every:
        tokens = [visible(pieces([i], vocabulary)[0]) for i in effect.promoted[:_SHOWN_TOKENS]]
        row: Row = {
            **effect._asdict(), "chosen": effect.latent in studied.features,
            "promoted": " · ".join(token[:_SHOWN_LETTERS] for token in tokens),
        }  # fmt: skip
        if effect.latent in studied.features:
            study = studied.features[effect.latent]
            report = study["report"][FEATURE]
            values = np.array([report["score"]])
            means = Resamples(values.shape, bootstrap).means(values)
            row |= {
                "target": targets[study["at"]], "size": report["size"],
                "choosing": on_choosing(study),
                **_interval("reporting", means, bootstrap),
            }  # fmt: skip
        yield row


def text_rows(studied: Studied, prompts: Sequence[str], targets: Sequence[float]) -> Iterator[Row]:
    """A row for each text at the target KL that its feature chose."""
    for latent, study in studied.features.items():
        for arm in ARMS:
            report = studied.report(latent, arm)
            for draw, texts in enumerate(report["texts"]):
                for i, prompt in enumerate(prompts):
                    yield {
                        "latent": latent, "arm": arm, "prompt": prompt, "draw": draw,
                        "text": texts[i],
                        "target": None if arm in UNPUSHED else targets[study["at"]],
                        **{name: report[name][draw][i] for name in SCORES},
                    }  # fmt: skip


def shown(row: Row) -> str:
    """A text as a chat LM gets it: its prompt stands before it."""
    return row["prompt"] + row["text"]


def rating_rows(studied: Studied, texts: Sequence[Row], bootstrap: Bootstrap) -> list[Row]:
    """A row for each arm, of the ratings by a chat LM at the KL that every feature chose.

    Texts without a rating are left out; `rated` is the share of the others. `feature_less_arm` is
    missing where it is in `arm_rows`.

    Args:
        studied: The studies.
        texts: As `text_rows` gives them, with their ratings.
        bootstrap: Settings of the draws of features, prompts and texts.
    """
    shape = _values(studied, FEATURE, "score").shape
    drawn = Resamples(shape, bootstrap)

    def rated(arm: str, name: str) -> np.ndarray:
        own = [row[f"rated_{name}"] for row in texts if row["arm"] == arm]
        return np.array(own, float).reshape(shape)

    rows = []
    for arm in ARMS:
        row: Row = {"arm": arm}
        for name in SCORES:
            row |= _interval(name, drawn.means(rated(arm, name)), bootstrap)
        scores = rated(arm, "score")
        if _compared(studied, arm):
            less = drawn.means(rated(FEATURE, "score") - scores)
            row |= _interval("feature_less_arm", less, bootstrap)
        rows.append(row | {"rated": float(np.mean(~np.isnan(scores)))})
    return rows


def on_choosing(study: Mapping[str, Any]) -> float:
    """Mean score of a feature on the choosing prompts, at the target that it chose."""
    return float(np.mean(study["choose"][study["at"]]["score"]))


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


def _values(
    studied: Studied, arm: str, name: str
) -> Float[np.ndarray, "features draws prompts"]:  # fmt: skip
    """Scores of an arm on the reporting prompts."""
    return np.array([studied.report(latent, arm)[name] for latent in studied.features])


def _compared(studied: Studied, arm: str) -> bool:
    """Tell whether the feature may be held against an arm: both have the KL, or the arm has none.

    DiffMean at its own KL is compared whatever it reached, as a ceiling.
    """
    if arm in (FEATURE, CEILING, *UNPUSHED):
        return arm != FEATURE
    return all(
        studied.report(latent, one)["reached"] for latent in studied.features
        for one in (FEATURE, arm)
    )  # fmt: skip


def _interval(name: str, drawn: np.ndarray, bootstrap: Bootstrap) -> Row:
    value = float(drawn[0]) if np.isfinite(drawn[0]) else None
    ends = interval(drawn, bootstrap.level) if len(drawn) > 1 else None
    low, high = ends or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
