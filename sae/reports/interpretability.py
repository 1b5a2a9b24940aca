"""`index.html` of the evaluation `interpretability`: scores by layer and by size of dictionary."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.judges import JUDGES
from sae.explanations.study import NARROW, SCORERS
from sae.explanations.summary import LEAST_COVERAGE, SAE, TOKENS, WRONG
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render
from sae.reports.scores import HEADLINE, WORDS, correlation_table, error_bar
from sae.reports.style import TONES

_CONTROL = "SAE, one token (control)"
_WRONG = "SAE, another latent's explanation"
_NEAR = "SAE, another token near"
"""Control of necessity, which has no score of another latent's explanation."""
_DRAWN = dict(zip(
    (SAE, "neurons top-k", "pca top-k", "ica top-k", _CONTROL, "frozen decoder", "random top-k",
     "token lookup", "random LM", _WRONG),
    TONES, strict=True,
)) | {_NEAR: TONES[-1]}  # fmt: skip
"""Curves and their colours, the same in every picture. Bases as they are fire on half of the rows,
and stand in the tables alone."""
_DASHES = ("solid", "dash", "longdash", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")
Rows = Sequence[Mapping[str, Any]]


def write_interpretability(result: EvalResult, folder: Path) -> None:
    """Write the page.

    Args:
        result: Result of the evaluation `interpretability`.
        folder: Folder to write `index.html` to.
    """
    groups = result.details["groups"]
    qualified = {(group["point"], group["dictionary"]): group["qualified"] for group in groups}
    rows = [
        row for row in result.tables["subjects"].rows()
        if qualified[row["point"], row["dictionary"]].get(row["scorer"])
    ]  # fmt: skip
    correlated = [
        row for row in result.tables["correlations"].rows()
        if qualified[row["point"], row["dictionary"]].get(row["scorer"])
    ]  # fmt: skip
    sections = [
        *(Section(f"By layer · {site}", plots=list(_by_layer(site, rows)))
          for site in dict.fromkeys(group["site"] for group in groups)),
        *(Section(f"By size of the dictionary · {point}", plots=list(_by_size(point, rows)))
          for point in dict.fromkeys(group["point"] for group in groups)),
        Section("Is the SAE ahead?", tables=[_outcomes(rows)]),
        Section("Scorers that did not qualify", tables=[_left_out(groups)]),
        Section("All comparisons", tables=[_compared(rows), _means(rows)]),
        Section(
            "Scores and moments of the activation",
            tables=[correlation_table(correlated, ("point", "dictionary"))],
        ),
        Section("Dictionaries", tables=[_groups(groups)]),
        Section("Dictionaries that failed", texts=result.details["failed"]),
        Section("Controls that were not given", texts=_missing(groups)),
    ]  # fmt: skip
    tokens = result.tokens
    level = result.settings["bootstrap"]["level"]
    subtitle = (
        f"{tokens['SAEs']} SAEs, which are {tokens['dictionaries']} dictionaries in one or more "
        f"seeds · {100 * level:g} % intervals over the latents of all seeds"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "index.html", render("Explanations of latents", subtitle, sections))


def _shown(rows: Rows) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of pictures with the names of their curves: explained by rules, and two controls."""
    for row in rows:
        if row["subject"] not in _DRAWN:
            continue
        ours = row["subject"] == SAE
        if row["explainer"] in ("", HEADLINE):
            yield row["subject"], row
            if ours and row["deranged"] is not None and row["explainer"]:
                name = _NEAR if row["scorer"] in WRONG else _WRONG
                yield name, {**row, "value": row["deranged"], "low": None, "high": None}
        elif row["explainer"] == TOKENS and ours:
            yield _CONTROL, row


def _by_layer(site: str, rows: Rows) -> Iterator[Plot]:
    """Means by layer, as in Figures 2, 9, 10 and 18 of the paper; none for a single layer."""
    own = [row for row in rows if row["site"] == site]
    if len({row["layer"] for row in own}) < 2:
        return
    for scorer in SCORERS:
        part = [row for row in own if row["scorer"] == scorer]
        layers = sorted({row["layer"] for row in part})
        if len(layers) > 1:
            axis = {"title": {"text": "layer"}, "tickvals": layers, "showgrid": False}
            step = 0.02 * (layers[-1] - layers[0])
            yield _plot(scorer, part, "layer", lambda row: row["dictionary"], axis, step)


def _by_size(point: str, rows: Rows) -> Iterator[Plot]:
    """Means by d_sae / d_in, as in Figure 8 of the paper; none for a single size."""
    own = [row for row in rows if row["point"] == point]
    sizes = sorted({row["dict_ratio"] for row in own})
    if len(sizes) < 2:
        return
    axis = {"title": {"text": "d_sae / d_in"}, "type": "log", "tickvals": sizes,
            "ticktext": [f"{size:g}" for size in sizes], "showgrid": False}  # fmt: skip
    for scorer in SCORERS:
        if part := [row for row in own if row["scorer"] == scorer]:
            yield _plot(scorer, part, "dict_ratio", _but_size, axis, 0.0)


def _but_size(row: Mapping[str, Any]) -> str:
    """The dictionary's name without its size."""
    return re.sub(r" d_sae=\d+", "", row["dictionary"])


def _plot(
    scorer: str, rows: Rows, across: str, kind: Callable[[Mapping[str, Any]], str],
    axis: Mapping[str, Any], step: float,
) -> Plot:  # fmt: skip
    """A curve for each dictionary of each kind."""
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    kinds = list(dict.fromkeys(kind(row) for row in rows))
    for name, row in _shown(rows):
        curves.setdefault((name, kind(row)), []).append(row)
    order = sorted(curves, key=lambda curve: [*_DRAWN].index(curve[0]))
    traces = []
    for i, (name, of) in enumerate(order):
        part = sorted(curves[name, of], key=lambda row: row[across])
        apart = step * (i - len(curves) / 2) / 2  # error bars stand side by side
        dotted = name in (_CONTROL, _WRONG, _NEAR)
        traces.append({
            "type": "scatter", "mode": "lines+markers",
            "name": plain(f"{name} · {of}" if len(kinds) > 1 else name),
            "x": [row[across] + apart for row in part], "y": [row["value"] for row in part],
            "line": {"width": 3 if name == SAE else 1.2, "color": _DRAWN[name],
                     "dash": "dot" if dotted else _DASHES[kinds.index(of) % len(_DASHES)]},
            "marker": {"symbol": _SYMBOLS[[*_DRAWN].index(name) % len(_SYMBOLS)],
                       "color": _DRAWN[name]},
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                "color": _DRAWN[name],
                "array": [error_bar(row["high"], row["value"]) for row in part],
                "arrayminus": [error_bar(row["value"], row["low"]) for row in part],
            },
        })  # fmt: skip
    note = "means over latents, at each dictionary's own densities"
    return Plot(WORDS[scorer], note, traces, {"xaxis": axis, "showlegend": True}, wide=True)


