"""Rows of tables out of scored latents, and whether scorers qualify."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae.explanations.alike import ALIKE
from sae.explanations.counterfactual import COUNTERFACTUAL
from sae.explanations.judges import ALWAYS, JUDGES
from sae.explanations.means import (
    Interval,
    difference_at_equal_density,
    mean,
    over_seeds,
)
from sae.explanations.scores import CHANCE
from sae.explanations.study import CONTROL, DERANGED, HARD, NARROW, SCORERS, UNEXPLAINED, Row
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type

SAE = "SAE"
ORACLE, TOKENS = "oracle", CONTROL
"""Explainers: the truth about known classes, and the control that is always there."""
LEAST_LATENTS = 10
"""Latents with a number that a mean needs, and classes that a scorer must be tried on."""
LEAST_IN_BIN = 3
"""Latents with a number that a mean of a bin of density needs."""
LEAST_COVERAGE = 0.05
"""Share of the SAE's latents under which a comparison is in the table alone."""
AT_CHANCE = {
    "rules": 0.0, "embedding": 0.5, "embedding_near": 0.5, "surprisal": 0.5, "intruder": CHANCE,
    "intruder_near": CHANCE, "simulation": 0.0, "simulation_top": 0.0, "simulation_random": 0.0,
    **dict.fromkeys((*COUNTERFACTUAL, "intervention"), 0.0), **dict.fromkeys(ALIKE.values(), 0.5),
    **dict.fromkeys(JUDGES, ALWAYS),
}  # fmt: skip
"""Mean of each scorer for explanations that say nothing."""
WRONG = {"necessity": "necessity_near"}
"""Stand-ins for the score of another latent's explanation, where there is none."""
Studies = Mapping[str, Sequence[Row]]
LATENTS: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "latent": ("string", ""), "explainer": ("string", ""),
    "seed": ("int64", ""), "state": ("string", ""), "explanation": ("string", ""),
    "density": ("float64", "share"), "contexts": ("int64", ""), "skew": ("float64", ""),
    "kurtosis": ("float64", ""),
    **{name: ("float64", "") for name in (
        "precision", "recall", "rules", "rules_deranged", "rules_always",
        "embedding", "embedding_deranged", "embedding_hard",
        "embedding_near", "embedding_near_deranged", "embedding_near_hard",
        *UNEXPLAINED,
        *NARROW, *(WRONG.get(name, f"{name}_deranged") for name in NARROW), "surprisal_hard",
        "necessity_silent", "necessity_same", "sensitivity_random", "falsified",
        "intervention_random",
    )},
    **{f"{name}{part}": ("float64", "") for name in JUDGES
       for part in ("", "_deranged", "_unparsed")},
}  # fmt: skip
SUBJECTS: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "explainer": ("string", ""), "scorer": ("string", ""),
    "latents": ("int64", ""), "seeds": ("int64", ""),
    **{name: ("float64", "") for name in (
        "value", "low", "high", "seed_low", "seed_high", "deranged", "over_deranged",
        "over_deranged_low", "over_deranged_high", "over_tokens", "over_tokens_low",
        "over_tokens_high", "always", "hard",
        "sae_less_this", "sae_less_this_low", "sae_less_this_high",
        "sae_less_this_seed_low", "sae_less_this_seed_high",
    )},
    "coverage": ("float64", "share"),
}  # fmt: skip
QUALIFICATION: dict[str, tuple[Type, str]] = {
    "kind": ("string", ""), "scorer": ("string", ""), "classes": ("int64", ""),
    **{name: ("float64", "") for name in (
        "oracle", "wrong", "difference", "difference_low", "difference_high",
    )},
    "qualified": ("bool", ""),
}  # fmt: skip


def rows_of(studies: Studies) -> Iterator[dict[str, Any]]:
    """A row for each dictionary, latent and explainer."""
    for subject, rows in studies.items():
        for row in rows:
            known = row._asdict()
            yield {
                "subject": subject,
                **row.values,
                **{n: v for n, v in known.items() if n not in ("values", "deciles")},
            }


