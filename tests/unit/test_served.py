"""Log-probabilities from a server: against the same LM in this process, and against mishaps."""

import json

import numpy as np
import pytest
from _chat import serving
from _explanations import CountedWords, latent, placed

from sae.chat.desk import Desk
from sae.chat.endpoint import Endpoint
from sae.chat.messages import Echo, Failure, Reply
from sae.errors import ConfigError
from sae.evals.autointerp import AutointerpEval
from sae.explanations.budget import Budget
from sae.explanations.embeddings import Embeddings
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Subject
from sae.explanations.log_probs import Asked, LogProbs
from sae.explanations.narrow import SERVED, TOKENS, Narrow
from sae.explanations.scores import Bench
from sae.explanations.served import (
    TIMES,
    ServedSimulation,
    ServedSurprisal,
    offsets,
    read_of,
    require_log_probs,
)
from sae.explanations.study import Row
from sae.explanations.surprisal import Surprisal

PLANTED = ("apple", "bread", "zebra", "Paris", "blue", "fish", "goat", "elk")


def letters(text):
    """Log-probabilities of letters: frequent ones, and repetitions of the last ten, are likely."""
    found = []
    for i, letter in enumerate(text):
        weights = np.ones(128)
        weights[[ord(one) % 128 for one in text[max(0, i - 10) : i]]] += 5
        found.append(float(np.log(weights[ord(letter) % 128] / weights.sum())))
    return found


def echoed(body):
    """A server's reply to an echo: a token is a letter."""
    text = body["prompt"]
    log_probs = letters(text)
    lines = text.splitlines(keepends=True)
    top, word = [], ""
    said = text[text.rfind("looks for ") :]
    for line in lines:
        word = line.split("\t")[0].strip()
        active = bool(word) and word in said.split('"')
        numbers = {"9": -0.1, " 3": -2.5} if active else {"0": -0.1, "7": -2.5}
        top += [{**numbers, "x": -3.0} for _ in line]
    content = {
        "tokens": list(text), "text_offset": list(range(len(text))),
        "token_logprobs": [None, *log_probs[1:]], "top_logprobs": [None, *top[1:]],
    }  # fmt: skip
    reply = {"choices": [{"text": text, "logprobs": content}], "usage": {"prompt_tokens": 5}}
    return json.dumps(reply).encode()


class Letters:
    """The same LM as a judge of this process: a token is a letter."""

    key, separator = "letters", 0

    def ids(self, text):
        return [ord(letter) for letter in text]

    def log_probs(self, prefix, rows):
        behind = "".join(map(chr, prefix[1:]))
        return [
            np.array(letters(behind + "".join(map(chr, row.tokens)))[len(behind) :])[:, None]
            for row in rows
        ]


@pytest.fixture(scope="module")
def bench():
    test = placed(2)
    return Bench(test, test.counted, Embeddings(CountedWords()), 600)


@pytest.fixture
def server():
    with serving(answer=None) as found:
        found.respond = echoed
        yield found


def desk(server, budget=10_000_000):
    client = Endpoint(server.url, "letters")
    client.first_pause = 0.001
    return Desk(client, budget)


def test_surprisal_by_a_server_is_that_of_the_same_lm_in_this_process(server, bench):
    middle = bench.pool[:12]
    found = ServedSurprisal(desk(server), bench).rises('the word "zebra"', middle)

    class Here(Surprisal):
        def likelihoods(self, prompt, middle):
            texts = bench.text.excerpts(middle, 16)
            rows = [Asked(tuple(map(ord, t)), tuple(range(len(t)))) for t in texts]
            known = self._log_probs.of([0, *map(ord, prompt)], rows)
            return np.array([one.mean() for one in known])

    expected = Here(LogProbs(Letters()), bench).rises('the word "zebra"', middle)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_is_read_twice_and_what_failed_has_no_score(server, bench):
    middle = bench.pool[:6]
    first = ServedSurprisal(desk(server), bench).rises("x", middle)
    sent = len(server.seen)
    again = ServedSurprisal(desk(server), bench).rises("x", middle)
    assert (len(server.seen), again.tolist()) == (sent, first.tolist())
    broke = desk(server, budget=0)
    assert np.isnan(ServedSurprisal(broke, bench).rises("y", middle)).all()
    assert (broke.spent.unasked, broke.spent.from_ledger) == (6, 6)  # without explanation: known


