"""A measured number stands on a page of docs/results/; another page that has it names that page.

`<!-- from: results/speed.md -->` marks the block (paragraph, list, table) that it is in. On a line
of its own it marks the section under the heading above it; under the title, the whole page.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("guides/*.md"),
    *(path for path in DOCS.glob("reference/*.md") if path.name != "configuration.md"),
]  # fmt: skip  # settings alone are in that one
NUMBER = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
UNIT = (
    r"(?:minutes?|min|hours?|seconds?|s|ms|[GM]i?B|(?:vectors|tokens)/s|times as (?:fast|long)"
    r"|nats?|%)"
)
MEASURED = re.compile(
    rf"(?<![\w.,=/^-])(?:(?:(?P<from>{NUMBER})(?: to | and | or |–))?(?P<number>{NUMBER}) ?{UNIT}"
    r"(?![\w/])|(?P<share>0?\.\d{2,3})(?!\w))"
)
MARK = re.compile(r"<!-- from: (results/[\w.-]+\.md) -->")
CODE = re.compile(r"```.*?```|^    [^\n]*|`[^`\n]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
ALLOWED = {
    "tutorial.md": ".001",
    "guides/absorption.md": "0.025; 0.15 GB; 2 GB",
    "guides/causes.md": "70 %; 0.01; 1 %; 1 nats",
    "guides/circuits.md": "70 %; 1 %",
    "guides/compare.md": "2.1 GB",
    "guides/erasure.md": "90 %; 1 %",
    "guides/explanations.md": "1 nat",
    "guides/features.md": "10 %",
    "guides/planning.md": "0.7 GB; 30 %",
    "guides/probing.md": "0.01; 0.001",
    "guides/purity.md": "97 %",
    "guides/security.md": "20 s",
    "guides/steering.md": "60 %; 40 %; 5 %; 0.25; 1 and 2 nats; 2 min",
    "guides/synthetic.md": "0.99; 0.97; 38 %; 0.05",
    "guides/wandb.md": "10 seconds; 5 minutes",
    "guides/when-training-diverges.md": "1 %",
    "reference/architectures.md": ".999; 0.99; 0.999; 0.001; 5 %; 15 %",
    "reference/controls.md": "0.87; 0.90; 0.69; 0.72; 0.73; 0.02; 0.01 nat",
    "reference/formats.md": "5 %; 2.0 MB",
    "reference/metrics.md": "0.6 %; 10 %; 1 %; 60 %; 91 %; 0.01 nat; 0.62; 0.40; 0.316",
}
"""Settings, limits, formulas, sizes of formats, numbers of publications: not measured here."""


def blocks(text):
    """Each block of a page, with the pages of docs/results/ that have its numbers."""
    title, page, section = False, [], []
    for block in re.split(r"\n{2,}", CODE.sub("", text)):
        if heading := re.match(r"(#+) .*\n?", block):
            title, section = heading[1] == "#", []
        marks = MARK.findall(block)
        if marks and not MARK.sub("", re.sub(r"^#+ .*", "", block)).strip():
            (page if title else section).extend(marks)
        yield block, {*marks, *section, *page}


def measured(text):
    """Numbers that look measured, each with its text."""
    for found in MEASURED.finditer(text):
        if found.group() != "95 %":  # intervals
            yield from ((n, found.group()) for n in found.group("from", "number", "share") if n)


def numbers(text):
    """All numbers of a text, in one spelling: 0.05 and .05 are the same."""
    return {number.lstrip("0") for number in re.findall(NUMBER, text)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_measured_numbers_name_their_page(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)).removeprefix("docs/"), "").split("; ")
    for block, pages in blocks(path.read_text()):
        if not pages:
            unmarked = {text for _, text in measured(block) if text not in allowed}
            assert not unmarked, f"mark with <!-- from: results/….md -->, or link: {block}"
            continue
        there = set().union(*(numbers((DOCS / page).read_text()) for page in pages))
        for number, text in measured(block):
            if text not in allowed:
                assert number.lstrip("0") in there, f"{text} is not on {', '.join(sorted(pages))}"


def test_nothing_is_allowed_in_vain():
    for name, allowed in ALLOWED.items():
        text = CODE.sub("", (DOCS / name).read_text())
        assert set(allowed.split("; ")) <= {text for _, text in measured(text)}, name


def test_marks_cover_blocks_sections_and_pages():
    mark = "<!-- from: results/speed.md -->"
    text = f"# A\n\n1 s\n\n{mark} 2 s\n\n3 s\n\n## B\n\n{mark}\n\n4 s\n\n## C\n\n5 s"
    assert [block for block, pages in blocks(text) if pages] == [f"{mark} 2 s", mark, "4 s"]
    whole = f"# A\n\n{mark}\n\n1 s\n\n## B\n\n2 s"
    assert [bool(pages) for _, pages in blocks(whole)] == [False, True, True, True, True]
    found = "It took 3 to 5 minutes (.05 of 1,024 tokens/s, 95 % intervals) at l1=0.05 and k 32."
    assert [number for number, _ in measured(found)] == ["3", "5", ".05", "1,024"]
    assert numbers("0.05, 1,024 and 8") == {".05", "1,024", "8"}
