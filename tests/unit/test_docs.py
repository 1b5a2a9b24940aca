"""README and docs/: links lead somewhere, commands are accepted, nothing names one machine."""

import argparse
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from conf.commandline import check_command_line
from conf.compose import compose_job
from conf.resume import save_config
from conf.schema import check

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"\bpython3? +((?:train\.py|evaluate\.py|-m)\b[^\n`]*)")
# Sites a reader may be sent to. No index or hub of packages, LMs or data: a mirror may serve those.
SITES = ("arxiv.org", "github.com", "transformer-circuits.pub", "wandb.ai", "lesswrong.com")
_ENDINGS = "org|com|net|io|ai|co|dev|pub|edu|cn"
HOST = re.compile(rf"(?<![\w.@/-])((?:[a-z0-9-]+\.)+(?:{_ENDINGS}))(?![\w.-])")


def name_of(path):
    return str(path.relative_to(ROOT))


def commands(text):
    """Arguments of every command in the text; `<folder>` becomes a word, a lone … is dropped."""
    text = re.sub(r"\\\n\s*", "", text)
    for found in COMMAND.finditer(text):
        line = re.sub(r"<[^<>]*>", "placeholder", found.group(1))
        line = re.split(r" {2,}| && | \| ", line)[0]  # what follows two spaces explains
        words = [word for word in shlex.split(line, comments=True) if word != "…"]
        if not any("…" in word for word in words):
            yield words


def all_commands():
    """Commands of all pages but two kinds.

    docs/guides/extending.md adds parts first: tests/integration/test_extending.py runs its
    commands. Dated results name the commands of their day.
    """
    return [
        pytest.param(words, id=f"{name_of(path)}: {' '.join(words)}"[:90])
        for path in DOCUMENTS
        if path.name != "extending.md" and path.parent.name != "results"
        for words in commands(path.read_text())
    ]


def slug(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    text = path.read_text()
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = path.parent / file if file else path
        assert where.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", where.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target} names no heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_of_the_house_that_are_named_exist(path):
    rooms = r"(?:sae|conf|callbacks|tests|docs|benchmarks|\.ci)"
    text = path.read_text()
    named = re.findall(rf"(?<![\w<>./-]){rooms}/[\w./-]+\.(?:py|yaml|md|png)\b", text)
    made = re.findall(r"^```(?:python|yaml)\n# (\S+)$", text, re.MULTILINE)  # by who follows it
    for file in set(named) - set(made):
        assert (ROOT / file).exists(), f"{file} is not there"


@pytest.mark.slow
@pytest.mark.parametrize("words", all_commands())
def test_commands_are_accepted(words, monkeypatch, tmp_path):
    program, *arguments = words
    if program != "-m":
        assert (ROOT / program).is_file()
        if any(word.startswith("resume_with=") for word in arguments):  # of a run that is there
            save_config(tmp_path / "outputs" / "mine", check(compose_job("train", [])))
            monkeypatch.chdir(tmp_path)
        check_command_line(program.removesuffix(".py"), arguments)
        return
    module, *arguments = arguments
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if module.split(".")[0] not in ("sae", "callbacks", "conf", "benchmarks"):
        return  # pip, venv
    if spec.submodule_search_locations is not None:
        module += ".__main__"

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, given=None, namespace=None):
        parse(self, given, namespace)  # leaves with SystemExit(2) where it does not understand
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        importlib.import_module(module).main(arguments)


def test_commands_are_found():
    text = """`python train.py sae=topk k=8` or
        python evaluate.py run=<my run> 'eval=[core]'      # all
        python -m sae.activations \\
            list  shows
    `python train.py epochs=…`"""
    assert list(commands(text)) == [
        ["train.py", "sae=topk", "k=8"],
        ["evaluate.py", "run=placeholder", "eval=[core]"],
        ["-m", "sae.activations", "list"],
    ]
    assert len(all_commands()) > 10


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 100


def test_the_index_lists_every_page():
    index = (ROOT / "docs/index.md").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = {page for page in pages if f"({page})" in index}
    dated = {page for page in pages if page.startswith("results/2")}
    assert pages - listed - dated <= {"index.md", *(p for p in pages if p.startswith("adr/"))}
    site = (ROOT / "mkdocs.yml").read_text()
    assert {page for page in listed | {"index.md"} if f"- {page}\n" not in site} == set()
    results = (ROOT / "docs/results/index.md").read_text()
    assert all(f"({page.removeprefix('results/')})" in results for page in dated)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_extras_exist(path):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:\.|lightning-sae)\[([\w,]+)\]", path.read_text()):
        assert set(extras.split(",")) <= set(known)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_nothing_names_a_machine_or_an_index(path):
    text = path.read_text()
    # a leading slash, two parts: on whose disk?
    assert re.findall(r"(?:^|[\s`\"'(=:])(/[\w.-]+/[\w./-]+)", text) == []
    assert re.findall(r"\b[A-Z]:\\\w+", text) == []
    hosts = set(HOST.findall(text.lower().replace("://", " ")))
    assert {h for h in hosts if not any(h == s or h.endswith(f".{s}") for s in SITES)} == set()
