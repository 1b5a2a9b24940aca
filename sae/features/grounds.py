"""The grounds of concept erasure: gender of names in prompts, biographies, a user's texts."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.cached import cached
from sae.errors import ConfigError
from sae.features.effects import at_one_point
from sae.features.erased import Ground, Side, on_prompts, on_texts
from sae.features.prompted import Clean, Prompted
from sae.interventions import Replacement
from sae.metrics.bootstrap import Bootstrap
from sae.probing.erasers import ROWS_PER_DIMENSION
from sae.provenance import content_key
from sae.tasks.biographies import biographies
from sae.tasks.gender import MOST_VARIANTS, PROMPTED
from sae.tasks.labelled import LabelledTexts
from sae.tasks.names import Names
from sae.tasks.task import Task

TEST_SHARE = 0.4
"""Share of the names, or texts, that are measured on."""


class Named(NamedTuple):
    """A ground with what identifies it.

    Args:
        ground: The ground.
        key: Changes when a prompt, a text or a label does.
        facts: Its sizes, for people; plain JSON values.
    """

    ground: Ground
    key: str
    facts: dict[str, int | str]


def prompt_ground(
    one: PlacedSAE, kind: str, names: Names, *, prompts: int, seed: int, bootstrap: Bootstrap
) -> Named:
    """A task of `PROMPTED`, with so many training prompts that erasers can be fitted.

    Args:
        one: The SAE.
        kind: `gender` or `pronoun`.
        names: Names.
        prompts: Variants of each test name.
        seed: Seed of examples and probes.
        bootstrap: Settings of the draws of names.

    Raises:
        ConfigError: If an edited row does not count, or the tokenizer does not fit.
    """
    point, _ = at_one_point(one)
    drawn = {"seed": seed} if kind == "gender" else {}  # pronouns have no examples to draw
    build = partial(PROMPTED[kind], one.lm.tokenizer, names, **drawn)
    rows = sum(len(prompt.places) for prompt in build(train=1, test=1).train.prompts)
    variants = math.ceil((ROWS_PER_DIMENSION * one.sae.d_in + 1) / rows) + 1
    if kind == "pronoun":
        variants = min(variants, MOST_VARIANTS)
    sides = build(train=max(prompts, variants), test=prompts)
    few = build(train=prompts, test=prompts).train  # those that the test has give the thresholds
    tasks = (sides.train, few, sides.test)
    train, calibration, test = (Prompted(one.lm, point, one.counted, task) for task in tasks)
    of_train, of_test = _clean(one, train), _clean(one, test)

    def answers(edit: Replacement | None) -> tuple[Tensor, Tensor]:
        if edit is None:
            differences = of_train.difference[: len(few)], of_test.difference
        else:
            differences = calibration.under(edit), test.under(edit)
        return _scores(few, differences[0]), _scores(sides.test, differences[1])

    ground = Ground(
        on_prompts(train, of_train), on_prompts(test, of_test), by_row=True,
        bootstrap=bootstrap, seed=seed, answers=answers,
    )  # fmt: skip
    key = content_key({"train": sides.train.key, "test": sides.test.key})
    facts = {"unit": "names", "training prompts": len(sides.train), "test prompts": len(sides.test)}
    return Named(ground, key, facts | _sizes(ground))


def _scores(task: Task, difference: Tensor) -> Tensor:
    """Logit of the word of class 1 less that of class 0."""
    label = torch.tensor([prompt.label for prompt in task.prompts])
    return torch.where(label == 1, difference, -difference)


def biography_ground(
    one: PlacedSAE, pair: tuple[str, str], *, correlation: float, max_tokens: int, seed: int,
    bootstrap: Bootstrap,
) -> Named:  # fmt: skip
    """Gender in biographies whose training side correlates it with the profession, which stays.

    Args:
        one: The SAE.
        pair: Two professions.
        correlation: Share of the training texts in which both agree; the test is balanced.
        max_tokens: Longer texts lose their end.
        seed: Seed of the draw and the probes.
        bootstrap: Settings of the draws of test names.
    """
    made = biographies(pair)
    test = [i for i, train in enumerate(made.train) if not train]
    return _text_ground(
        one, "/".join(pair), made.texts, made.gender, (made.correlated(correlation, seed), test),
        made.name, max_tokens=max_tokens, seed=seed, bootstrap=bootstrap, keep=made.profession,
    )  # fmt: skip


def labelled_ground(
    one: PlacedSAE, texts: LabelledTexts, *, max_tokens: int, seed: int, bootstrap: Bootstrap
) -> Named:
    """A user's texts of two classes.

    Raises:
        ConfigError: If there are more classes, or a class has one text alone.
    """
    if len(texts.classes) != 2:
        raise ConfigError(
            f"{texts.name} has {len(texts.classes)} classes ({', '.join(texts.classes[:5])}); "
            "eval=erasure takes out a concept of two. Keep the rows of two of them."
        )
    train, test = split_texts(texts, seed)
    return _text_ground(
        one, texts.name, texts.texts, texts.labels.tolist(), (train, test), texts.texts,
        max_tokens=max_tokens, seed=seed, bootstrap=bootstrap,
    )  # fmt: skip


def split_texts(texts: LabelledTexts, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of training and of test texts, drawn in each class; equal texts stay together."""
    train, test = [], []
    generator = torch.Generator().manual_seed(seed)
    for label in range(len(texts.classes)):
        copies: dict[str, list[int]] = {}
        for i, (text, own) in enumerate(zip(texts.texts, texts.labels, strict=True)):
            if own == label:
                copies.setdefault(text, []).append(i)
        distinct = list(copies.values())
        if len(distinct) < 2:
            raise ConfigError(
                f"{texts.name} has one text of {texts.classes[label]}. Give two different ones or "
                "more: one side is for training, one for the test."
            )
        cut = min(max(1, round(TEST_SHARE * len(distinct))), len(distinct) - 1)
        for place, j in enumerate(torch.randperm(len(distinct), generator=generator).tolist()):
            (test if place < cut else train).extend(distinct[j])
    return train, test


