"""Scorers put to the test: classes of excerpts whose meaning is known."""

from sae.artifacts.placed import PlacedSAE
from sae.explanations import summary
from sae.explanations.excerpts import PlacedText
from sae.explanations.explain import explained
from sae.explanations.explainers import TrainingText
from sae.explanations.judges import Judges
from sae.explanations.narrow import Narrow
from sae.explanations.rules import RuleText
from sae.explanations.scores import Bench
from sae.explanations.study import Row, study
from sae.explanations.truth import random_classes, token_classes, topic_classes


def known_classes(
    one: PlacedSAE, texts: tuple[PlacedText, PlacedText], training: TrainingText,
    tests: RuleText, bench: Bench, judges: Judges | None, narrow: Narrow, *, pushed: bool,
) -> dict[str, tuple[list[Row], list[Row]]]:  # fmt: skip
    """Scores of classes whose meaning is known, and of random sets of excerpts as large.

    Args:
        one: An SAE of the LM.
        texts: Training and test text.
        training: Text for explainers.
        tests: Text that rules are scored on.
        bench: Text and excerpts for scorers.
        judges: A chat LM that scores.
        narrow: Scorers by the LM under study.
        pushed: Write text while directions of classes are pushed.

    Returns:
        By the kind of the classes, the rows of the classes and those of the random sets.
    """
    found = {}
    tokens, oracle = token_classes(*texts, pushed_on=one if pushed else None)
    topical, topics, of_topics = topic_classes(
        one.source.source.load_tokenizer(), texts[0].text.vocabulary
    )
    about = Bench(topical, topical.counted, bench.embeddings, len(topical.tokens))
    ruled = explained(tokens, training, ["rules"])
    for kind, classes, words, where, by_rule in (
        ("token classes", tokens, oracle, bench, tests),
        ("topics", topics, of_topics, about, None),
    ):
        random = random_classes(classes, where.pool)
        oracles = {summary.ORACLE: words}
        found[kind] = (
            narrow.read_classes(
                classes, oracles, where,
                study(classes, oracles, where, by_rule, judges)
                + (study(classes, ruled, where, by_rule) if by_rule else []),
            ),
            study(random, oracles, where, None),
        )  # fmt: skip
    return found
