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
        task: `ioi`, `agreement`, or a JSONL file (`read_pairs`), whose first half chooses.
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
    first, second = own.prompts[:middle], own.prompts[middle:]
    return Task(own.name, first[:count]), Task(own.name, second[:count])
