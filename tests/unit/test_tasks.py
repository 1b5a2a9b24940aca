"""Tasks: prompts, counterfactuals, the halves, the check of an LM, files of the user."""

import json

import pytest
import torch

from sae.activations.counted import Counted, RowRule
from sae.errors import ConfigError, SourceError
from sae.language import LMSource
from sae.tasks.agreement import NOUNS, VERBS, agreement
from sae.tasks.choose import all_of, halves_of
from sae.tasks.ioi import BABA, NAMES, OBJECTS, PLACES, TEMPLATES, ioi
from sae.tasks.pairs import read_pairs
from sae.tasks.task import Prompt, Task, ids_of, one_token, single_tokens
from sae.types import Point

POINT = Point("resid", 0)


class Words:
    """A tokenizer of whole words, so that names are single tokens as they are for a real LM."""

    eos_token_id = 0

    def __init__(self):
        self.ids = {"<|endoftext|>": 0}

    def get_vocab(self):
        return self.ids

    def __call__(self, texts, **options):
        found = []
        for text in texts:
            words = text.replace(",", " ,").replace(".", " .").split()
            found.append([self.ids.setdefault(word, len(self.ids)) for word in words])
        return {"input_ids": found}

    def words(self, ids):
        known = list(self.ids)
        return [known[i] for i in ids]


@pytest.fixture
def tokenizer():
    return Words()


@pytest.fixture(scope="module")
def lm():
    return LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()


def changed(prompt, tokenizer):
    pairs = zip(tokenizer.words(prompt.tokens), tokenizer.words(prompt.patch), strict=True)
    return {i: pair for i, pair in enumerate(pairs) if pair[0] != pair[1]}


@pytest.mark.parametrize("counterfactual", ["io", "s2", "abc"])
def test_ioi_prompts_and_counterfactuals(tokenizer, counterfactual):
    task = ioi(tokenizer, 60, counterfactual=counterfactual)
    assert len({prompt.group for prompt in task.prompts}) == len(TEMPLATES) == 30
    for prompt in task.prompts:
        words, places = tokenizer.words(prompt.tokens), prompt.places
        right, wrong = tokenizer.words([prompt.right, prompt.wrong])
        assert words[0] == "<|endoftext|>"
        assert words[places["S1"]] == words[places["S2"]] != words[places["IO"]] == right
        assert right not in words[places["IO"] + 1 :]  # the answer itself is left out
        assert (places["IO"] < places["S1"]) == (prompt.group not in BABA)
        moved = changed(prompt, tokenizer)
        if counterfactual == "io":
            assert moved == {places["IO"]: (right, wrong)}
        elif counterfactual == "s2":
            assert moved == {places["S2"]: (wrong, right)}
        else:
            assert set(moved) == {places["IO"], places["S1"], places["S2"]}
            new = {after for _, after in moved.values()}
            assert len(new) == 3
            assert not new & {right, wrong}
        if counterfactual != "io":
            assert wrong == words[places["S1"]]


def test_the_halves_share_no_name(tokenizer):
    def names(half):
        task = ioi(tokenizer, 60, half=half)
        ids = {i for prompt in task.prompts for i in (*prompt.tokens, *prompt.patch)}
        return set(tokenizer.words(sorted(ids))) & set(NAMES)

    assert names(0)
    assert not names(0) & names(1)


def test_draws_repeat_and_differ_by_seed(tokenizer):
    assert ioi(tokenizer, 8).key == ioi(tokenizer, 8).key
    assert len({ioi(tokenizer, 8, seed=i).key for i in range(3)}) == 3
    assert agreement(tokenizer, 8).key != agreement(tokenizer, 8, seed=1).key


def test_agreement(tokenizer):
    task = agreement(tokenizer, 48)
    number = {word: i for pair in NOUNS for i, word in enumerate(pair)}
    verbs = {word: i for pair in VERBS for i, word in enumerate(pair)}
    for prompt in task.prompts:
        (place,), ((before, after),) = zip(*changed(prompt, tokenizer).items(), strict=True)
        assert place == prompt.places["subject"]
        assert number[before] == prompt.label == 1 - number[after]
        right, wrong = tokenizer.words([prompt.right, prompt.wrong])
        assert verbs[right] == number[before]
        assert verbs[wrong] == number[after]
    assert {prompt.label for prompt in task.prompts} == {0, 1}


