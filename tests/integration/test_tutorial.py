"""The commands of docs/tutorial.md on a tiny LM; `.ci/run docs` runs them as they are."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
TINY = {"layer=4": "debug=tiny", "k=32": "k=4", "tokens=300000": "tokens=8192"}
MORE = {
    "eval=[steer]": [
        "eval.steer.csv=texts.csv", "eval.steer.label=numbers", "eval.steer.num_texts=20",
        "eval.steer.new_tokens=8", "eval.steer.num_tokens=64", "eval.steer.resamples=20",
    ],
    "eval=[autointerp]": ["eval.autointerp.pool=200", "eval.autointerp.resamples=20"],
}  # fmt: skip
# One process for all commands saves their imports; the wheels of the explanations need the network.
DRIVER = """
import json, runpy, sys
from _explanations import CountedWords
from test_autointerp import texts_of
from sae.evals import explaining
from sae.explanations import truth
explaining.load_encoder = lambda device: CountedWords()
truth.probe_sets = lambda names: list(texts_of(names))
root, *commands = json.loads(sys.argv[1])
for program, *words in commands:
    print("$", program, *words, flush=True)
    sys.argv = [f"{root}/{program}", *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def commands():
    """Words of every command of the page, as a shell reads them."""
    joined = PAGE.replace("\\\n", " ")
    return [
        shlex.split(line)[1:] for line in re.findall(r"^    (python .*)$", joined, re.MULTILINE)
    ]


def tiny(words):
    more = [word for name in words for word in MORE.get(name, [])]
    return [TINY.get(word, word) for word in words] + more


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands ran."""
    folder = tmp_path_factory.mktemp("reader")
    random = np.random.default_rng(0)
    rows = [("numbers", "one two three four five"), ("colours", "red blue green grey pink")] * 60
    lines = [f"{' '.join(random.choice(words.split(), 6))},{label}" for label, words in rows]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]))
    given = json.dumps([str(ROOT), *map(tiny, commands())])
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, given], cwd=folder, capture_output=True, text=True,
        timeout=400, stdin=subprocess.DEVNULL,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "unit"))),
            "SAE_CACHE": str(folder / "cache"),
        },
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


def test_every_file_that_the_page_names_is_made(folder):
    named = set(re.findall(r"`(outputs/[\w./-]+\.\w+)`", PAGE))
    assert len(named) >= 3
    for file in named:
        assert (folder / file).exists(), file


def test_both_saes_are_compared(folder):
    (file,) = folder.glob("outputs/compare-*/report.html")
    assert "second" in file.read_text()


def test_the_sizes_that_are_made_tiny_are_on_the_page():
    words = {word for command in commands() for word in command}
    assert set(TINY) | set(MORE) <= words


def test_ci_runs_the_same_commands():
    """The expression by which `.ci/run docs` finds them finds no fewer."""
    (expression,) = re.findall(r"sed -n '([^']+)' docs/tutorial.md", CI)
    found = subprocess.run(
        ["sed", "-n", expression, ROOT / "docs" / "tutorial.md"], capture_output=True, text=True
    )
    lines = found.stdout.replace("\\\n", " ").splitlines()
    assert [shlex.split(line)[1:] for line in lines] == commands()
