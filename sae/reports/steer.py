"""`index.html` of the evaluation `steer`, and the files of the chosen latents beside it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae.evals.base import EvalResult
from sae.features.sets import FeatureSet
from sae.features.steered import (
    DIFF_MEAN,
    FEATURE,
    OF_FEATURE,
    PROMPT,
    UNPUSHED,
    UNSTEERED,
)
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, interval, number, render

_WIDE = {FEATURE: 3, DIFF_MEAN: 2}
_BESIDE = (UNSTEERED, FEATURE, "random direction", DIFF_MEAN, PROMPT)


def write_steer(result: EvalResult, folder: Path) -> None:
    """Write the page, `features.json`, and `steering.pt` for lm-evaluation-harness.

    Args:
        result: Result of the evaluation `steer`.
        folder: Folder to write them to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    details = result.details
    FeatureSet(**details["features"]).save(folder / "features.json")
    if details["steering"]["hookpoint"] is not None:
        write_bytes(folder / "steering.pt", steering_file(**details["steering"]))
    arms = result.tables["arms"].rows()
    sections = [
        Section("Arms", tables=[_arms(arms), *_ratings(result)]),
        Section("Score against KL", plots=[_curves(result, name) for name in
                                           ("score", "concept", "fluency")]),
        Section("Features", tables=[_features(result)]),
        Section("Texts beside each other", tables=_texts(result)),
    ]  # fmt: skip
    level = 100 * result.settings["bootstrap"]["level"]
    judge, tokens = details["judge"], result.tokens
    alone = tokens["features"] == 1
    subtitle = (
        f"Concept: {details['concept']}. {tokens['features']} feature{'' if alone else 's'}, "
        f"{tokens['choosing prompts']} prompts that choose how far to push, "
        f"{tokens['reporting prompts']} that report, {result.settings['draws']} texts of each · "
        f"{level:g} % intervals over {'' if alone else 'features, '}prompts and texts · "
        f"judge of words: balanced accuracy {judge['balanced accuracy']:.3f}, "
        f"AUC {judge['auc']:.3f} on {judge['held-out snippets']:,} held-out snippets · "
        f"missing: {details['missing']}"
    )
    page = render(
        f"Steering · {result.provenance['point']}", subtitle, sections, _tiles(arms)
    )  # fmt: skip
    write_bytes(folder / "index.html", page)


