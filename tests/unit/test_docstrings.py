"""Docstrings of what is shipped, and of its arguments, open with a noun or a verb."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    file for folder in ("sae", "callbacks", "conf") for file in (ROOT / folder).rglob("*.py")
) + [ROOT / "train.py", ROOT / "evaluate.py"]
HABITS = {"Of", "Those", "That", "What", "Which", "Who", "So", "How", "When", "Where", "Whether"}
"""Openings that leave out the subject."""


def openings(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            said = ast.get_docstring(node)
            if said:
                yield said.split()[0].strip(",.:;"), said.splitlines()[0]
                for line, word in re.findall(r"^( +\w+: (\w+).*)$", said, re.MULTILINE):
                    yield word, line.strip()  # an argument, an attribute or an error
        if isinstance(node, ast.ClassDef | ast.Module):
            for one in node.body[1:]:  # those below attributes
                said = getattr(getattr(one, "value", None), "value", None)
                if isinstance(one, ast.Expr) and isinstance(said, str):
                    yield said.split()[0].strip(",.:;"), said.splitlines()[0]


def test_no_docstring_opens_with_a_habit():
    found = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in SHIPPED for word, line in openings(file.read_text()) if word in HABITS
    ]  # fmt: skip
    assert not found, "open with a noun or a verb"


def test_habits_are_seen():
    source = (
        '"""Whether it is."""\nclass A:\n    """A thing."""\n    x = 1\n    """What."""'
        '\n    def f(self):\n        """How.\n\n        Args:\n            x: Of a thing."""'
    )
    found = [word for word, _ in openings(source) if word in HABITS]
    assert sorted(found) == ["How", "Of", "What", "Whether"]