def states(studies: Studies) -> dict[str, dict[str, dict[str, int]]]:
    """Number of latents in each state, by dictionary and explainer."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for subject, rows in studies.items():
        for row in rows:
            own = found.setdefault(subject, {}).setdefault(row.explainer, Counter())
            own[row.state] += 1
    return {s: {e: dict(count) for e, count in of.items()} for s, of in found.items()}


def by_subject(studies: Studies, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """A row for each dictionary, explainer and scorer: means, beside chance and beside the SAE.

    Intervals are over the latents of all seeds. `seed_low` and `seed_high` are the value and
    Student's half width of the means of seeds that have 10 latents or more. Where the SAE is
    compared, the other dictionary's seeds are pooled and count as exact.
    """
    for subject, rows in studies.items():
        tokens = [one for one in rows if one.explainer == TOKENS]
        for explainer, scorer, own in parts(rows):
            values = values_of(own, scorer)
            there = np.isfinite(values)
            if there.sum() < LEAST_LATENTS:
                continue
            row: dict[str, Any] = {
                "subject": subject, "explainer": explainer, "scorer": scorer,
                "latents": int(there.sum()), "seeds": len(_seeds(own, scorer)),
                **named("", mean(values, bootstrap)), "deranged": _chance(own, scorer),
                **over_seeds("seed", float(values[there].mean()),
                              _means(_seeds(own, scorer), scorer), bootstrap),
            }  # fmt: skip
            if scorer in (*DERANGED, *JUDGES) and row["deranged"] is not None:
                row |= named("over_deranged", mean(values - _wrong(own, scorer), bootstrap))
            if tokens and explainer not in ("", TOKENS):
                of = {(one.seed, one.latent): one.values.get(scorer, np.nan) for one in tokens}
                plain = np.array([of.get((one.seed, one.latent), np.nan) for one in own])
                row |= named("over_tokens", mean(values - plain, bootstrap))
            if scorer == "rules":
                row["always"] = mean(values_of(own, "rules_always"), bootstrap).value
            if scorer in JUDGES:
                row["always"] = ALWAYS
            if scorer in HARD:
                row["hard"] = mean(values_of(own, f"{scorer}_hard"), bootstrap).value
            if subject != SAE:
                ours = [one for e, s, part in parts(studies[SAE]) for one in part
                        if (e, s) == (explainer, scorer)]  # fmt: skip
                row |= _beside(ours, own, scorer, bootstrap)
            yield row


def _beside(
    ours: Sequence[Row], own: Sequence[Row], scorer: str, bootstrap: Bootstrap
) -> dict[str, float | None]:
    """The SAE less another dictionary at equal densities; nothing with too few latents."""
    if np.isfinite(values_of(ours, scorer)).sum() < LEAST_LATENTS:
        return {}
    other = (densities(own), values_of(own, scorer))
    found, covered = difference_at_equal_density(
        (densities(ours), values_of(ours, scorer)), other, bootstrap
    )
    once = bootstrap.model_copy(update={"num_resamples": 1})
    gaps = [
        gap.value
        for one in _seeds(ours, scorer)
        for gap, shared in [
            difference_at_equal_density((densities(one), values_of(one, scorer)), other, once)
        ]
        if enough(values_of(one, scorer)) and shared >= LEAST_COVERAGE
    ]
    return {
        **named("sae_less_this", found),
        **over_seeds(
            "sae_less_this_seed", found.value, [gap for gap in gaps if gap is not None], bootstrap
        ),
        "coverage": covered,
    }


def qualification(
    kinds: Mapping[str, tuple[Sequence[Row], Sequence[Row]]], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """A row for each kind of classes and scorer: oracle explanations against another class's.

    A scorer qualifies if both the difference and what true explanations score above chance have an
    interval above 0. A difference alone may lie between two numbers that are no better than chance.

    Args:
        kinds: Rows of the classes of each kind, with the explainers `oracle` and `rules`, and rows
            of random sets of excerpts as large, which `intruder` is held against.
        bootstrap: Over the classes.
    """
    found = []
    for kind, (classes, random) in kinds.items():
        for scorer in (*SCORERS, *JUDGES):
            own = [row for row in classes if row.explainer == _explainer(scorer)]
            values = values_of(own, scorer)
            if scorer in UNEXPLAINED:
                other = values_of([row for row in random if row.explainer == ORACLE], scorer)
            else:
                other = _wrong(own, scorer)
            gap = mean(values - other, bootstrap)
            if gap.value is None:
                continue
            above = mean(values - AT_CHANCE[scorer], bootstrap).low
            classes_seen = int(np.isfinite(values - other).sum())
            found.append({
                "kind": kind, "scorer": scorer, "classes": classes_seen,
                "oracle": mean(values, bootstrap).value, "wrong": mean(other, bootstrap).value,
                **named("difference", gap),
                "qualified": classes_seen >= LEAST_LATENTS
                and all(low is not None and low > 0 for low in (gap.low, above)),
            })  # fmt: skip
    return found


def qualified_on(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The kinds of classes that each scorer qualified on; none: it stands in no headline."""
    return {
        name: [row["kind"] for row in rows if row["scorer"] == name and row["qualified"]]
        for name in (*SCORERS, *JUDGES)
    }


