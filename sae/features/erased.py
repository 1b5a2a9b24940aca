"""Grounds that concept erasure is measured on: rows to fit on and to test, and answers."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.labelled import TextActivations
from sae.features.prompted import Clean, Prompted, share_of_length
from sae.interventions import Replacement
from sae.metrics import two_way
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws_within
from sae.probing import fresh

Scores = dict[str, Float[np.ndarray, " draws"]]
"""Numbers by name, for every bootstrap draw; the first draw has every unit once."""


class Side(NamedTuple):
    """Rows that are edited, and the examples they are of.

    Args:
        x: Rows.
        example: Number of the example of each row.
        z: Class of the concept of each example, 1 or 0.
        keep: A second label of each example, or None.
        unit: Number of the resampled unit of each example, such as its name.
    """

    x: Float[Tensor, "rows d"]
    example: Int[Tensor, " rows"]
    z: Int[Tensor, " examples"]
    keep: Int[Tensor, " examples"] | None
    unit: Int[np.ndarray, " examples"]

    def rows_of(self, labels: Int[Tensor, " examples"]) -> Int[Tensor, " rows"]:
        """A label for each row."""
        return labels[self.example]

    def strata(self) -> Int[np.ndarray, " units"]:
        """Class of each unit: 0, 1, or 2 for a unit with examples of both."""
        ones = np.bincount(self.unit, weights=self.z.numpy())
        return np.where(ones == 0, 0, np.where(ones == np.bincount(self.unit), 1, 2))

    def pooled(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "examples d"]:
        """Means over the rows of each example."""
        sums = torch.zeros(len(self.z), x.shape[1]).index_add_(0, self.example, x.float())
        return sums / torch.bincount(self.example, minlength=len(self.z)).clamp_min(1)[:, None]


def on_prompts(prompted: Prompted, found: Clean) -> Side:
    """The side of a task's prompts; units are their groups."""
    prompts = prompted.task.prompts
    groups = [one.group for one in prompts]
    return Side(
        found.x.float(), found.prompt, torch.tensor([one.label for one in prompts]), None,
        np.unique(groups, return_inverse=True)[1],
    )  # fmt: skip


def on_texts(
    activations: TextActivations, counted: Counted | None, chosen: list[int],
    z: list[int], unit: Sequence[str], keep: list[int] | None = None,
) -> Side:  # fmt: skip
    """The side of some texts; rows that do not count are left out, and texts without any other.

    Args:
        activations: Rows of all tokens of all texts.
        counted: Rule for the rows that count; None: all.
        chosen: Numbers of the texts.
        z: Class of the concept of every text.
        unit: Name of the resampled unit of every text.
        keep: A second label of every text.
    """
    text = torch.repeat_interleave(activations.lengths)
    counts = torch.ones(len(text), dtype=torch.bool)
    if counted is not None:
        counts = counted.mask([activations.x], None)
    has_rows = torch.bincount(text[counts], minlength=len(z)) > 0
    chosen = [i for i in chosen if has_rows[i]]
    number = torch.full((len(z),), -1)
    number[chosen] = torch.arange(len(chosen))
    example = number[text]
    kept = counts & (example >= 0)
    labels = None if keep is None else torch.tensor(keep)[chosen]
    return Side(
        activations.x[kept].float(), example[kept], torch.tensor(z)[chosen], labels,
        np.unique([unit[i] for i in chosen], return_inverse=True)[1],
    )  # fmt: skip


class Ground:
    """Two sides, and what an edit does to the test side.

    Args:
        train: Side that probes are trained on.
        test: Side that is measured.
        by_row: True if probes read single rows; else means over the rows of each example.
        bootstrap: Settings of the draws of units, within the classes of the concept: of a few
            units a draw of all would now and then lack a class, and no interval would be left.
        seed: Seed of the probes.
        answers: Gives, under an edit (None: none), the scores of training and of test prompts.
    """

    def __init__(
        self, train: Side, test: Side, *, by_row: bool, bootstrap: Bootstrap, seed: int,
        answers: Callable[[Replacement | None], tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.train, self.test, self.by_row, self.seed = train, test, by_row, seed
        self.answers = answers
        drawn = draws_within(test.strata(), bootstrap.num_resamples, bootstrap.seed)
        self._weights = drawn[:, test.unit]

    @cached_property
    def clean(self) -> Scores:
        """Scores where nothing is edited."""
        return self.scores(None)

    def scores(self, edit: Replacement | None) -> Scores:
        """Answers, fresh probes and the size of the edit; None: nothing is edited."""
        before = self.test.x
        x_train, x = (one.x if edit is None else _in_batches(edit, one.x)
                      for one in (self.train, self.test))  # fmt: skip
        size = (x - before).norm(dim=1)
        found = {
            "size": self._mean(size), "relative_size": self._mean(share_of_length(size, before)),
            **self._probes(x_train, x),
        }  # fmt: skip
        if self.answers is not None:
            of_train, of_test = (one.double().numpy() for one in self.answers(edit))
            found |= two_way.answers(
                of_test, self.test.z.numpy(), float(np.median(of_train)), self._weights
            )
        return found

    def _mean(self, of_rows: Tensor) -> np.ndarray:
        values = self.test.pooled(of_rows[:, None])[:, 0].double().numpy()
        return self._weights @ values / self._weights.sum(-1)

    def _probes(self, x_train: Tensor, x: Tensor) -> Scores:
        train, test, weights = self.train, self.test, self._weights
        labels = {"": (train.z, test.z)}
        if train.keep is not None and test.keep is not None:
            labels["kept_"] = (train.keep, test.keep)
        if self.by_row:
            labels = {prefix: (train.rows_of(y_train), test.rows_of(y))
                      for prefix, (y_train, y) in labels.items()}  # fmt: skip
            weights = weights[:, test.example.numpy()]
        else:
            x_train, x = train.pooled(x_train), test.pooled(x)
        axes, found = fresh.Axes.of(x_train), {}
        for prefix, (y_train, y) in labels.items():
            probes = {
                "linear_probe": fresh.linear(x_train, y_train, axes),
                "mlp_probe": fresh.mlp(x_train, y_train, axes, self.seed),
            }
            for name, probe in probes.items():
                yes = (probe(x).reshape(-1) > 0).numpy()
                found[f"{prefix}{name}"] = two_way.balanced_accuracy(yes, y.numpy(), weights)
        return found


@torch.no_grad()
def _in_batches(edit: Replacement, x: Tensor, batch_rows: int = 1024) -> Tensor:
    """The rows as an edit makes them; an edit takes [batch ctx d]."""
    return torch.cat([edit(rows[None])[0].float() for rows in x.split(batch_rows)])