def _text_ground(
    one: PlacedSAE, name: str, texts: Sequence[str], z: list[int],
    sides: tuple[list[int], list[int]], unit: Sequence[str], *, max_tokens: int, seed: int,
    bootstrap: Bootstrap, keep: list[int] | None = None,
) -> Named:  # fmt: skip
    point, _ = at_one_point(one)
    activations = text_activations(
        one.lm, point, texts, name=name, which="all", max_tokens=max_tokens
    )
    train, test = (on_texts(activations, one.counted, side, z, unit, keep) for side in sides)
    ground = Ground(train, test, by_row=False, bootstrap=bootstrap, seed=seed)
    key = content_key(
        {"texts": list(texts), "z": z, "keep": keep, "sides": sides, "unit": list(unit),
         "room": max_tokens}
    )  # fmt: skip
    facts = {"unit": "texts" if keep is None else "names", "training texts": len(train.z),
             "test texts": len(test.z)}  # fmt: skip
    return Named(ground, key, facts | _sizes(ground))


def _sizes(ground: Ground) -> dict[str, int | str]:
    def rows(side: Side) -> int:
        return len(side.x)

    return {"training rows": rows(ground.train), "test rows": rows(ground.test)}


def _clean(one: PlacedSAE, prompted: Prompted) -> Clean:
    identity = {
        "lm": dict(one.lm.identity), "dtype": str(one.lm.dtype), "point": str(one.point),
        "task": prompted.task.key, "counted": one.counted and one.counted.to_json(),
    }  # fmt: skip

    def make():
        return prompted.clean()._asdict(), None

    return Clean(**cached("erasure/clean-", identity, make)[0])
