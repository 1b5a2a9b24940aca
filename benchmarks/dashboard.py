"""How fast a dashboard is written, how large it is, and how soon a browser shows it from disk.

    python -m benchmarks.dashboard                  50,000 made-up latents
    python -m benchmarks.dashboard --latents 4608

Records are made up (`benchmarks.made_up`): 2,048 different ones, again and again, 70 contexts each,
made before the clock starts. The browser is headless Chromium with nothing reachable. *Interactive*
is the time from the address to a table that is drawn, sorts and filters; *a latent's page* the time
from the change of the address to the second frame with its contexts, half a second after the last
one, once for latents in files that were not read before, once for their neighbours.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.browser import Chromium
from benchmarks.common import Result, Table, arguments, spread
from benchmarks.made_up import made_up_records, made_up_text
from sae.features.record import Record
from sae.reports.dashboard import write_dashboard

DIFFERENT = 2048
# From the change of the address to the second frame after the page is there: it has been painted.
OPENED = """
new Promise((resolve) => setTimeout(resolve, 500)).then(() => new Promise((resolve) => {
  const start = performance.now();
  new MutationObserver((_, observer) => {
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
  }).observe(document.getElementById("latent"), {childList: true});
  location.hash = "#/latent/%d";
}))
"""


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("--latents", type=int, help="how many")
    parser.add_argument("--contexts", type=int, help="of 128 tokens, in the text")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 10)
    given.latents = given.latents or (64 if given.quick else 50_000)
    given.contexts = given.contexts or (64 if given.quick else 8192)
    result = Result(given.name or "dashboard", {k: v for k, v in vars(given).items() if k != "out"})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "dashboard")
        result.tables.append(_writing(place, given.latents, given.contexts, given.quick))
        result.tables.append(_opening(place, Path(folder), given.latents, given.rounds))
    return result.write(given.out)


def _writing(place: Path, latents: int, contexts: int, quick: bool) -> Table:
    text = made_up_text(contexts, vocabulary=2048 if quick else 49_152)
    models = list(made_up_records(text, min(latents, DIFFERENT)))

    def records() -> Iterator[Record]:
        for latent in range(latents):
            yield replace(models[latent % len(models)], latent=latent)

    start = time.perf_counter()
    write_dashboard(place, records(), text, title="Made up", facts={"records": "made up"})
    seconds = time.perf_counter() - start
    sizes = {
        kind: sum(path.stat().st_size for path in place.glob(pattern))
        for kind, pattern in {
            "latents": "data/latents-*", "text": "data/text-*", "vocabulary": "data/vocabulary.js",
            "table": "data/index.js", "page": "assets/**/*.*",
        }.items()
    }  # fmt: skip
    total = sum(sizes.values())
    return Table("Writing", ["what", "measured"], [
        ["latents a minute", latents / seconds * 60],
        ["kB a latent, all files", total / latents / 1e3],
        *([f"MB of {kind}", size / 1e6] for kind, size in sizes.items()),
        ["MB", total / 1e6],
        ["files", sum(1 for path in place.rglob("*") if path.is_file())],
    ])  # fmt: skip


def _opening(place: Path, folder: Path, latents: int, rounds: int) -> Table:
    """Times in ms over `rounds` openings and ten latents each, requests and errors."""
    url, rng = (place / "index.html").as_uri(), random.Random(0)
    first, fresh, near, sorting, searching = [], [], [], [], []
    outside, errors = 0, 0
    for turn in range(rounds):
        with Chromium(folder / f"profile-{turn}") as browser:
            first.append(1e3 * browser.open(url))
            for _ in range(10):
                latent = rng.randrange(latents)
                fresh.append(browser.js(OPENED % latent))
                near.append(browser.js(OPENED % (latent ^ 1)))  # in the same file
            browser.js('location.hash = "#"')
            browser.wait('!document.getElementById("index").hidden')
            columns = '[...document.querySelectorAll(".slick-header-column")]'
            for name in ("density", "top tokens"):
                sorting.append(browser.js(_timed(
                    f'{columns}.find((one) => one.textContent === "{name}").click()'
                )))  # fmt: skip
            searching.append(browser.js(_timed(
                'const field = document.querySelector("#filters [type=search]");'
                'field.value = "ba";'
                'field.dispatchEvent(new InputEvent("input", {bubbles: true}))'
            )))  # fmt: skip
            outside += sum(
                not url.startswith(("file:", "data:", "about:")) for url in browser.requests
            )
            errors += len(browser.errors)
    return Table("Chromium, from file://, ms", ["what", "median (quartiles)", "slowest"], [
        [name, spread(times), max(times)] for name, times in (
            ("interactive", first), ("a latent's page", fresh), ("the page of one nearby", near),
            ("sort", sorting), ("search", searching),
        )
    ] + [["network requests", outside, None], ["errors on the console", errors, None]])  # fmt: skip


def _timed(script: str) -> str:
    return f"""new Promise((resolve) => {{
      const start = performance.now();
      {script};
      requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
    }})"""


if __name__ == "__main__":
    main()