def test_simulation_by_a_server_finds_planted_words(server, bench):
    simulation = ServedSimulation(desk(server), bench)
    places = simulation._fragments[:3]
    found = simulation.simulated('the word "zebra"', places)
    words = np.array([bench.text.vocabulary[i].decode().strip() for i in bench.text.tokens])
    p = np.exp([-0.1, -2.5])
    high, low = (9 * p[0] + 3 * p[1]) / p.sum(), 7 * p[1] / p.sum()
    np.testing.assert_allclose(found, np.where(words[places] == "zebra", high, low))


@pytest.mark.slow
def test_planted_latents_score_high_and_wrong_explanations_at_chance(server, bench):
    train = placed(1, training=True)
    subject = Subject("p", [latent(w, train, bench.text, f" {w}") for w in PLANTED])
    words = {"oracle": [Explanation(f'the word "{one.name}"') for one in subject.latents]}
    rows = [Row(one.name, "oracle", "explained", "", 0.05, 99, {}, {}) for one in subject.latents]
    narrow = Narrow(Letters(), ["simulation"], Budget(10**8), desk=desk(server))
    found = narrow.read_classes(subject, words, bench, rows)
    assert min(row.values["simulation"] for row in found) > 0.95
    assert abs(np.mean([row.values["simulation_deranged"] for row in found])) < 0.1
    assert narrow.facts()["scale"] == 9
    assert narrow.facts()["server"]["model"] == "letters"


def test_a_budget_counts_the_prompt_that_each_excerpt_brings(server):
    narrow = Narrow(Letters(), ["surprisal"], Budget(10**6), desk=desk(server))
    here = Narrow(Letters(), ["surprisal"], Budget(10**6))
    for one in (narrow, here):
        one.plan({}, [{"surprisal": 1}])
    assert TIMES * narrow.latents["surprisal"] == pytest.approx(here.latents["surprisal"], abs=3)
    assert set(SERVED) <= set(TOKENS)


GOOD = json.loads(echoed({"prompt": "abc def"}))["choices"][0]["logprobs"]


@pytest.mark.parametrize(
    "changed",
    [
        None,
        {},
        [],
        {"tokens": None},
        {"tokens": list("abc")},
        {"tokens": list("fed cba")},
        {"token_logprobs": [None] * 7},
        {"token_logprobs": [None, "x", 1, 2, 3, 4, 5]},
        {"token_logprobs": [None, -1.0]},
        {"token_logprobs": [None, -(10**400), *[-1.0] * 5]},
        {"token_logprobs": [None, float("nan"), *[-1.0] * 5]},
        {"top_logprobs": [None, *[{"a": "abc"}] * 6]},
        {"top_logprobs": [None, *[{"a": None}] * 6]},
        {"top_logprobs": [None, *[{"a": float("nan")}] * 6]},
        {"top_logprobs": [None, *[["a"]] * 6]},
        {"top_logprobs": None},
        {"top_logprobs": [None] * 7},
    ],
)
def test_replies_without_log_probabilities_of_the_prompt_are_known(changed):
    content = GOOD | changed if isinstance(changed, dict) and changed else changed
    with pytest.raises(Failure, match="no log-probabilities of the prompt"):
        read_of(Reply(json.dumps(content), 1, 1), "abc def", top=True)


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["The", " sun", " rose"], "The sun rose", [0, 3, 7]),
        (["<s>", "The", " sun"], "The sun", [-1, 0, 3]),
        (["The", "sun", "rose"], "The sun rose", [0, 3, 7]),  # blanks were stripped
        (["a", "\ufffd", "\ufffd", "b"], "aéb", [0, 1, 1, 2]),  # halves of a character
        (["a", " \ufffd", "\ufffd", "\ufffd", " b"], "a 😀 b", [0, 1, 2, 2, 3]),
        (["x", "y", " and more"], "xy", [0, 1]),  # what the server wrote
    ],
)
def test_places_of_tokens_are_found_by_their_texts(tokens, text, expected):
    assert offsets(tokens, text) == expected


