"""Tasks by their names."""

from sae.errors import ConfigError
from sae.language.text import Tokenizer
from sae.tasks.agreement import agreement
from sae.tasks.ioi import Counterfactual, ioi
from sae.tasks.pairs import read_pairs
from sae.tasks.task import Task

LEAST = 4
"""Prompts that a file must have."""


def halves_of(
    task: str, tokenizer: Tokenizer, count: int, *, counterfactual: Counterfactual = "io",
    seed: int = 0,
) -> tuple[Task, Task]:  # fmt: skip
    """Prompts that choose latents, and prompts that they are measured on.

    Args:
        task: `ioi`, `agreement`, or a JSONL file (`read_pairs`), whose first half chooses. Of the
            second half, prompts that are texts of the first one are left out.
        tokenizer: The LM's tokenizer.
        count: Most prompts in each.
        counterfactual: Kind of counterfactual of `ioi`.
        seed: Seed of the draws.

    Raises:
        SourceError: If there is no such file, or it holds something else.
        ConfigError: If the file has too few prompts, or the task does not fit the tokenizer.
    """
    if task == "ioi":
        first, second = (
            ioi(tokenizer, count, counterfactual=counterfactual, half=half, seed=seed)
            for half in (0, 1)
        )
        return first, second
    if task == "agreement":
        first, second = (agreement(tokenizer, count, half=half, seed=seed) for half in (0, 1))
        return first, second
    own = read_pairs(task, tokenizer)
    if len(own) < LEAST:
        raise ConfigError(
            f"task={task} has {len(own)} prompts; {LEAST} or more are needed, since half of them "
            "choose the latents and the others measure them."
        )
    middle = (len(own) + 1) // 2
    first = own.prompts[:middle][:count]
    known = {ids for prompt in first for ids in (prompt.tokens, prompt.patch)}
    second = [prompt for prompt in own.prompts[middle:] if prompt.tokens not in known]
    if len(second) < LEAST // 2:
        raise ConfigError(
            f"task={task}: {len(second)} prompts of the second half are not among the texts of the "
            f"first; {LEAST // 2} or more are needed, since latents are measured on prompts that "
            "did not choose them. Mix the lines, or give more prompts."
        )
    return Task(own.name, first), Task(own.name, tuple(second[:count]))


def all_of(task: str, tokenizer: Tokenizer, count: int, *, seed: int = 0) -> Task:
    """Prompts of which none are held out: the first ones of a file, in its order.

    Args:
        task: As `halves_of` takes it.
        tokenizer: The LM's tokenizer.
        count: Most prompts.
        seed: Seed of the draws.

    Raises:
        SourceError: If there is no such file, or it holds something else.
        ConfigError: If the task does not fit the tokenizer.
    """
    if task in ("ioi", "agreement"):
        halves = halves_of(task, tokenizer, count, seed=seed)
        own = Task(halves[0].name, halves[0].prompts + halves[1].prompts)
    else:
        own = read_pairs(task, tokenizer)
    return Task(own.name, own.prompts[:count])