def test_no_prompt_of_agreement_stands_twice(tokenizer, caplog):
    """An interval over prompts that are equal would be too narrow."""
    for half in (0, 1):
        prompts = agreement(tokenizer, 300, half=half).prompts
        assert len({prompt.tokens for prompt in prompts}) == len(prompts) == 300
    assert not caplog.text
    most = len(agreement(tokenizer, 10_000).prompts)  # all that there are, or nearly
    assert f"agreement: {most} prompts in place of 10000" in caplog.text
    assert 1500 < most <= 3 * 2 * 12 + 3 * 2 * 12 * 11 * 2


def test_a_tokenizer_that_cuts_names_is_refused(lm):
    with pytest.raises(ConfigError, match=r"has 0 of 110 first names as one token"):
        ioi(lm.tokenizer, 4)
    with pytest.raises(ConfigError, match=r"has 0 of the task's nouns and 0 of its verbs"):
        agreement(lm.tokenizer, 4)


def task_of(*prompts):
    return Task("own", prompts)


def test_batches_are_filled_on_the_right():
    lengths = [3, 5, 4]
    task = task_of(*(Prompt((0, *[i + 1] * (n - 1)), 7, 8) for i, n in enumerate(lengths)))
    first, second = task.batches(2)
    assert first.index.tolist() == [0, 1]
    assert first.tokens.tolist() == [[0, 1, 1, 0, 0], [0, 2, 2, 2, 2]]
    assert first.end.tolist() == [2, 4]
    assert torch.equal(first.tokens, first.patch)
    assert second.tokens.tolist() == [[0, 3, 3, 3]]
    assert [batch.index.tolist() for batch in task.batches(9)] == [[0, 1, 2]]


def test_the_check_measures_and_refuses(lm):
    """Differences against whole passes; a task that the LM fails; a place that is never edited."""
    prompts = [Prompt((0, 5 + i, *[9] * (1 + i % 3)), 7, 8, places={"name": 1}) for i in range(6)]
    task = task_of(*prompts)
    found = task.check(lm, POINT, None, least=0.0, batch_prompts=4)
    for i, prompt in enumerate(prompts):
        logits = lm.logits(torch.tensor([prompt.tokens]))[0, -1]
        assert found[i].item() == pytest.approx((logits[7] - logits[8]).item(), abs=1e-5)
    right = Task("mixed", tuple(p if found[i] > 0 else Prompt(p.tokens, 8, 7)
                                for i, p in enumerate(prompts)))  # fmt: skip
    assert (right.check(lm, POINT, None, least=1.0) > 0).all()
    wrong = Task("wrong", tuple(Prompt(p.tokens, p.wrong, p.right) for p in right.prompts[:2]))
    half = Task("half", (*wrong.prompts, *right.prompts[2:4]))
    with pytest.raises(ConfigError, match="right answer in 50% of the 4 prompts of half"):
        half.check(lm, POINT, None, least=0.6)
    special = Counted(RowRule(max_norm=None), (7,), {"resid.0": float("inf")})
    with pytest.raises(ConfigError, match="name of prompt 2 is token 1 .*does not count"):
        task.check(lm, POINT, special, least=0.0)
    with pytest.raises(ConfigError, match="name of prompt 0 is token 0 "):
        task_of(Prompt((5, 6), 7, 8, places={"name": 0})).check(lm, POINT, special, least=0.0)


def write(path, *lines):
    path.write_text("\n".join(lines))
    return str(path)


def line(**changes):
    whole = {"clean_prefix": "ab", "patch_prefix": "ac", "clean_answer": "d", "patch_answer": "e"}
    return json.dumps({**whole, **changes})


