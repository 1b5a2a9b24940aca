"""The blocks of docs/python.md, in their order, on a tiny run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
TINY = {'"k=32", "layer=4", "tokens=300000"': '"debug=tiny", "k=4"'}
pytestmark = pytest.mark.slow


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    from train import compose, train

    monkeypatch.chdir(tmp_path)
    train(compose(["debug=tiny", "epochs=1", "eval=[core]"]), Path("outputs/mine"))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    names: dict[str, object] = {}
    capsys.readouterr()
    for block in blocks:
        assert len(block.splitlines()) <= 12
        for real, tiny in TINY.items():
            block = block.replace(real, tiny)
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"L0 [\d.]+, FVU 0\.\d+ on \d+ vectors", printed)
    assert "downstream kl " in printed
    assert names["fvu"] < 1
    assert (tmp_path / "outputs/notebook/evals/downstream-num_tokens=4096.json").exists()


def test_the_tiny_settings_are_those_of_the_page():
    assert all(real in PAGE for real in TINY)