def steering_file(
    hookpoint: str, vector: Sequence[float], coefficient: float, latent: int
) -> bytes:
    """A steering file that the models `steered` of lm-evaluation-harness read.

    Source: its `lm_eval/models/hf_steered.py`, version 0.4.13.

    Args:
        hookpoint: Path of the module whose output is edited, from the base model on.
        vector: Vector that is multiplied by the coefficient and added.
        coefficient: Factor of the vector.
        latent: Number of the latent that it is of; not in the file.
    """
    steering = {
        hookpoint: {
            "steering_vector": torch.tensor(vector), "steering_coefficient": float(coefficient),
            "action": "add", "bias": None, "head_index": None,
        }
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(steering, buffer)
    return buffer.getvalue()


def _with_interval(row: Mapping[str, Any], name: str) -> list[Cell]:
    return [number("", row[name]),
            Cell(interval("", row[f"{name}_low"], row[f"{name}_high"]))]  # fmt: skip


def _arms(rows: Sequence[Mapping[str, Any]]) -> Table:
    listed = [
        [Cell(row["arm"]), *_with_interval(row, "score"), *_with_interval(row, "feature_less_arm"),
         number("", row["concept"]), number("", row["fluency"]), _kl(row),
         number("", row["neutral_kl"]), number("", row["neutral_ce"]), number("", row["size"])]
        for row in rows
    ]  # fmt: skip
    columns = ["arm", "score", "interval", "feature less arm", "interval", "concept", "fluency",
               "KL, nats", "neutral KL", "neutral CE rise", "size"]  # fmt: skip
    missed = any(_kl(row).text.endswith("*") for row in rows)
    note = (
        "on the reporting prompts, at the KL that each feature chose on the others; scores from 0 "
        "to 2, score the harmonic mean of concept and fluency"
        + ("; * not the KL that was asked for, so not at the same cost" if missed else "")
    )
    return Table("Scores", columns, listed, note)


def _ratings(result: EvalResult) -> list[Table]:
    """Ratings by a chat LM beside the scores of the classifier of words, if one was asked."""
    if "ratings" not in result.tables:
        return []
    of_words = {row["arm"]: row["score"] for row in result.tables["arms"].rows()}
    listed = [
        [Cell(row["arm"]), *_with_interval(row, "score"), number("", of_words[row["arm"]]),
         *_with_interval(row, "feature_less_arm"), number("", row["concept"]),
         number("", row["fluency"]), number("", row["rated"])]
        for row in result.tables["ratings"].rows()
    ]  # fmt: skip
    columns = ["arm", "score", "interval", "score by words", "feature less arm", "interval",
               "concept", "fluency", "rated"]  # fmt: skip
    chat = result.details["chat"]
    agrees = ", ".join(
        f"{name} {'undefined' if value is None else f'{value:.2f}'}"
        for name, value in chat["agreement"].items()
    )
    note = (
        f"{chat['texts']:,} texts by {chat['model']}, each asked about twice; "
        f"{chat['unparsed']:,} replies without a rating, {chat['refused']:,} refused, "
        f"{chat['failed'] + chat['unasked']:,} requests without a reply. Rank correlation with the "
        f"classifier of words: {agrees}"
    )
    return [Table("Ratings by a chat LM", columns, listed, note)]


def _kl(row: Mapping[str, Any]) -> Cell:
    """The KL of an arm, marked where no size gave the one that was asked for."""
    found = number("", row["kl"])
    if row["reached"] is not None and row["reached"] < 1:
        return Cell(found.text + " *", found.value)
    return found


def _curves(result: EvalResult, name: str) -> Plot:
    rows = result.tables["curves"].rows()
    traces = []
    targets = sorted({row["target"] for row in rows if row["target"] is not None})
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        x = targets if arm in UNPUSHED else [row["kl"] for row in own]
        y = [row[name] for row in own]
        trace: dict[str, Any] = {
            "type": "scatter", "name": arm, "x": x, "mode": "lines+markers",
            "line": {"width": _WIDE.get(arm, 1.2)},
        }  # fmt: skip
        if arm in UNPUSHED:
            trace |= {"y": y * len(targets), "line": {"dash": "dot"}}  # markers show a single KL
        else:
            trace |= {"y": y, "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                "array": [row[f"{name}_high"] - row[name] for row in own],
                "arrayminus": [row[name] - row[f"{name}_low"] for row in own],
                            }}  # fmt: skip
        traces.append(trace)
    layout = {
        "xaxis": {"title": {"text": "KL(clean ‖ steered), nats"}, "type": "log",
                  "tickvals": targets, "ticktext": [f"{target:g}" for target in targets]},
        "yaxis": {"title": {"text": name}, "rangemode": "tozero"},
        "showlegend": True,
    }  # fmt: skip
    return Plot(f"{name.capitalize()} against KL", "choosing prompts, means over features",
                traces, layout, wide=True)  # fmt: skip


def _features(result: EvalResult) -> Table:
    rows = result.tables["features"].rows()
    rows.sort(key=lambda row: (not row["chosen"], -(row["reporting"] or 0)))
    listed = [
        [Cell(str(row["latent"]), row["latent"]), Cell(row["promoted"]),
         *(number("", row[name]) for name in ("difference", "output_score", "confidence", "target",
                                              "size", "choosing")),
         *_with_interval(row, "reporting")]
        for row in rows
    ]  # fmt: skip
    columns = ["latent", "tokens its decoder promotes", "difference of means", "output score",
               "change of confidence", "chosen KL", "size", "score, choosing",
               "score, reporting", "interval"]  # fmt: skip
    note = "latents without scores were candidates and not chosen"
    return Table("Latents", columns, listed, note, words=2)


def _texts(result: EvalResult) -> list[Table]:
    rows = result.tables["texts"].rows()
    tables = []
    for latent in dict.fromkeys(row["latent"] for row in rows):
        own = [row for row in rows if row["latent"] == latent]
        target = next(row["target"] for row in own if row["arm"] == FEATURE)
        listed = [
            [Cell(prompt), *(
                Cell(next(row["text"] for row in own
                          if (row["prompt"], row["arm"]) == (prompt, arm)))
                for arm in _BESIDE
            )]
            for prompt in dict.fromkeys(row["prompt"] for row in own)
        ]  # fmt: skip
        tables.append(Table(
            f"Latent {latent}", ["prompt", *_BESIDE], listed,
            f"the first draw of each prompt, at a KL of {target:g} nats",
            words=1 + len(_BESIDE), prose=True,
        ))  # fmt: skip
    return tables


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    by_arm = {row["arm"]: row for row in rows}
    return [
        {"label": arm, "value": number("", by_arm[arm]["score"]).text,
         "note": interval("", by_arm[arm]["score_low"], by_arm[arm]["score_high"])}
        for arm in (UNSTEERED, *OF_FEATURE[:1], "random direction", DIFF_MEAN, PROMPT)
    ]  # fmt: skip
