"""Keys, replies and addresses that are not what they should be."""

import json
import os

import pytest
from _chat import KEY, completion, serving

from sae.chat.endpoint import Endpoint, check_url
from sae.chat.messages import Failure, Request
from sae.chat.settings import ChatSettings
from sae.errors import ConfigError
from sae.explanations.prompts import in_contexts, in_pairs, verdicts
from sae.language.trust import check_asked

ASK = Request((("user", "half \ud800 a character"),), 5)


def ask(server, key=None, **more):
    endpoint = Endpoint(server.url, "m", key, **more)
    endpoint.first_pause = 0.001
    with endpoint.session():
        return endpoint.reply(ASK)


@pytest.mark.parametrize("key", ["sk-a\nbcd", "sk-a\x07b", "\u201csk-abc\u201d", "sk a"])
def test_what_cannot_be_a_key_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setitem(os.environ, "MY_KEY", key)
    asked = ChatSettings(base_url="http://127.0.0.1:9/v1", model="m", key_env="MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY holds something that is not a key") as told:
        asked.check_key()
    assert key not in str(told.value)
    assert "sk" not in str(told.value)


def test_an_escaped_key_and_signs_for_a_terminal_are_left_out():
    body = json.dumps({"detail": f"{KEY}/x \x1b[2J"}).replace("/", "\\/").encode()
    with (
        serving(script=[(400, body)]) as server,
        pytest.raises(Failure, match="answers 400") as told,
    ):
        ask(server, f"{KEY}/x")
    assert KEY not in str(told.value)
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("count", [None, "many", 1e999, -1, []])
def test_strange_counts_of_tokens_are_estimated_and_the_reply_is_paid_once(count):
    body = json.loads(completion("fine"))
    body["usage"] = {"prompt_tokens": count}
    with serving(lambda _: json.dumps(body).encode()) as server:
        reply = ask(server)
        assert len(server.seen) == 1
    assert (reply.text, reply.prompt_tokens, reply.reply_tokens) == ("fine", ASK.prompt_tokens, 5)


def test_a_reply_in_parts_is_joined_and_another_form_is_not_asked_for_again():
    parts = [{"type": "text", "text": "fi"}, {"type": "image"}, {"type": "text", "text": "ne"}]
    with serving(lambda _: completion(parts)) as server:
        assert ask(server).text == "fine"
    with serving(lambda _: b'{"choices": []}') as server:
        with pytest.raises(Failure, match="not a completion"):
            ask(server)
        assert len(server.seen) == 1


def test_half_a_character_is_sent_as_a_question_mark():
    with serving() as server:
        ask(server)
        assert server.seen[0][2]["messages"][0]["content"] == "half ? a character"


@pytest.mark.parametrize(
    "url", ["http://a..b/v1", f"http://{'a' * 70}.x/v1", "http://a_\u00e9 /v1"]
)
def test_addresses_that_no_server_has(url):
    with pytest.raises(ConfigError, match="not the address of a server"):
        check_url(url)


def test_no_proxy_stands_before_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving() as server:
        assert ask(server, KEY).text == "fine"


def test_thoughts_are_no_answers():
    assert verdicts("<think>[1, 1]</think>such as [0, 1], no: [1, 0]", 2) == [True, False]
    assert verdicts("<think>[1, 1]", 2) is None
    assert in_pairs("<think>\nOkay") is None
    assert in_contexts("<think>[EXPLANATION]: no</think>[EXPLANATION]: rivers") == "rivers"


@pytest.mark.parametrize(
    ("chat", "key"),
    [({"base_url": "http://a/v1"}, "base_url"), ({"key_env": "AWS_SECRET"}, "key_env")],
)
def test_a_file_of_somebody_chooses_neither_address_nor_key(chat, key):
    theirs = {"autointerp": {"chat": chat}}
    with pytest.raises(ConfigError, match=rf"names {key}=.*Nothing was sent"):
        check_asked(theirs, {"autointerp": {"chat": {}}}, "theirs")
    check_asked(theirs, theirs, "theirs")


@pytest.mark.parametrize(
    "evals", [{"autointerp": [1]}, {"autointerp": {"chat": "x"}}, {"core": None}]
)
def test_settings_of_another_form_are_left_to_their_own_check(evals):
    check_asked(evals, {}, "theirs")
