"""Scores of one dictionary's explanations, each beside the score of another latent's."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from sae.explanations.alike import ALIKE, alike
from sae.explanations.counterfactual import COUNTERFACTUAL
from sae.explanations.excerpts import Size
from sae.explanations.explainers import Explanation, Unexplained
from sae.explanations.judges import Case, Judges
from sae.explanations.latents import Latent, Subject
from sae.explanations.rules import RuleText
from sae.explanations.scores import (
    LEAST,
    Bench,
    Excerpted,
    Scores,
    embedded,
    excerpted,
    intruded,
    next_in_circle,
)
from sae.progress import progress

NARROW = ("surprisal", "simulation", "simulation_top", "simulation_random", *COUNTERFACTUAL,
          "intervention")  # fmt: skip
"""Scores by a causal LM, of fewer latents (sae.explanations.narrow)."""
UNEXPLAINED = ("intruder", "intruder_near", *ALIKE.values())
"""Scorers that read no explanation."""
SCORERS = ("rules", "embedding", "embedding_near", *UNEXPLAINED, *NARROW)
"""Scores that are means over latents; `rules` is the F1 of the rule on the test text."""
DERANGED = ("rules", "embedding", "embedding_near", *NARROW)
HARD = ("embedding", "embedding_near", "surprisal")
CONTROL = "tokens"
"""Explainer that is a control itself: judges are not asked about it for another latent."""
State = Literal["explained", "too rare"] | Unexplained


class Row(NamedTuple):
    """A latent and one explanation of it.

    Args:
        latent: Its name.
        explainer: The explainer's name.
        state: `explained`; `too rare`: it fires in fewer than 20 contexts of the training or of
            the test text; else the reason why there is no explanation.
        explanation: The explanation in words; empty without one.
        density: See `Latent`.
        contexts: Contexts of the test text in which it fires, near duplicates left out.
        values: Scores by name, those of another latent's explanation as
            `<name>_deranged`; NaN where undefined.
        deciles: Scores by name and decile.
        skew: See `Latent.moments`.
        kurtosis: See `Latent.moments`.
        seed: Number of the dictionary among those that differ by their seed alone.
    """

    latent: str
    explainer: str
    state: State
    explanation: str
    density: float
    contexts: int
    values: Mapping[str, float]
    deciles: Mapping[str, Float[np.ndarray, " deciles"]]
    skew: float = float("nan")
    kurtosis: float = float("nan")
    seed: int = 0


def study(
    subject: Subject, explanations: Mapping[str, Sequence[Explanation | Unexplained]],
    bench: Bench, rules: RuleText | None, judges: Judges | None = None,
) -> list[Row]:  # fmt: skip
    """Score explanations.

    Args:
        subject: The dictionary.
        explanations: One explanation of each latent, by explainer.
        bench: Source of the excerpts.
        rules: The test text's properties; None: rules are not scored.
        judges: Judges that ask a chat LM; None: none is asked.
    """
    latents = subject.latents
    contexts = [bench.contexts(latent.test) for latent in latents]
    rare = [
        seen < LEAST or len(np.unique(one.train.row // bench.text.ctx)) < LEAST
        for one, seen in zip(latents, contexts, strict=True)
    ]
    scored = [i for i, is_rare in enumerate(rare) if not is_rare]
    drawn = {i: bench.drawn(latents[i].test, latents[i].seed) for i in scored}
    every = np.concatenate([places for places, _ in drawn.values()]) if drawn else np.zeros(0, int)
    for size in bench.pooled:
        bench.embed(every, size)  # all at once, in large batches
    excerpts = {i: excerpted(latents[i], bench, *drawn[i]) for i in scored}
    odd = {i: intruded(excerpts[i], bench, latents[i].seed) for i in scored}
    same = {i: alike(excerpts[i], bench, latents[i].seed) for i in scored}
    rows = []
    with progress(f"score {subject.name}", len(explanations), "explainers") as advance:
        for explainer, texts in explanations.items():
            given = {i: one for i in scored if isinstance(one := texts[i], Explanation)}
            found, others = _scored(latents, given, excerpts, bench, rules)
            if judges is not None:
                wrong = {} if explainer == CONTROL else others
                what = f"{subject.name} by {explainer}"
                _judge(found, wrong, latents, given, excerpts, bench, judges, what)
            for i, latent in enumerate(latents):
                text = texts[i]
                known = isinstance(text, Explanation)
                state: State = "too rare" if rare[i] else "explained" if known else text
                scores = [from_[i] for from_ in (found, odd, same) if i in from_]
                rows.append(Row(
                    latent.name, explainer, state, text.words if known else "",
                    latent.density, contexts[i],
                    {name: value for one in scores for name, value in one.values.items()},
                    {name: value for one in scores for name, value in one.deciles.items()},
                    *latent.moments,
                ))  # fmt: skip
            advance(1)
    return rows


def _scored(
    latents: Sequence[Latent], given: Mapping[int, Explanation],
    excerpts: Mapping[int, Mapping[Size, Excerpted]], bench: Bench, rules: RuleText | None,
) -> tuple[dict[int, Scores], dict[int, int]]:  # fmt: skip
    """Scores of the latents that have an explanation, by their own and by another latent's.

    Returns:
        The scores, and by latent the other latent whose explanation it was given.
    """
    able = list(given)
    vectors = bench.embeddings.of([text.words for text in given.values()])
    of = dict(zip(able, vectors, strict=True))
    cosines: dict[Size, np.ndarray] = (
        {size: vectors @ pool.T for size, pool in bench.pooled.items()} if able else {}
    )
    pooled: dict[int, dict[Size, np.ndarray]] = {
        i: {size: rows[k] for size, rows in cosines.items()} for k, i in enumerate(able)
    }
    order = next_in_circle([latents[i].name for i in able]) if len(able) > 1 else ()
    others = {i: able[k] for i, k in zip(able, order, strict=False)}
    found = {i: embedded(of[i], pooled[i], excerpts[i], bench) for i in able}
    for i, j in others.items():
        wrong = embedded(of[j], pooled[j], excerpts[i], bench, without=latents[j])
        found[i].values.update({f"{name}_deranged": v for name, v in wrong.values.items()})
    if rules is None:
        return found, others
    for i, text in given.items():
        if text.rule is not None:
            fit = rules.fit(text.rule, latents[i].test.row)
            found[i].values.update(
                precision=fit.precision, recall=fit.recall, rules=fit.f1,
                rules_always=rules.base_rate(latents[i].test.row),
            )  # fmt: skip
    for i, j in others.items():
        if (rule := given[j].rule) is not None:
            found[i].values["rules_deranged"] = rules.fit(rule, latents[i].test.row).f1
    return found, others


def _judge(
    found: Mapping[int, Scores], others: Mapping[int, int], latents: Sequence[Latent],
    given: Mapping[int, Explanation], excerpts: Mapping[int, Mapping[Size, Excerpted]],
    bench: Bench, judges: Judges, what: str,
) -> None:  # fmt: skip
    """Add the judges' scores, of own explanations and of another latent's."""
    own = [Case(latents[i], latents[i].seed, given[i].words, excerpts[i]["whole"]) for i in given]
    wrong = [
        Case(latents[i], latents[i].seed, given[j].words, excerpts[i]["whole"], latents[j])
        for i, j in others.items()
    ]
    scores = judges.scores(what, [*own, *wrong], bench)
    for i, values in zip(given, scores, strict=False):
        found[i].values.update(values)
    for i, values in zip(others, scores[len(own) :], strict=True):
        found[i].values.update({f"{name}_deranged": values[name] for name in judges.names})