def outcome(row: Mapping[str, Any]) -> str:
    """`ahead`, `level` or `behind`, by the interval of the SAE less a control; "" if unknown.

    Args:
        row: Row of the table `subjects`, of another dictionary than the SAE.
    """
    low, high = row["sae_less_this_low"], row["sae_less_this_high"]
    if low is None or high is None or row["coverage"] < LEAST_COVERAGE:
        return ""
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def _outcomes(rows: Rows) -> Table:
    """A row for each control and scorer: at how many points the SAE is ahead, level, behind."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        if row["subject"] != SAE and row["explainer"] in ("", HEADLINE) and (how := outcome(row)):
            counts.setdefault((row["subject"], row["scorer"]), Counter())[how] += 1
    shown = [
        [Cell(subject), Cell(WORDS[scorer]),
         *(Cell(str(count[how]), count[how]) for how in ("ahead", "level", "behind"))]
        for (subject, scorer), count in counts.items()
    ]  # fmt: skip
    note = (
        "number of dictionaries at their points, by the interval of the SAE less the control at "
        "equal densities; level: the interval holds 0"
    )
    return Table("SAE against", ["control", "scorer", "ahead", "level", "behind"], shown, note,
                 words=2)  # fmt: skip


def _compared(rows: Rows) -> Table:
    shown = [
        [Cell(row["point"]), Cell(row["dictionary"]), Cell(row["subject"]),
         Cell(WORDS[row["scorer"]]), Cell(outcome(row) or "no interval"),
         number("", row["sae_less_this"]),
         Cell(interval("", row["sae_less_this_low"], row["sae_less_this_high"])),
         Cell(interval("", row["sae_less_this_seed_low"], row["sae_less_this_seed_high"])),
         number("", row["coverage"])]
        for row in rows
        if row["subject"] != SAE and row["explainer"] in ("", HEADLINE)
        and row["sae_less_this"] is not None
    ]  # fmt: skip
    columns = ["point", "dictionary", "control", "scorer", "the SAE is", "SAE less control",
               "interval", "interval over seeds", "latents covered"]  # fmt: skip
    return Table("SAE less control", columns, shown, "at equal densities", words=5)


def _means(rows: Rows) -> Table:
    shown = [
        [Cell(row["point"]), Cell(row["dictionary"]), Cell(row["subject"]),
         Cell(row["explainer"] or "none"), Cell(WORDS[row["scorer"]]), number("", row["value"]),
         Cell(interval("", row["low"], row["high"])),
         Cell(interval("", row["seed_low"], row["seed_high"])), number("", row["deranged"]),
         Cell(str(row["seeds"]), row["seeds"]), Cell(str(row["latents"]), row["latents"])]
        for row in rows if row["scorer"] in WORDS
    ]  # fmt: skip
    columns = ["point", "dictionary", "explained", "explainer", "scorer", "mean", "interval",
               "interval over seeds", "another latent's explanation", "seeds",
               "latents"]  # fmt: skip
    note = "necessity stands beside another token near, and not another latent's explanation"
    return Table("Means over latents", columns, shown, note, words=5)


def _left_out(groups: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        [Cell(group["point"]), Cell(group["dictionary"]), Cell(WORDS[scorer])]
        for group in groups
        for scorer, kinds in group["qualified"].items()
        if not kinds
        and (scorer not in NARROW or (group.get("narrow") or {}).get("latents"))
        and (scorer not in JUDGES or "chat" in group)
    ]
    note = "they do not tell a known class's explanation from another's, or were not asked"
    return Table("Left out of everything above", ["point", "dictionary", "scorer"], shown, note,
                 words=3)  # fmt: skip


def _groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        [Cell(group["point"]), Cell(group["dictionary"]), Cell(", ".join(group["runs"])),
         Cell(", ".join(group["controls"])), number("", group["tokens"]["latents"]),
         number("", sum(group["seconds"].values())), *_spent(group.get("narrow"))]
        for group in groups
    ]  # fmt: skip
    columns = ["point", "dictionary", "runs", "trained controls", "latents of one seed", "seconds",
               "tokens of the LM", "unasked"]  # fmt: skip
    note = (
        "tokens that the LM under study read and wrote for scores; unasked: latents that were left "
        "when the budget was spent"
    )
    return Table("Dictionaries", columns, shown, note, words=4)


def _spent(narrow: Mapping[str, Any] | None) -> list[Cell]:
    """Tokens that the LM read and wrote, and the number of latents that were left."""
    if narrow is None:
        return [number("", 0), number("", 0)]
    left = sum(sum(of.values()) for of in narrow["unasked"].values())
    return [number("", narrow["tokens"]), number("", left)]


def _missing(groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{group['point']} · {group['dictionary']}: {name}": command
        for group in groups
        for name, command in group["missing"].items()
    }