def test_pairs_of_the_user(tmp_path, lm):
    task = read_pairs(
        write(tmp_path / "own.jsonl", line(), "", line(clean_prefix="xy")), lm.tokenizer
    )
    assert task.name == "own"
    assert len(task) == 2
    first = task.prompts[0]
    assert first.tokens == ids_of(lm.tokenizer, "ab")
    assert first.patch == ids_of(lm.tokenizer, "ac")
    assert (first.right, first.wrong) == (
        one_token(lm.tokenizer, "d"),
        one_token(lm.tokenizer, "e"),
    )


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("{", SourceError, "line 1 of own.jsonl is not JSON"),
        ("[1]", SourceError, "must be an object with the texts clean_prefix"),
        (line(clean_answer=""), SourceError, "must be an object with the texts"),
        (line(clean_prefix=3), SourceError, "must be an object with the texts"),
        (line(patch_prefix="abc"), SourceError, "2 tokens in clean_prefix and 3 in patch_prefix"),
        ('"\u2028"', SourceError, "line 1 of own.jsonl must be an object"),
        (line(patch_prefix="a\ud83d"), SourceError, r"line 1 .*patch_prefix \(.ud83d\).*Give both"),
        (line(patch_answer="no"), ConfigError, "'no' is 2 tokens for this LM"),
        (line(patch_prefix="ab"), SourceError, "Line 1 .*are the same tokens.*nothing to patch"),
        (line(patch_answer="d"), SourceError, "or their answers, are the same tokens"),
    ],
)
def test_bad_pairs(tmp_path, lm, content, error, match):
    with pytest.raises(error, match=match):
        read_pairs(write(tmp_path / "own.jsonl", content), lm.tokenizer)


def test_what_chooses_is_not_measured(tmp_path, lm):
    """Lines that stand twice, and texts of the first half, say nothing new."""
    swapped = line(clean_prefix="ac", patch_prefix="ab")
    others = [line(clean_prefix=f"x{letter}") for letter in "abcdef"]
    lines = [line(), *others[:3], swapped, line(), *others[3:], others[0]]
    first, second = halves_of(write(tmp_path / "own.jsonl", *lines), lm.tokenizer, 9)
    assert [len(first), len(second)] == [4, 3]  # of eight lines, the swapped one is left out
    known = {ids for prompt in first.prompts for ids in (prompt.tokens, prompt.patch)}
    assert not known & {prompt.tokens for prompt in second.prompts}
    lines = [line(patch_prefix=f"x{letter}") for letter in "abcdef"]
    with pytest.raises(ConfigError, match="0 prompts of the second half are not among the texts"):
        halves_of(write(tmp_path / "own.jsonl", *lines), lm.tokenizer, 9)


def test_all_prompts_of_a_file_where_none_are_held_out(tmp_path, lm):
    """Texts of the first half are prompts as well, if they are so later on."""
    pairs = [(f"x{letter}", f"y{letter}") for letter in "abc"]
    pairs += [(patch, clean) for clean, patch in pairs]
    lines = [line(clean_prefix=clean, patch_prefix=patch) for clean, patch in pairs]
    file = write(tmp_path / "own.jsonl", *lines)
    expected = [ids_of(lm.tokenizer, clean) for clean, _ in pairs]
    for count in (9, 4):
        task = all_of(file, lm.tokenizer, count)
        assert task.name == "own"
        assert [prompt.tokens for prompt in task.prompts] == expected[:count]


def test_all_prompts_of_a_task_begin_with_its_first_half(tokenizer):
    first, _ = halves_of("ioi", tokenizer, 6, seed=1)
    assert all_of("ioi", tokenizer, 6, seed=1) == first


def test_pairs_that_are_no_text(tmp_path, lm):
    (tmp_path / "own.jsonl").write_bytes(line().encode() + b"\xff")
    with pytest.raises(SourceError, match="own.jsonl is not UTF-8 text"):
        read_pairs(str(tmp_path / "own.jsonl"), lm.tokenizer)


def test_both_orders_of_names_from_the_first_prompts_on(tokenizer):
    first = ioi(tokenizer, 16).prompts
    assert sum(prompt.group in BABA for prompt in first) == 8


def test_words_behind_a_space_that_the_tokenizer_adds():
    """As SentencePiece reads them: a space before the first word of a text."""

    class Spaced(Words):
        def __call__(self, texts, **options):
            found = []
            for text in texts:
                words = ("_" + text).replace(" ", " _").replace("\n", "\n ").split(" ")
                found.append([self.ids.setdefault(word, len(self.ids)) for word in words if word])
            return {"input_ids": found}

    spaced = Spaced()
    ids = single_tokens(spaced, ["Anna", "of two"])
    assert spaced.words(ids.values()) == ["_Anna"]
    assert ids["Anna"] in ids_of(spaced, "Then Anna went")


def test_no_file_of_pairs(lm):
    with pytest.raises(
        SourceError, match="task=nothing.jsonl is not a file. Give ioi, agreement, or"
    ):
        read_pairs("nothing.jsonl", lm.tokenizer)


def test_words_of_the_templates_are_used():
    assert len(BABA) == 15
    assert len(set(NAMES)) == len(NAMES) == 110
    assert len(PLACES) == len(OBJECTS) == 8
