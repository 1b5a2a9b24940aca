"""Chat LMs: a server that misbehaves, the ledger, the budget, and the LM of this process."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from _chat import KEY, TRICKLES, Scripted, completion, serving

from sae.chat.__main__ import main
from sae.chat.desk import Desk
from sae.chat.endpoint import _TRIES, Endpoint, _retry_after
from sae.chat.ledger import Ledger, ledger_dir
from sae.chat.local import Local
from sae.chat.messages import Client, Failure, Reply, Request
from sae.chat.settings import ChatSettings
from sae.errors import ConfigError, SourceError

REFUSAL = (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.05"})


def request(text="hello", max_tokens=20):
    return Request((("system", "Be brief."), ("user", text)), max_tokens)


def echo(messages):
    return f"you said {messages[-1]['content']}"


def endpoint(server, **options):
    made = Endpoint(server.url, "m", KEY, **{"timeout": 0.4, "concurrency": 4} | options)
    made.first_pause = 0.005
    return made


def files():
    return [path for path in ledger_dir().rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_reply_and_what_the_server_gets():
    with serving(echo) as server:
        (reply,) = Desk(endpoint(server), 1000).ask("test", [request()])
    assert reply == Reply("you said hello", 10, 3)
    ((path, authorization, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {KEY}"
    assert body == {
        "model": "m", "max_tokens": 20, "temperature": 0,
        "messages": [{"role": "system", "content": "Be brief."},
                     {"role": "user", "content": "hello"}],
    }  # fmt: skip


MISHAPS = [
    REFUSAL, (500, b"oops"), (503, b""), "half", (200, b"<html>not JSON</html>"),
    (200, b"[" * 100_000), "stall", "close",
]  # fmt: skip


def test_no_request_is_lost_and_none_paid_twice(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    asked = [request(f"question {i}") for i in range(12)]
    with serving(echo, MISHAPS) as server:
        desk = Desk(endpoint(server), 10_000)
        replies = desk.ask("test", asked)
        again = Desk(endpoint(server), 0).ask("test", asked)
    assert [one.text for one in replies] == [f"you said question {i}" for i in range(12)]
    assert again == replies  # out of the ledger, at no cost
    assert set(server.paid.values()) == {1}
    assert len(server.seen) == 12 + len(MISHAPS)
    assert desk.spent.to_json() == {
        "asked": 12, "from_ledger": 0, "failed": 0, "unasked": 0, "prompt_tokens": 120,
        "reply_tokens": 36,
    }  # fmt: skip
    written = "".join(file.read_text() for file in files())
    assert KEY not in written + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("slow", TRICKLES)
def test_a_reply_that_trickles_is_given_up_in_time(slow, caplog):
    with serving(echo, [slow]) as server:
        start = time.monotonic()
        (reply,) = Desk(endpoint(server, timeout=0.3), 1000).ask("test", [request()])
    assert 0.3 <= time.monotonic() - start < 2
    assert reply == Reply("you said hello", 10, 3)  # at the second try
    with serving(echo, [slow] * _TRIES) as server:
        assert Desk(endpoint(server, timeout=0.1), 1000).ask("test", [request("a")]) == ["failed"]
    assert "no whole reply within 0.1 s" in caplog.text


def test_a_server_says_when_to_come_back():
    with serving(script=[(429, b"", {"Retry-After": "0.3"})]) as server:
        start = time.monotonic()
        Desk(endpoint(server), 1000).ask("test", [request()])
    assert 0.3 <= time.monotonic() - start < 3
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < _retry_after(later) <= 60
    assert _retry_after("-3") == 0


def test_a_server_that_asks_for_hours_is_left_alone():
    with serving(script=[(429, b"quota", {"Retry-After": "7200"})]) as server:
        desk = Desk(endpoint(server), 1000)
        assert desk.ask("test", [request()]) == ["failed"]
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("mishap", "tries"),
    [((400, b'{"error": {"message": "too long"}}'), 1), ((500, b"down"), _TRIES)],
)
def test_a_failure_is_no_reply_and_is_asked_again(mishap, tries, caplog):
    with serving(echo, [mishap] * tries) as server:
        desk = Desk(endpoint(server), 1000)
        assert desk.ask("test", [request()]) == ["failed"]
        assert len(server.seen) == tries
        assert desk.spent.failed == 1
        assert desk.spent.tokens == 0
        assert f"answers {mishap[0]}" in caplog.text
        assert desk.ask("test", [request()]) == [Reply("you said hello", 10, 3)]


@pytest.mark.parametrize(
    ("status", "telling"), [(401, "does not accept the key"), (403, "forbids"), (404, "knows no")]
)
def test_what_never_heals_ends_at_once_without_the_key(status, telling):
    said = f'{{"error": {{"message": "Incorrect API key: {KEY}"}}}}'.encode()
    with serving(script=[(status, said)] * 50) as server:
        desk = Desk(endpoint(server), 10_000)
        with pytest.raises(SourceError, match=telling) as caught:
            desk.ask("test", [request(str(i)) for i in range(50)])
    assert KEY not in str(caught.value)
    assert len(server.seen) <= 8  # those that were under way


def test_redirects_are_not_followed():
    with serving() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        with (
            serving(script=[(307, b"", {"Location": elsewhere})]) as server,
            pytest.raises(SourceError, match="another address"),
        ):
            Desk(endpoint(server), 1000).ask("test", [request()])
        assert other.seen == []


def test_a_huge_reply_is_not_read_to_its_end():
    with serving(lambda _: b"x" * 5_000_000) as server:
        assert Desk(endpoint(server, timeout=5.0), 1000).ask("test", [request()]) == ["failed"]
    assert len(server.seen) == 1


def test_nobody_is_asked_for_ever_when_the_server_is_gone(caplog):
    with serving() as server:
        pass
    gone = endpoint(server, concurrency=1)
    gone.first_pause = 0.0
    desk = Desk(gone, 100_000)
    replies = desk.ask("test", [request(str(i)) for i in range(30)])
    assert replies == ["failed"] * 10 + ["unasked"] * 20
    assert "10 requests in a row failed" in caplog.text


def test_usage_that_is_not_told_is_estimated():
    bare = b'{"choices": [{"message": {"content": null, "refusal": "I will not."}}]}'
    with serving(lambda _: bare) as server:
        (reply,) = Desk(endpoint(server), 1000).ask("test", [request()])
    assert reply == Reply("", request().prompt_tokens, 20, filtered=True)
    assert reply.refuses


def test_strange_text_comes_back_as_it_is_kept():
    text = "a\x00\x1b[2J\ud800<script>" + "é" * 3
    with serving(lambda _: completion(text)) as server:
        (reply,) = Desk(endpoint(server), 1000).ask("test", [request()])
        (kept,) = Desk(endpoint(server), 0).ask("test", [request()])
    assert reply == kept
    assert reply.text == text.replace("\ud800", "?")


def test_the_budget_stops_before_the_request_that_would_pass_it(caplog):
    asked = [request(f"question {i}") for i in range(10)]
    cost = asked[0].prompt_tokens + 20
    client = Scripted(lambda _: "fine")  # 13 tokens each
    budget = 3 * 13 + cost
    desk = Desk(client, budget)
    replies = desk.ask("test", asked)
    assert replies.count("unasked") == 10 - len(client.asked)
    assert len(client.asked) == 4
    assert desk.spent.tokens <= budget
    assert f"{budget:,} tokens (budget)" in caplog.text
    larger = Desk(client, 10 * cost)
    assert [one.text for one in larger.ask("test", asked)] == ["fine"] * 10
    assert (larger.spent.from_ledger, larger.spent.asked) == (4, 6)
    assert len(client.asked) == 10


def test_requests_under_way_count_against_the_budget():
    asked = [request(f"question {i}") for i in range(8)]
    cost = asked[0].prompt_tokens + 20
    client = Scripted(lambda _: Reply("long", cost, 0), concurrency=8, pause=0.05)
    desk = Desk(client, 3 * cost)
    desk.ask("test", asked)
    assert len(client.asked) == 3
    assert desk.spent.tokens == 3 * cost


def test_equal_requests_in_flight_are_one():
    client = Scripted(lambda _: "fine", concurrency=8, pause=0.05)
    desk = Desk(client, 10_000)
    assert desk.ask("test", [request()] * 8) == [Reply("fine", 10, 3)] * 8
    assert len(client.asked) == 1
    assert (desk.spent.asked, desk.spent.from_ledger) == (1, 7)


def test_an_interruption_ends_pauses(monkeypatch):
    asked = [request("a"), request("b")]
    with serving(script=[(500, b"")] * 100) as server:
        slow = endpoint(server)
        slow.first_pause = 60.0
        reply = slow.reply

        def interrupted(one):
            if one != asked[0]:
                return reply(one)
            while not server.seen:
                time.sleep(0.01)
            raise KeyboardInterrupt("Ctrl-C")

        monkeypatch.setattr(slow, "reply", interrupted)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            Desk(slow, 10_000).ask("test", asked)
    assert time.monotonic() - start < 10


PROGRAM = """
import sys
sys.path[:0] = [{tests!r}]
from test_chat import endpoint, request
from sae.chat.desk import Desk
class Server: url = {url!r}
Desk(endpoint(Server, concurrency=2, timeout=30.0), 10_000).ask(
    "test", [request(f"question {{i}}") for i in range(6)])
