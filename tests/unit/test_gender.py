"""Names out of a package as data, and the prompts that are made of them."""

import sys
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from _named import FEMALE, MALE, census, words_tokenizer

from sae.errors import ConfigError, SourceError
from sae.language.tiny import byte_tokenizer
from sae.tasks import names as module
from sae.tasks.gender import MOST_VARIANTS, name_to_gender, pronoun
from sae.tasks.names import Names, single_token_names, unambiguous

__all__ = ["census"]  # a fixture


@pytest.fixture
def tokenizer():
    return words_tokenizer()


@pytest.fixture
def names(census, tokenizer):
    return single_token_names(tokenizer, 10, test=0.4, seed=0)


def test_names_of_both_genders_are_left_out_unless_one_is_ten_times_as_frequent(census):
    words = [name.word for name in unambiguous()]
    assert "Leslie" not in words
    assert words.count("Mark") == 1  # 2.7 % of the men, 0.1 % of the women
    assert next(name for name in unambiguous() if name.word == "Mark").label == 1


def test_the_most_frequent_names_are_split_by_name(names):
    assert {name.word for side in names for name in side if name.label} == set(MALE[:10])
    assert {name.word for side in names for name in side if not name.label} == set(FEMALE[:10])
    assert not set(names.train) & set(names.test)
    assert [sum(name.label for name in side) for side in names] == [6, 4]
    assert [len(side) for side in names] == [12, 8]


def test_names_of_several_tokens_are_refused(census, tokenizer):
    with pytest.raises(ConfigError, match="12 female names are one token for this LM, and 13"):
        single_token_names(tokenizer, 13, test=0.4, seed=0)  # Maximilian is no word of its own
    with pytest.raises(ConfigError, match="0 female names are one token"):
        single_token_names(byte_tokenizer(), 10, test=0.4, seed=0)


def test_examples_are_training_names_and_never_the_query(names, tokenizer):
    sides = name_to_gender(tokenizer, names, train=5, test=2, seed=0)
    training = {name.word for name in names.train}
    assert len(sides.test) == 2 * len(names.test)
    assert len(sides.train) == 5 * (len(names.train) - 6)
    for prompt in (*sides.train.prompts, *sides.test.prompts):
        text = tokenizer.decode(prompt.tokens)
        shown = [line.split(": ")[1] for line in text.splitlines() if "Name: " in line]
        *shots, query = [name.strip() for name in shown]
        assert query == prompt.group
        assert len(set(shots)) == 6
        assert set(shots) <= training - {query}
        assert prompt.tokens[0] == 256
        assert text.endswith(f"Name: {query}\nGender:")
        right, wrong = ("male", "female") if query in MALE else ("female", "male")
        assert tokenizer.decode(prompt.right).strip() == right
        assert tokenizer.decode(prompt.wrong).strip() == wrong
        places = sorted(prompt.places.values())
        assert places == list(range(prompt.places["name"], len(prompt.tokens)))
        assert tokenizer.decode(prompt.tokens[places[0]]).strip() == query


def test_more_training_variants_leave_the_first_ones_as_they_are(names, tokenizer):
    few, many = (name_to_gender(tokenizer, names, train=k, test=1, seed=3) for k in (2, 6))
    assert many.train.prompts[: len(few.train)] == few.train.prompts
    assert many.test == few.test
    assert name_to_gender(tokenizer, names, train=2, test=1, seed=4).train != few.train


def test_all_variants_of_the_pronoun_differ(names, tokenizer):
    sides = pronoun(tokenizer, names, train=MOST_VARIANTS, test=1)
    assert len({prompt.tokens for prompt in sides.train.prompts}) == MOST_VARIANTS * 12
    first = sides.test.prompts[0]
    assert tokenizer.decode(first.tokens).endswith(
        f"Yesterday {first.group} went to the store, and"
    )


def test_a_gender_with_too_few_names_for_examples_is_refused(names, tokenizer):
    few = Names([name for name in names.train if name.label][:6], names.test)
    with pytest.raises(ConfigError, match="0 female names are for training, and 3"):
        name_to_gender(tokenizer, few, train=1, test=1, seed=0)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match=r'pip install "lightning-sae\[names\]"'):
        module._frequencies("male")


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "dist.male.first").write_text("JAMES 3.318 3.318 1\n")
    found = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(module.metadata, "distribution", lambda name: found)
    with pytest.raises(SourceError, match="not the file of names 0.3.0"):
        module._frequencies("male")


@pytest.mark.skipif(find_spec("names") is None, reason="the extra `names` is not installed")
def test_the_package_is_read_and_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "names", raising=False)
    words = [name.word for name in unambiguous()]
    assert words[0] == "Mary"
    assert "James" in words
    assert "Robin" not in words
    assert "names" not in sys.modules