def headline(
    rows: Sequence[Mapping[str, Any]], qualified: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float | None, ...]]:
    """Means of the SAE explained by rules, and how far it is ahead, by scorers that qualified.

    A judge scores the explanations of every explainer that it read.

    Args:
        rows: As `by_subject` gives them.
        qualified: As `qualified_on` gives it.

    Returns:
        Value and ends of its interval, by name.
    """
    found = {}
    for row in rows:
        scorer, judged = row["scorer"], row["scorer"] in JUDGES
        own = tuple(row[name] for name in ("value", "low", "high"))
        if not qualified[scorer]:
            continue
        if row["subject"] == SAE and judged:
            found[f"{scorer}_{row['explainer']}"] = own
        elif not judged and row["explainer"] in ("", "rules"):
            if row["subject"] == SAE:
                found[scorer] = own
            elif (row.get("coverage") or 0) >= LEAST_COVERAGE:
                name = row["subject"].replace(" ", "_").replace("-", "")
                found[f"{scorer}_over_{name}"] = tuple(
                    row[f"sae_less_this{end}"] for end in ("", "_low", "_high")
                )
    return found


def parts(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Explainer, scorer and rows; scorers that read no explanation once, without an explainer."""
    explainers = list(dict.fromkeys(row.explainer for row in rows))
    for scorer in (*SCORERS, *JUDGES):
        for explainer in explainers[:1] if scorer in UNEXPLAINED else explainers:
            own = [row for row in rows if row.explainer == explainer]
            yield "" if scorer in UNEXPLAINED else explainer, scorer, own


def _seeds(rows: Sequence[Row], scorer: str) -> list[list[Row]]:
    """The rows of each seed that has a number."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.seed, []).append(row)
    return [own for own in found.values() if np.isfinite(values_of(own, scorer)).any()]


def enough(values: np.ndarray) -> bool:
    """True if as many numbers are defined as an interval needs."""
    return int(np.isfinite(values).sum()) >= LEAST_LATENTS


def _means(groups: Sequence[Sequence[Row]], scorer: str) -> list[float]:
    found = [values_of(rows, scorer) for rows in groups]
    return [float(np.nanmean(values)) for values in found if enough(values)]


def _explainer(scorer: str) -> str:
    return "rules" if scorer == "rules" else ORACLE


def values_of(rows: Sequence[Row], name: str) -> np.ndarray:
    """Scores by rows; NaN where undefined."""
    return np.array([row.values.get(name, np.nan) for row in rows])


def _wrong(rows: Sequence[Row], scorer: str) -> np.ndarray:
    return values_of(rows, WRONG.get(scorer, f"{scorer}_deranged"))


def densities(rows: Sequence[Row]) -> np.ndarray:
    """Densities by rows."""
    return np.array([row.density for row in rows])


def _chance(rows: Sequence[Row], scorer: str) -> float | None:
    if scorer in UNEXPLAINED:
        return AT_CHANCE[scorer]
    values = _wrong(rows, scorer)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) >= LEAST_LATENTS else None


def named(name: str, found: Interval) -> dict[str, float | None]:
    """An interval as three columns."""
    return {name or "value": found.value, **{
        f"{name}_{end}".removeprefix("_"): value
        for end, value in (("low", found.low), ("high", found.high))
    }}  # fmt: skip
