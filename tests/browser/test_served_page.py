"""The served dashboard in a real browser: a text is typed, its latents appear."""

import threading

import numpy as np
import pytest
from test_dashboard_page import HOSTILE, SHOWN, latent, own_text

from benchmarks.browser import Chromium
from benchmarks.made_up import made_up_records, made_up_text
from sae.errors import ConfigError
from sae.features.ablated import Ablated
from sae.features.record import Listed
from sae.reports.dashboard import Server, render, write_dashboard
from sae.reports.dashboard.packing import integers
from sae.reports.dashboard.writer import packed_effect

pytestmark = pytest.mark.browser
FIELD = 'document.querySelector("#text textarea")'
SEND = 'document.querySelector("#text form button").click()'
STATUS = 'document.querySelector("#text [role=status]").textContent'
TOKENS = '[...document.querySelectorAll("#text .token")].map((token) => token.textContent)'


@pytest.fixture
def served(tmp_path):
    """A browser at a served dashboard of 40 latents, whose texts fire latent 7 on every word."""
    text = made_up_text()
    write_dashboard(
        tmp_path / "made", made_up_records(text, 40), text, title="Latents", facts={"LM": "tiny"},
        command="python evaluate.py run=x",
    )  # fmt: skip

    def read(question):
        if not question["text"]:
            raise ConfigError(f"The text is empty. {HOSTILE}")
        words = [word.encode() for word in question["text"].split("|")]
        firings = [(i, 0, i + 1.0, 2) for i in range(len(words))]
        return own_text(words, firings, names=("7",))

    def ablate(question):
        listed = Listed(np.array([1]), np.array([-2.5]))
        effect = Ablated(listed, listed, 0.041, 0.0125, 19, 10)
        vocabulary = {"ids": integers([1]), "pieces": [HOSTILE]}
        return {**packed_effect(effect), "vocabulary": vocabulary}

    def page(token):
        return render("Latents", text, {"LM": "tiny"}, token)

    actions = {"/live/text": read, "/live/ablate": ablate}
    server = Server(tmp_path / "made", page, actions, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        with Chromium(tmp_path / "profile") as browser:
            # the proxy that keeps everything else away is not asked for this machine's own address
            browser.open(server.url)
            yield browser, server
            assert browser.errors == []
            ours = (server.url, "data:", "about:")
            assert [url for url in browser.requests if not url.startswith(ours)] == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(browser, text):
    browser.js(f'{FIELD}.focus(); {FIELD}.value = ""')
    browser.type(text)
    browser.js(SEND)
    browser.wait('!document.querySelector("#text form button").disabled')


def test_a_text_is_typed_and_its_latents_appear(served):
    browser, server = served
    browser.js('document.querySelector("#own a").click()')
    browser.wait(f"!!{FIELD}")
    send(browser, "one| two")
    assert browser.js(TOKENS) == ["one", " two"]
    link = 'document.querySelector("#text tbody a")'
    assert browser.js(f"{link}.textContent") == "7"
    # keys that move elsewhere on the page are letters in the field
    browser.js(f"{FIELD}.focus()")
    for key in ("/", "j"):
        browser.key(key)
    assert browser.js(f"{FIELD}.value").endswith("/j")

    hostile = [HOSTILE, "</script><script>document.title='hit'</script>", "\u202eשלום", "\u2028"]
    send(browser, "|".join(hostile))
    assert browser.js(TOKENS) == hostile
    assert browser.js("document.querySelectorAll('img, iframe').length") == 0
    assert browser.js("document.title") == "Your text, Latents"
    assert browser.js("document.documentElement.scrollWidth - innerWidth") <= 0

    send(browser, "")
    assert HOSTILE in browser.js(STATUS)  # the error as text; what was read before stays
    assert browser.js(TOKENS) == hostile
    assert any("422" in error for error in browser.errors)
    browser.errors.clear()
    server.busy.acquire()
    send(browser, "x")
    server.busy.release()
    assert "Another request" in browser.js(STATUS)
    assert any("503" in error for error in browser.errors)
    browser.errors.clear()
    browser.js(f"{link}.click()")
    browser.wait(f'({SHOWN}) === "Latent 7"')


def test_an_ablation_is_asked_for_on_the_page_of_a_latent(served):
    browser, _ = served
    latent(browser, 3)
    button = (
        '[...document.querySelectorAll("aside button")].find((b) => /Measure/.test(b.textContent))'
    )
    browser.js(f"{button}.click()")
    browser.wait('document.querySelector("aside").textContent.includes("0.041 nats")')
    assert HOSTILE in browser.js('document.querySelector("aside").textContent')
    assert browser.js("document.querySelectorAll('img, iframe').length") == 0


def test_the_served_page_reaches_its_server_alone(served):
    browser, server = served
    other = f"http://localhost:{server.server_address[1]}/data/index.js"
    asked = "fetch('{}').then(() => 'read', () => 'refused')"
    assert browser.js(asked.format("data/index.js")) == "read"
    assert browser.js(asked.format(other)) == "refused"
    inner = """(() => {
      try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch { return 'refused'; }
    })()"""
    assert browser.js(inner) == "refused"
    browser.errors.clear()
    browser.requests.clear()
