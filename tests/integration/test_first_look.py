"""examples/first_look.ipynb: its cells run on a tiny run; the outputs in it are of a real one."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "first_look.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    from train import compose, train

    spec = importlib.util.spec_from_file_location("execute", EXAMPLES / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    train(compose(["debug=tiny", "sae=topk", "k=8", "epochs=1", "eval=[core]"]), tmp_path / "run")
    before = NOTEBOOK.read_bytes()
    made = code_cells(
        execute.execute(NOTEBOOK, {"RUN": repr(str(tmp_path / "run")), "rare": "fires"})
    )
    assert NOTEBOOK.read_bytes() == before
    kinds = [[list(one.get("data", "s")) for one in cell["outputs"]] for cell in made]
    real = code_cells(json.loads(before))
    assert kinds == [[list(one.get("data", "s")) for one in cell["outputs"]] for cell in real]


def test_the_outputs_are_committed_and_name_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert not re.search(r"/(?:tmp|home|root|Users|work)/", text)
    cells = code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("text/html" in one.get("data", {}) for cell in cells for one in cell["outputs"]) >= 4
    assert "error" not in {one["output_type"] for cell in cells for one in cell["outputs"]}


def test_the_run_is_named_in_one_place():
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert "".join(cells[0]["source"]).startswith('RUN = "../outputs/')
    assert not any("outputs/" in "".join(cell["source"]) for cell in cells[1:])