def test_places_do_not_depend_on_how_the_server_counts_them():
    odd = GOOD | {"text_offset": [3 * i + 17 for i in range(7)]}
    longer = {name: [*values, values[-1]] for name, values in odd.items()}
    found = read_of(Reply(json.dumps(longer | {"tokens": [*"abc def", " x"]}), 1, 1), "abc def")
    assert found.offset.tolist() == list(range(7))
    assert len(found.top) == len(found.log_prob) == 7


@pytest.mark.parametrize(
    "answer",
    [
        (404, b'{"error": {"message": "no completions here"}}'),
        (400, b'{"error": {"message": "echo is not supported"}}'),
        (200, b'{"choices": [{"text": "x", "logprobs": null}]}'),
        (200, b'{"choices": [{"message": {"content": "hello"}}]}'),
    ],
)
def test_one_request_finds_out_that_a_server_gives_none(server, answer):
    server.script = [answer]
    with pytest.raises(ConfigError, match=r"no log-probabilities of prompts.*Leave"):
        require_log_probs(desk(server))
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "log_probs", [None, {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{"x": -1.0}]}]
)
def test_a_server_that_was_mended_is_asked_again(server, log_probs):
    answer = {"choices": [{"text": "x", "logprobs": log_probs}]}  # of what it wrote, or none
    server.script = [(200, json.dumps(answer).encode())]
    with pytest.raises(ConfigError, match="no log-probabilities"):
        require_log_probs(desk(server))
    require_log_probs(desk(server))
    assert len(server.seen) == 2


def test_a_budget_that_is_too_small_is_named(server):
    with pytest.raises(ConfigError, match=r"chat\.budget is too small"):
        require_log_probs(desk(server, budget=1))


def test_one_request_finds_out_that_a_server_gives_them(server):
    require_log_probs(desk(server))
    ((path, _, body),) = server.seen
    assert path == "/v1/completions"
    assert (body["echo"], body["logprobs"], body["max_tokens"]) == (True, 15, 1)


def test_a_passing_mishap_loses_nothing(server, bench):
    server.script = [(429, b"", {"Retry-After": "0"}), (500, b"oh"), "half", "close"]
    found = ServedSurprisal(desk(server), bench).rises("x", bench.pool[:4])
    assert np.isfinite(found).all()
    assert max(server.paid.values()) == 1


def test_a_reply_about_another_text_leaves_its_score_undefined(server, bench):
    server.script = [(200, echoed({"prompt": "another text"}))]
    found = ServedSurprisal(desk(server), bench).rises("z", bench.pool[:4])
    assert np.isnan(found).sum() == 1


def test_settings_without_an_effect_are_refused():
    chat = AutointerpEval(chat={"log_probs": True}).chat
    with pytest.raises(ConfigError, match="log_probs=true has no effect without a server"):
        chat.check([], ["surprisal"])
    served = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "key_env": None}
    chat = AutointerpEval(chat={"log_probs": True, **served}).chat
    with pytest.raises(ConfigError, match=r"no effect without eval.autointerp.scorers"):
        chat.check([], ["counterfactual"])
    chat.check([], ["surprisal"])
    chat = AutointerpEval(chat={"saebench": 5, "dictionaries": ["ica"], **served}).chat
    with pytest.raises(ConfigError, match="saebench asks about the SAE"):
        chat.check([])


def test_half_a_character_is_replaced_and_keeps_its_place():
    body = Echo("a\ud800b").to_json()
    assert body["prompt"] == "a?b"
    assert len(body["prompt"]) == 3
