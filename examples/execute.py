"""Run the cells of a notebook in order and write their outputs into it.

    python examples/execute.py examples/first_look.ipynb

It keeps what a cell prints and the value of its last line, and needs no Jupyter. Logs, warnings and
progress bars go to the screen alone, so that no output names a machine.
"""

import ast
import io
import json
import os
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

_LONGEST = 2000
"""Characters of the plain text beside HTML."""


def execute(file: Path, given: dict[str, str] | None = None) -> dict[str, Any]:
    """The notebook with new outputs; the file stays as it is.

    Args:
        file: A notebook (nbformat 4). Its cells run in its folder, as in Jupyter.
        given: Replaced values of top-level assignments, as source text by name.

    Raises:
        Exception: As a cell raises it.
    """
    notebook = json.loads(file.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with chdir(file.parent):
        for count, cell in enumerate(cells, 1):
            body = ast.parse("".join(cell["source"])).body
            cell["execution_count"] = count
            cell["outputs"] = _outputs(
                [_replaced(node, given or {}) for node in body], names, count
            )
    return notebook


def _outputs(body: list[ast.stmt], names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    value, printed = None, io.StringIO()
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {count}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        html = value._repr_html_() if hasattr(value, "_repr_html_") else None
        plain = repr(value)
        if html and len(plain) > _LONGEST:  # whole arrays
            plain = f"<{type(value).__name__}>"
        data = {"text/plain": plain.splitlines(True)} | (
            {"text/html": html.splitlines(True)} if html else {}
        )
        outputs.append({
            "data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result",
        })  # fmt: skip
    return outputs


def _replaced(node: ast.stmt, given: dict[str, str]) -> ast.stmt:
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
        node.value = ast.parse(given.get(target.id, ast.unparse(node.value)), mode="eval").body
    return node


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in sys.argv[1:]:
        text = json.dumps(execute(Path(name).resolve()), indent=1, ensure_ascii=False)
        Path(name).write_text(text + "\n", encoding="utf-8")