"""


@pytest.mark.slow
def test_after_a_kill_the_rest_is_asked(tmp_path):
    asked = [request(f"question {i}") for i in range(6)]
    with serving(echo) as server:

        def slowly(messages):
            time.sleep(0.05 if len(server.paid) < 3 else 2.0)
            return echo(messages)

        server.answer = slowly
        program = PROGRAM.format(tests=str(Path(__file__).parent), url=server.url)
        process = subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ))
        while len([f for f in files() if f.suffix == ".json"]) < 4:  # three replies, `client.json`
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.answer = echo
        desk = Desk(endpoint(server), 10_000)
        replies = desk.ask("test", asked)
    assert [one.text for one in replies] == [f"you said question {i}" for i in range(6)]
    assert desk.spent.from_ledger >= 3
    assert desk.spent.asked == 6 - desk.spent.from_ledger


def test_another_model_and_other_words_are_other_requests():
    with serving(echo) as server:
        for model, text, length in (("a", "x", 5), ("b", "x", 5), ("a", "y", 5), ("a", "x", 6)):
            client = Endpoint(server.url, model, KEY, timeout=5.0)
            Desk(client, 1000).ask("test", [request(text, length)])
    assert len(server.seen) == 4


def test_a_damaged_reply_is_asked_again(caplog):
    client = Scripted(lambda _: "fine")
    Desk(client, 1000).ask("test", [request()])
    (file,) = (f for f in files() if f.suffix == ".json" and f.name != "client.json")
    file.write_text(file.read_text().replace("fine", "fake"))
    assert Desk(client, 1000).ask("test", [request()])[0].text == "fine"
    assert "is damaged" in caplog.text
    assert Ledger(client.identity).find(request()).text == "fine"


def test_ledgers_are_listed_and_removed(capsys):
    Desk(Scripted(lambda _: "fine"), 1000).ask("test", [request("a"), request("b")])
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "scripted" in out
    assert " 2 " in out
    assert main(["remove", "nothing"]) == 1
    (folder,) = ledger_dir().iterdir()
    assert main(["remove", folder.name, "--yes"]) == 0
    assert not folder.exists()


def test_the_lm_of_this_process_ends_its_turn(tiny_lm):
    lm = tiny_lm("llama")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}me:"
    lm.tokenizer.chat_template = template
    try:
        local = Local(lm)
        assert isinstance(local, Client)
        reply = local.reply(request("hi", 4))
        assert reply.prompt_tokens == len(
            lm.tokenizer("system: Be brief.\nuser: hi\nme:").input_ids
        )
        assert 1 <= reply.reply_tokens <= 4
        assert local.reply(request("hi", 4)) == reply
        with pytest.raises(Failure, match="allows"):
            local.reply(request("hi " * 5000, 4))
    finally:
        lm.tokenizer.chat_template = None
    with pytest.raises(SourceError, match="no chat template"):
        local.reply(request())


@pytest.mark.parametrize(
    ("given", "telling"),
    [
        ({"base_url": "file:///etc/passwd", "model": "m"}, "http:// or https://"),
        ({"base_url": "ftp://host/v1", "model": "m"}, "http:// or https://"),
        ({"base_url": "127.0.0.1:8000", "model": "m"}, "http:// or https://"),
        ({"base_url": "http://host:port/v1", "model": "m"}, "http:// or https://"),
        ({"base_url": f"https://u:{KEY}@host/v1", "model": "m"}, "a user, a password"),
        ({"base_url": f"https://host/v1?key={KEY}", "model": "m"}, "a user, a password"),
        ({"base_url": "https://host/v1"}, "model has no value"),
        ({"model": "m"}, "no effect without a server"),
        ({"base_url": "local", "model": "m"}, "no effect without a server"),
        ({"key_env": KEY}, "not the name of an environment variable"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"budget": -1}, "budget=-1"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_settings_that_cannot_be(given, telling):
    with pytest.raises(ConfigError, match=telling) as caught:
        ChatSettings(**given)
    assert KEY not in str(caught.value)


def test_a_key_must_be_there_unless_none_is_needed(monkeypatch):
    monkeypatch.setenv("OTHER", " ")
    settings = ChatSettings(base_url="http://127.0.0.1:1/v1", model="m", key_env="OTHER")
    with pytest.raises(ConfigError, match="OTHER holds no key"):
        settings.desk(None)
    monkeypatch.setenv("OTHER", f"{KEY}\n")
    assert settings.desk(None).client._key == KEY
    without = ChatSettings(base_url="http://127.0.0.1:1/v1", model="m", key_env=None)
    assert without.desk(None).client._key is None


@pytest.mark.peers
def test_transformers_serve(tiny_source, tmp_path):
    pytest.importorskip("fastapi", reason="extra `serving`")
    pytest.importorskip("uvicorn", reason="extra `serving`")
    lm, folder = tiny_source("llama").load(), tmp_path / "lm"
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", folder, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    server = subprocess.Popen([str(word) for word in command])
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        client = Endpoint(f"http://127.0.0.1:{port}/v1", str(folder), None, concurrency=2)
        desk = Desk(client, 10_000)
        replies = desk.ask("test", [request("a", 8), request("b", 8), request("a", 8)])
        other = Endpoint(f"http://127.0.0.1:{port}/v1", "another", None)
        assert Desk(other, 10_000).ask("test", [request()]) == ["failed"]  # 400: one model only
    finally:
        server.terminate()
        server.wait()
    assert replies[0] == replies[2]
    assert all(0 < one.reply_tokens <= 8 and one.prompt_tokens > 10 for one in replies)
    assert (desk.spent.asked, desk.spent.from_ledger) == (2, 1)
