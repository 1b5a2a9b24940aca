"""Prompts and counterfactuals of the user, from a JSONL file."""

import json
from pathlib import Path
from typing import Any

from sae.errors import SourceError
from sae.intact import require_content
from sae.language.text import Tokenizer
from sae.tasks.task import Prompt, Task, ids_of, one_token

FIELDS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
"""Fields of a line, as in the files of Marks et al. 2024 (arXiv 2403.19647)."""


def read_pairs(path: str, tokenizer: Tokenizer) -> Task:
    """The prompts of a file, a JSON object a line; a line that was there before is left out.

    Args:
        path: The file.
        tokenizer: The LM's tokenizer.

    Raises:
        SourceError: If there is no such file, a line lacks a field or holds no text, or prompt and
            counterfactual are the same, have the same answer or other numbers of tokens.
        ConfigError: If an answer is not one token.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SourceError(
            f"task={path} is not a file. Give ioi, agreement, or a JSONL file with the fields "
            f"{', '.join(FIELDS)} in each line."
        )
    require_content(file, SourceError)
    prompts: dict[tuple, Prompt] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file.name} is not UTF-8 text ({error}).") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            clean, patch, right, wrong = _fields(line, f"line {number} of {file.name}")
            tokens, other = ids_of(tokenizer, clean), ids_of(tokenizer, patch)
            if len(tokens) != len(other):
                raise SourceError(
                    f"Line {number} of {file.name}: {len(tokens) - 1} tokens in clean_prefix and "
                    f"{len(other) - 1} in patch_prefix. They must be equally many: latents are "
                    "swapped position by position."
                )
            answers = one_token(tokenizer, right), one_token(tokenizer, wrong)
            if tokens == other or answers[0] == answers[1]:
                raise SourceError(
                    f"Line {number} of {file.name}: prompt and counterfactual, or their answers, "
                    "are the same tokens, so there is nothing to patch. Give two of each."
                )
            prompt = Prompt(tokens, *answers, other, {"end": len(tokens) - 1})
            prompts.setdefault((tokens, other, *answers), prompt)
    return Task(file.stem, tuple(prompts.values()))


def _fields(line: str, where: str) -> tuple[str, ...]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not JSON ({error}).") from None
    given = entry if isinstance(entry, dict) else {}
    values = [value for name in FIELDS if isinstance(value := given.get(name), str) and value]
    if len(values) < len(FIELDS):
        raise SourceError(f"{where} must be an object with the texts {', '.join(FIELDS)}.")
    for name, value in zip(FIELDS, values, strict=True):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell it
            half = f"\\u{ord(value[error.start]):04x}"
            raise SourceError(
                f"{where} has half of a surrogate pair in {name} ({half}), which is no character. "
                "Give both halves, or the character itself."
            ) from None
    return tuple(values)
