"""The dashboard in a real browser, opened from disk, with nothing reachable."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.browser import Chromium
from benchmarks.made_up import made_up_records, made_up_text
from sae.features.ablated import Ablated
from sae.features.record import Listed, Record, Shown, Text
from sae.reports.dashboard import write_dashboard
from sae.reports.dashboard.packing import bits, floats, integers, piece

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='hit'\">"
ROWS = (
    '[...document.querySelectorAll("#table .slick-row")].sort((a, b) => a.offsetTop - b.offsetTop)'
)
FIRST = f'{ROWS}[0]?.querySelector("a").textContent'
SHOWN = (
    '!document.getElementById("latent").hidden && document.querySelector("#latent h1").textContent'
)
FAMILY = "👩‍👩‍👧‍👦"


@pytest.fixture
def opened(tmp_path) -> Iterator[tuple[Chromium, object]]:
    """A browser, and a function that writes a dashboard and opens it; ends without a complaint."""
    numbers = itertools.count()
    with Chromium(tmp_path / "profile") as browser:

        def open_dashboard(records, text, title="Latents", facts=None, page="", **more):
            folder = tmp_path / f"dashboard{next(numbers)}"  # an open page may still read its own
            write_dashboard(
                folder, records, text, title=title, facts=facts or {"LM": "tiny"}, **more
            )
            browser.open((folder / "index.html").as_uri() + page)
            return folder

        yield browser, open_dashboard
        assert browser.errors == []
        outside = [
            url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))
        ]
        assert outside == []


def latent(browser, name) -> None:
    browser.js(f'location.hash = "#/latent/{name}"')
    browser.wait(f'({SHOWN}) === "Latent {name}"')


def one_context(pieces, firing, vocabulary=(), counted=None, around=None) -> tuple[Record, Text]:
    """A latent that fires in one context made of `pieces`, at the positions of `firing`."""
    vocabulary = [*dict.fromkeys([*pieces, *vocabulary])]
    tokens = np.array([[vocabulary.index(one) for one in pieces]])
    text = Text("one", False, tokens, np.ones(len(pieces), bool) if counted is None else counted,
                vocabulary)  # fmt: skip
    (record,) = made_up_records(
        made_up_text(vocabulary=[b"x"] * max(9, len(vocabulary)), ctx=16), 1, 1
    )
    at, values = np.array(sorted(firing)), np.array([firing[i] for i in sorted(firing)])
    peak = int(at[values.argmax()])
    shown = Shown("top", 0, peak, float(values.max()), 10, 1, at, values)
    everything = Listed(np.arange(len(vocabulary)), np.ones(len(vocabulary)))
    return replace(
        record, max=float(values.max()), contexts=[shown], by_mass=everything, by_mean=everything,
        top_logits=everything, bottom_logits=everything,
        histogram_tokens=np.arange(min(4, len(vocabulary))),
    ), text  # fmt: skip


def tokens(browser) -> list[str]:
    return browser.js(
        '[...document.querySelectorAll(".contexts li .token")].map((t) => t.textContent)'
    )


def test_the_table_sorts_searches_and_filters(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    records = list(made_up_records(text, 300))
    open_dashboard(records, text)
    assert browser.js(FIRST) == "0"
    heads = '[...document.querySelectorAll(".slick-header-column")]'
    click = f'{heads}.find((one) => one.textContent === "max").click()'
    browser.js(click)
    assert browser.js(FIRST) == min(records, key=lambda record: record.max).name
    browser.js(click)
    assert browser.js(FIRST) == max(records, key=lambda record: record.max).name
    count = 'document.querySelector("#filters output").textContent'
    browser.js('document.querySelector("#filters [name=least]").focus()')
    browser.type("1e-3")
    dense = sum(record.density >= 1e-3 for record in records)
    browser.wait(f'{count} === "{dense} of 300 latents"')
    browser.js('document.querySelector("#filters").reset()')
    browser.wait(f'{count} === "300 of 300 latents"')
    browser.key("/")
    wanted = text.vocabulary[records[7].by_mass.ids[1]].decode(errors="replace").strip()
    browser.type(wanted.upper())
    browser.wait(f'{count} !== "300 of 300 latents"')
    found = {
        record.name for record in records
        for id in (*record.by_mass.ids[:3], *record.top_logits.ids[:3])
        if wanted in text.vocabulary[id].decode(errors="replace")
    }  # fmt: skip
    assert browser.js(count) == f"{len(found)} of 300 latents"
    assert "7" in found
    bars = '[...document.querySelectorAll("#densities .bar")]'
    browser.js(
        'document.querySelector("#filters").reset();'
        f'{bars}[3].dispatchEvent(new MouseEvent("click"))'
    )
    browser.wait(f'{count}.startsWith("300") === false')


def test_the_keyboard_does_all(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    open_dashboard(made_up_records(text, 300), text)
    for key in ("/", "ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        browser.key(key)
    browser.wait(f'({SHOWN}) === "Latent 2"')
    for key, name in (("j", 3), ("ArrowRight", 4), ("k", 3), ("ArrowLeft", 2)):
        browser.key(key)
        browser.wait(f'({SHOWN}) === "Latent {name}"')
    browser.key("Escape")
    browser.wait('!document.getElementById("index").hidden')
    browser.key("ArrowDown")  # on from where it was
    browser.key("Enter")
    browser.wait(f'({SHOWN}) === "Latent 3"')
    browser.js('document.querySelector(".contexts li").focus()')
    assert "activation" in browser.js('document.getElementById("hint").textContent')


def test_a_latent_shows_what_its_record_says(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    records = list(made_up_records(text, 40))
    open_dashboard(records, text, page="#/latent/33", columns={"explanation": {"33": HOSTILE}})
    browser.wait(f'({SHOWN}) === "Latent 33"')
    record = records[33]
    browser.wait('document.querySelector(".others").textContent.includes("it never fires")')
    groups = browser.js('[...document.querySelectorAll("h2, summary")].map((h) => h.textContent)')
    share = record.interval_counts[9] / record.interval_counts.sum()
    (highest,) = [group for group in groups if group.startswith("Interval 10")]
    assert f"{float(f'{100 * share:.3g}'):g} %" in highest or "< 0.1 %" in highest
    assert {"Strongest contexts", "Random contexts", "Contexts where it never fires"} <= {
        group.split(" each")[0].split(" 10 of")[0].removesuffix(" 1") for group in groups
    }
    values = browser.js(
        '[...document.querySelector(".contexts").querySelectorAll(".value")]'
        ".map((value) => Number(value.textContent))"
    )
    top = [shown.value for shown in record.contexts if shown.group == "top"]
    assert np.allclose(values, top, rtol=1e-3)
    peaks = browser.js(
        '[...document.querySelector(".contexts").querySelectorAll(".peak")].map((t) => t.place)'
    )
    assert peaks == [shown.peak for shown in record.contexts if shown.group == "top"]
    assert HOSTILE in browser.js('document.querySelector("#latent").textContent')
    links = browser.js(
        '[...document.querySelectorAll("aside a")].map((a) => a.getAttribute("href"))'
    )
    assert f"#/latent/{record.nearest.ids[0]}" in links
    shown = browser.js('document.querySelector(".contexts li").querySelectorAll(".token").length')
    assert shown <= 33
    browser.js('document.querySelector(".contexts li .more").click()')
    assert (
        browser.js('document.querySelector(".contexts li").querySelectorAll(".token").length')
        == 128
    )
    assert browser.js('document.querySelectorAll(".plot").length') >= 3
    browser.js('location.hash = "#/latent/999"')
    browser.wait('!document.getElementById("failure").hidden')


def test_characters_of_several_tokens_are_whole(opened):
    browser, open_dashboard = opened
    emoji, cyrillic = "😀".encode(), "д".encode()
    family = [c.encode() for c in FAMILY]
    pieces = [
        b"a", emoji[:1], emoji[1:3], emoji[3:], b" b", cyrillic[:1], cyrillic[1:], *family,
        b"\xff", b"c", emoji[:2], b"d", b"\xed\xa0\x80", b"\0", b"\n", b"\xef\xbb\xbf", b"e",
        cyrillic[:1],
    ]  # fmt: skip
    record, text = one_context(pieces, {12: 2.0, 9: 1.0})
    open_dashboard([record], text)
    latent(browser, 0)
    shown = tokens(browser)
    assert len(shown) == len(pieces)
    assert shown[:7] == ["a", "", "", "😀", " b", "", "д"]
    assert "".join(shown[7 : 7 + len(family)]) == FAMILY
    rest = shown[7 + len(family) :]
    assert rest == ["\ufffd", "c", "\ufffd", "d", "\ufffd" * 3, "␀", "↵", "\ufeff", "e", "\ufffd"]
    # a token without a visible character of its own can be seen and pointed at
    widths = browser.js(
        '[...document.querySelectorAll(".contexts .invisible")].map((t) => t.offsetWidth)'
    )
    assert len(widths) >= 4
    assert min(widths) > 4


def test_hostile_text_is_shown_and_does_nothing(opened):
    browser, open_dashboard = opened
    pieces = [
        b"</script><script>document.title='hit'</script>", HOSTILE.encode(), b"<!--", b"]]>",
        "\u202eoverride".encode(), "שלום".encode(), " مرحبا".encode(), "\u200b".encode(),
        "\u2028\u2029".encode(), b"\0", b"{{ 7*7 }}", b"javascript:alert(1)", b"e",
        "\u0301\u0301\u0301".encode(), b"x" * 5000,
    ]  # fmt: skip
    record, text = one_context(pieces, {i: 1.0 + i / 100 for i in range(len(pieces))})
    open_dashboard([record], replace(text, name=HOSTILE), title=HOSTILE, facts={HOSTILE: HOSTILE},
                   columns={HOSTILE: {"0": HOSTILE}})  # fmt: skip
    assert browser.js("document.querySelectorAll('img').length") == 0
    latent(browser, 0)
    shown = tokens(browser)
    assert shown[:4] == [piece.decode() for piece in pieces[:4]]
    assert shown[4:9] == [piece.decode() for piece in pieces[4:9]]
    assert browser.js("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.js("document.title").endswith(HOSTILE)  # as text
    # what runs from right to left stays inside its token: the tokens stand in their order
    places = browser.js("""
      [...document.querySelectorAll(".contexts .token")].slice(3, 8).map((token) => {
        const box = token.getBoundingClientRect();
        return [box.top + box.height / 2, box.left];
      })
    """)
    rows = [(round(top / 20), left) for top, left in places]
    assert rows == sorted(rows)
    assert browser.js("document.documentElement.scrollWidth - innerWidth") <= 0


def test_nothing_but_the_pages_own_scripts_runs(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    folder = open_dashboard(made_up_records(text, 3), text)
    page = folder / "index.html"
    injected = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'><h1>"
    page.write_text(page.read_text().replace("<h1>", injected))
    browser.open(page.as_uri())
    refused = list(browser.errors)
    assert sum("Content Security Policy" in error for error in refused) >= 2
    assert browser.js("window.hit") is None
    assert browser.js("fetch('data/index.js').then(() => 'read', () => 'refused')") == "refused"
    assert (
        browser.js("fetch('http://127.0.0.1:9').then(() => 'read', () => 'refused')") == "refused"
    )
    inner = """(() => {
      try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch { return 'refused'; }
    })()"""
    assert browser.js(inner) == "refused"
    browser.errors.clear()
    browser.requests.clear()


def test_a_line_of_a_megabyte(opened):
    browser, open_dashboard = opened
    pieces = [b"x", b"yz" * 8]
    record, text = one_context(
        pieces * 30_000, {29_000: 3.0}
    )  # 60,000 tokens, 510 kB, in one context
    open_dashboard([record], text)
    latent(browser, 0)
    assert len(tokens(browser)) == 33
    assert browser.js("document.documentElement.scrollWidth - innerWidth") <= 0
    long, other = one_context([b"a", b"b" * 1_000_000], {1: 1.0})
    open_dashboard([long], other)
    latent(browser, 0)
    assert len(tokens(browser)[1]) == 1_000_000


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_and_all_can_be_read(opened, width, dark):
    browser, open_dashboard = opened
    browser.size(width, 844)
    browser.dark(dark)
    text = made_up_text()
    open_dashboard(made_up_records(text, 40), text, title="a" * 300, facts={"SAE": "b" * 300})
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.js(wide) <= 0
    latent(browser, 3)
    assert browser.js(wide) <= 0
    contrast = """(() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255)
        + .0722 * linear(b / 255);
      const style = getComputedStyle(document.querySelector(".contexts li"));
      const page = light(parse(getComputedStyle(document.querySelector(".card")).backgroundColor));
      const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      const canvas = new OffscreenCanvas(1, 1).getContext("2d");
      canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--fire");
      canvas.fillRect(0, 0, 1, 1);
      const fire = light([...canvas.getImageData(0, 0, 1, 1).data]);
      return [ratio(light(parse(style.color)), page), ratio(light(parse(style.color)), fire)];
    })()"""
    plain, strongest = browser.js(contrast)
    assert plain > 7
    assert strongest > 4.5  # bold text on the strongest colour


def test_a_missing_file_is_said(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    folder = open_dashboard(made_up_records(text, 3), text)
    (folder / "data/latents-00000.js").unlink()
    browser.js('location.hash = "#/latent/1"')
    browser.wait('document.getElementById("failure").textContent.includes("data/latents-00000.js")')
    assert any(
        "latents-00000" in error or "ERR_FILE_NOT_FOUND" in error for error in browser.errors
    )
    browser.errors.clear()


def test_silent_latents_signed_codes_and_an_empty_dashboard(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    (record,) = made_up_records(text, 1)
    silent = replace(
        record, latent=1, firings=0, contexts_fired=0, density=0.0, max=0.0, mean=0.0, contexts=(),
        stability=None,
    )  # fmt: skip
    open_dashboard([record, replace(record, sign=-1), silent], text)
    latent(browser, "-0")
    latent(browser, 1)
    assert "never fires" in browser.js('document.getElementById("latent").textContent')
    open_dashboard([], text)
    assert browser.js('document.querySelector("#filters output").textContent') == "0 of 0 latents"


def own_text(pieces, firings, names=("5", "7", "900"), texts=(0,)):
    """A text of pieces as `packed_text` gives it; `firings`: (token, place in names, value)."""
    vocabulary = [*dict.fromkeys(pieces)]
    row, place, value, decile = np.array(firings, float).T
    return {
        "tokens": integers([vocabulary.index(one) for one in pieces]),
        "counted": bits([i > 0 for i in range(len(pieces))]),
        "starts": integers(texts), "texts": integers(texts), "row": integers(row.astype(int)),
        "place": integers(place.astype(int)), "value": floats(value),
        "decile": integers(decile.astype(int)), "latents": list(names),
        "vocabulary": {"ids": integers(range(len(vocabulary))),
                       "pieces": [piece(one) for one in vocabulary]},
    }  # fmt: skip


PIECES = [
    b"the", " naïve".encode(), HOSTILE.encode(), b"</script>", "שלום".encode(), b"\0", b"\n",
    "😀".encode()[:2], "😀".encode()[2:], b"x" * 3000,
]  # fmt: skip
LISTED = (
    '[...document.querySelectorAll("#text tbody tr td:nth-child(2)")].map((c) => c.textContent)'
)


def test_a_text_of_the_users_own(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    # 900 is silent in the records; 5 is strongest on token 1, 7 has the better decile
    firings = [(1, 0, 4.0, 3), (1, 1, 2.0, 1), (2, 0, 3.0, 5), (4, 2, 1.0, 0), (8, 1, 1.5, 2)]
    own = own_text(PIECES, firings, texts=(0, 4))
    open_dashboard(made_up_records(text, 40), text, own_text=own)
    browser.js('document.querySelector("#own a").click()')
    browser.wait('!document.getElementById("text").hidden')
    shown = '[...document.querySelectorAll("#text .token")].map((t) => t.textContent)'
    words = browser.js(shown)
    assert words[:6] == ["the", " naïve", HOSTILE, "</script>", "שלום", "␀"]
    assert words[6:9] == ["↵", "", "😀"]
    assert browser.js('document.querySelectorAll("#text p .token.uncounted").length') == 1
    assert browser.js('document.querySelectorAll("#text .own p").length') == 2
    assert browser.js("document.querySelectorAll('img, iframe').length") == 0
    assert browser.js("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.js(LISTED) == ["5", "7", "900"]
    fires = '[...document.querySelectorAll("#text .fires")].map((t) => t.place)'
    assert browser.js(fires) == [1, 2]  # coloured by the strongest one
    browser.js('document.querySelector("#text [value=decile]").click()')
    assert browser.js(LISTED) == ["7", "5", "900"]
    browser.js('document.querySelector("#text [data-latent=\\"7\\"]").click()')
    assert browser.js(fires) == [1, 8]
    browser.js('document.querySelectorAll("#text .token")[2].click()')
    assert browser.js(LISTED) == ["5"]
    browser.js('document.querySelector("#text .own").focus()')
    for key in ("ArrowRight", "ArrowRight", "Enter"):  # on from the token that was clicked
        browser.key(key)
    assert browser.js(LISTED) == ["900"]
    assert browser.js("document.querySelectorAll('#text tbody a').length") == 0
    browser.key("Enter")  # the whole text again
    browser.js('document.querySelector("#text tbody a").click()')
    browser.wait(f'({SHOWN}) === "Latent 7"')
    browser.js("history.back()")
    browser.wait('!document.getElementById("text").hidden')
    browser.key("Escape")
    browser.wait('!document.getElementById("index").hidden')


def test_without_a_text_of_ones_own_there_is_no_link(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    open_dashboard(made_up_records(text, 2), text)
    assert browser.js('document.getElementById("own").hidden')
    open_dashboard([], text, own_text=own_text([b"a"], np.zeros((0, 4))))
    browser.js('location.hash = "#/text"')
    browser.wait('!document.getElementById("text").hidden')
    assert "No latent fires" in browser.js('document.getElementById("text").textContent')


def test_what_a_latent_does_and_how_to_find_out(opened):
    browser, open_dashboard = opened
    text = made_up_text()
    listed = Listed(np.array([3, 5]), np.array([-2.5, -1.25]))
    effect = Ablated(listed, Listed(np.array([9]), np.array([0.5])), 0.041, 0.0125, 19, 10)
    open_dashboard(made_up_records(text, 5), text, effects={"3": effect},
                   command="python evaluate.py 'run=<b>x</b>'", page="#/latent/3")  # fmt: skip
    browser.wait(f'({SHOWN}) === "Latent 3"')
    found = browser.js('document.querySelector("#latent").textContent')
    assert "19 positions of its 10 strongest contexts" in found
    assert "0.041 nats" in found
    assert "0.0125" in found
    assert "-2.5" in found
    assert browser.js('document.querySelector("#latent .command")') is None
    latent(browser, 2)
    assert browser.js('document.querySelector("#latent .command").textContent') == (
        "python evaluate.py 'run=<b>x</b>' 'eval.dashboard.ablate=[2]'"
    )
