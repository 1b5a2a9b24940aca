"""The site of docs/ in a real browser, opened from disk, with nothing reachable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.browser import Chromium

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
READY = "document.readyState === 'complete'"
FOUND = '[...document.querySelectorAll(".md-search-result__link")].map(one => one.href)'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `.ci/run` builds it: a link that leads nowhere ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_open_and_are_found_without_a_network(site, tmp_path, width):
    with Chromium(tmp_path / "profile", width=width) as browser:
        browser.open((site / "index.html").as_uri(), READY)
        browser.js('document.getElementById("__search").click()')
        browser.js(
            'const field = document.querySelector(".md-search__input");'
            'field.focus(); field.value = "LEACE"; field.dispatchEvent(new Event("keyup"));'
            'field.dispatchEvent(new Event("input"))'
        )
        browser.wait(f"{FOUND}.length > 0")
        assert any("erasure.html" in link for link in browser.js(FOUND))
        browser.open((site / "concepts.html").as_uri(), READY)
        assert browser.js("document.body.scrollWidth <= innerWidth")
        assert browser.errors == []
        assert all(
            url.startswith(("file:", "data:", "about:", "blob:")) for url in browser.requests
        )
