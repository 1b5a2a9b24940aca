"""Corpora, and how text becomes contexts. No network."""

import io
import itertools
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIGS = sorted(Path("conf/corpus").glob("*.yaml"))


def corpus_of(**config):
    from sae.language import corpus_from_config

    return corpus_from_config({"name": "x"} | config)


def in_memory(documents, streaming=False):
    return SimpleNamespace(
        name="memory",
        streaming=streaming,
        identity=dict,
        to_config=dict,
        documents=lambda: iter(documents),
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_source):
    return tiny_source("gpt2").load_tokenizer()


@pytest.fixture(scope="module")
def contexts(tokenizer):
    """`build_contexts` with defaults."""

    def build(corpus, **changes):
        from sae.language import build_contexts

        options = {
            "split": "train", "ctx": 16, "num_tokens": None, "seed": 0, "val_fraction": 0.0,
            "test_fraction": 0.0,
        }  # fmt: skip
        return build_contexts(corpus, tokenizer, **options | changes)

    return build


def documents_in(contexts):
    """Document texts from tokens; the last may be cut."""
    text = bytes_of(contexts.tokens.ravel())
    return text.split(b"\xff")


def bytes_of(ids):
    """The bytes behind byte tokens; the separator becomes 0xff, which no UTF-8 text holds."""
    from tokenizers import pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(0xFF if i == 256 else back[letters[i]] for i in ids)


# --- corpora ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_yaml_builds_a_corpus_that_round_trips(path, tmp_path):
    from sae.language import Corpus

    config = yaml.safe_load(path.read_text())
    assert config["name"] == path.stem
    assert f"corpus={path.stem}" in path.read_text().splitlines()[0]
    if config.get("path") == "???":
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "a.jsonl").write_text("{}")
        config["path"] = str(tmp_path)
    corpus = corpus_of(**config | ({"dataset": "a/b"} if path.stem == "hub" else {}))
    assert isinstance(corpus, Corpus)
    again = corpus_of(**json.loads(json.dumps(corpus.to_config())))
    assert again == corpus
    assert json.loads(json.dumps(again.identity())) == corpus.identity()
    assert "name" not in corpus.identity()
    assert corpus.streaming == (path.stem in ("hub", "pile"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "csv"}, "corpus.kind=csv .* hub, jsonl, random_words, text, wheel_table"),
        ({"kind": "text"}, "corpus.path has no value"),
        ({"kind": "text", "path": "a", "document": "page"}, "auto, file, paragraph, line"),
    ],
)
def test_wrong_configs_say_what_is_allowed(config, message):
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        corpus_of(**config)


def zipped_csv(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("table.csv", text)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zipped_csv, str.encode], ids=["zip", "bare"])
def test_a_table_in_a_wheel(toy_wheel, pack):
    from sae.errors import SourceError

    long = "word " * 50_000
    table = f'id,text\n1,"One, ""two""\nthree"\n2,\n3,  \n4,NA\n5,{long}\n'
    wheel = toy_wheel({"toy/table": pack(table)})
    corpus = corpus_of(kind="wheel_table", wheel=wheel)
    assert list(corpus.documents()) == ['One, "two"\nthree', "NA", long]
    with pytest.raises(SourceError, match="no field 'body'. Its fields: id, text. Set corpus.text"):
        list(corpus_of(kind="wheel_table", wheel=wheel, text_field="body").documents())


def test_text_files_and_what_a_document_is(tmp_path):
    (tmp_path / "sub").mkdir()
    one, two = tmp_path / "b.txt", tmp_path / "sub" / "a.txt"
    one.write_text("First line\nsecond line\n\n  \nThird Zoë\n")
    two.write_text("Fourth")
    (tmp_path / "note.md").write_text("no text")
    (tmp_path / "empty.txt").write_text(" \n")

    def read(path, **options):
        return list(corpus_of(kind="text", path=str(path), **options).documents())

    paragraphs = ["First line\nsecond line\n", "Third Zoë\n"]
    assert read(one) == paragraphs
    assert read(one, document="file") == [one.read_text()]
    assert read(one, document="line") == ["First line", "second line", "Third Zoë"]
    assert read(tmp_path) == [one.read_text(), "Fourth"]
    assert read(tmp_path, document="paragraph") == [*paragraphs, "Fourth"]


def test_local_text_is_known_by_its_content(tmp_path):
    def identity(path, **options):
        return corpus_of(kind="text", path=str(path), **options).identity()

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.txt").write_text("one")
    before = identity(tmp_path / "old")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    assert identity(moved) == before
    assert identity(moved, document="line") != before
    (moved / "a.txt").write_text("two")
    assert identity(moved) != before


def test_text_that_is_not_there_or_not_utf8(tmp_path):
    from sae.errors import SourceError

    with pytest.raises(SourceError, match="does not exist. Give a .txt file or a folder"):
        list(corpus_of(kind="text", path=str(tmp_path / "no.txt")).documents())
    with pytest.raises(SourceError, match="holds no .jsonl file"):
        corpus_of(kind="jsonl", path=str(tmp_path)).identity()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SourceError, match="a.txt is not UTF-8"):
        list(corpus_of(kind="text", path=str(tmp_path)).documents())


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"body": "one"}, {"body": "", "id": 2}, {"body": "th\nree"}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n\n{"body": "half \\ud800 pair"}\n')
    corpus = corpus_of(kind="jsonl", path=str(path), text_field="body")
    assert list(corpus.documents()) == ["one", "th\nree", "half ? pair"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"a.jsonl, line 2 is damaged"),
        ('{"body": "b", "id": 1}', r"line 2 has no field 'text'. Its fields: body, id"),
        ("[1]", r"line 2 has no field 'text'. Its fields: none"),
        ('{"text": null}', r"line 2: text is NoneType, not text"),
        ('{"text": [3, 4]}', r"line 2: text is list, not text"),
        ('{"text": 3}', r"line 2: text is int, not text"),
        ("[" * 100_000, r"line 2 is damaged .*nested too deep"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    from sae.errors import SourceError

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(SourceError, match=message):
        list(corpus_of(kind="jsonl", path=str(path)).documents())


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A data set in a folder, which `datasets` reads as one of the hub."""
    pytest.importorskip("datasets")
    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": t, "id": 1}) for t in ("one", " ", "two")]
    (folder / "train.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("sae.language.corpora.require_hub", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return "owner/set"


def test_a_hub_data_set_is_streamed(local_hub):
    from sae.errors import SourceError

    corpus = corpus_of(kind="hub", dataset=local_hub)
    assert list(corpus.documents()) == ["one", "two"]
    with pytest.raises(SourceError, match="no field 'body'. Its fields: text, id"):
        list(corpus_of(kind="hub", dataset=local_hub, text_field="body").documents())
    with pytest.raises(SourceError, match="cannot be read.*Check corpus.dataset"):
        list(corpus_of(kind="hub", dataset=local_hub, split="nothing").documents())


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch):
    from sae.errors import SourceError

    def head(url, timeout):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(SourceError, match=r"corpus=pile \(a/b\).*cannot be reached.*corpus=news"):
        list(corpus_of(kind="hub", name="pile", dataset="a/b").documents())


def test_random_words_are_seeded_and_follow_zipf(random_corpus):
    first, again = (list(random_corpus(seed=3).documents()) for _ in range(2))
    assert first == again
    assert first != list(random_corpus(seed=4).documents())
    assert len(set(first)) == 200
    counts = sorted(
        (len(list(group)) for _, group in itertools.groupby(sorted(" ".join(first).split()))),
        reverse=True,
    )
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.3)


# --- contexts --------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(
        st.one_of(st.text(min_size=1), st.just("a<|endoftext|>b")).filter(str.strip),
        min_size=1, max_size=8, unique=True,
    ),
    ctx=st.integers(2, 9),
    streaming=st.booleans(),
)  # fmt: skip
def test_tokens_are_the_documents_with_separators(contexts, documents, ctx, streaming):
    from sae.language.text import split_documents

    corpus = in_memory(documents, streaming)
    ordered = list(split_documents(corpus, "train", 0, 0.0, 0.0))
    assert sorted(ordered) == sorted(documents)
    assert not streaming or ordered == documents
    parts = [text.encode() + b"\xff" for text in ordered]
    joined = b"".join(parts)
    whole = len(joined) // ctx * ctx
    if whole == 0:
        return
    found = contexts(corpus, ctx=ctx, num_tokens=whole)
    assert found.tokens.shape == found.document.shape == (whole // ctx, ctx)
    assert bytes_of(found.tokens.ravel()) == joined[:whole]
    numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    assert (found.document.ravel() == numbers[:whole]).all()


def test_types_and_the_tail(contexts):
    found = contexts(in_memory(["abcde", "fghij"]), ctx=5)
    assert found.tokens.dtype == found.document.dtype == np.int32
    assert found.tokens.shape == (2, 5), "12 tokens with separators, 2 of them dropped"
    assert list(found.document[1]) == [0, 1, 1, 1, 1]


def test_splits_are_disjoint_complete_and_of_the_right_size(contexts, random_corpus):
    corpus = random_corpus(num_documents=600, words=5)
    found = {
        split: contexts(corpus, split=split, ctx=2, val_fraction=0.1, test_fraction=0.2)
        for split in ("train", "val", "test")
    }
    texts = {split: set(documents_in(c)[:-1]) for split, c in found.items()}
    sizes = {split: len(t) for split, t in texts.items()}
    assert sizes["train"] == pytest.approx(420, abs=30)
    assert sizes["val"] == pytest.approx(60, abs=25)
    assert sizes["test"] == pytest.approx(120, abs=30)
    for one, other in itertools.combinations(texts.values(), 2):
        assert not one & other
    for c in found.values():
        assert c.document[0, 0] == 0
        assert set(np.diff(c.document.ravel())) == {0, 1}


def test_a_documents_split_depends_on_text_and_seed_alone(contexts, random_corpus):
    texts = list(random_corpus(num_documents=200, words=5).documents())

    def of_val(documents, seed=0):
        c = contexts(in_memory(documents), split="val", ctx=2, val_fraction=0.3, seed=seed)
        return c.tokens.tobytes()

    assert of_val(texts) == of_val(texts[::-1]), "the order of files does not matter"
    assert of_val(texts) == of_val(texts * 2), "exact duplicates are dropped"
    assert of_val(texts) != of_val(texts, seed=1)


def test_duplicates_do_not_straddle_splits_of_a_stream(contexts, random_corpus):
    texts = list(random_corpus(num_documents=100, words=5).documents())
    stream = in_memory([t for t in texts for _ in range(2)], streaming=True)
    options = {"ctx": 2, "val_fraction": 0.4, "num_tokens": 600}
    train, val = (documents_in(contexts(stream, split=s, **options)) for s in ("train", "val"))
    assert not set(train[:-1]) & set(val[:-1])
    assert len(set(train)) == len(train)


def test_finite_corpora_are_shuffled_and_streams_are_not(contexts, random_corpus):
    texts = [t.encode() for t in random_corpus(num_documents=50, words=5).documents()]
    decoded = [t.decode() for t in texts]
    finite = documents_in(contexts(in_memory(decoded), ctx=2))
    stream = documents_in(contexts(in_memory(decoded, True), ctx=2, num_tokens=800))
    assert stream[:-1] == texts[: len(stream) - 1]
    assert finite[:40] != texts[:40]
    assert set(finite[:40]) <= set(texts)


@pytest.mark.parametrize("streaming", [False, True])
def test_more_tokens_start_with_the_same_contexts(contexts, random_corpus, streaming):
    corpus = in_memory(list(random_corpus(num_documents=300).documents()), streaming)
    few, many = (contexts(corpus, num_tokens=n) for n in (1_600, 80_000))
    assert few.tokens.shape == (100, 16)
    assert (few.tokens == many.tokens[:100]).all()
    assert (few.document == many.document[:100]).all()
    assert (contexts(corpus, num_tokens=1_615).tokens == few.tokens).all(), "whole contexts"


def test_a_stream_is_read_only_as_far_as_needed(contexts):
    read = itertools.count()
    endless = in_memory((f"document {next(read)}" for _ in itertools.count()), streaming=True)
    assert contexts(endless, num_tokens=160).tokens.shape == (10, 16)
    assert next(read) < 1000


def test_too_few_tokens_name_both_numbers(contexts):
    from sae.errors import SourceError

    small = in_memory(["a" * 99])
    with pytest.raises(SourceError, match=r"has 100 tokens; 4,992 were asked.*epochs"):
        contexts(small, num_tokens=5_000)
    with pytest.raises(SourceError, match=r"has 100 tokens; one context has 128"):
        contexts(small, ctx=128)
    with pytest.raises(SourceError, match=r"val split of memory has 0 tokens"):
        contexts(small, split="val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "split=dev is not one of train, val, test"),
        ({"ctx": 1}, "ctx=1 is too short"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "together below 1"),
        ({"val_fraction": -0.1}, "at least 0"),
        ({"num_tokens": 15}, "15 tokens fill no context of ctx=16"),
    ],
)
def test_arguments_out_of_range(contexts, changes, message):
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        contexts(in_memory(["a"]), **changes)


def test_a_stream_needs_a_number_of_tokens(contexts):
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match="stream without a known end"):
        contexts(in_memory(["a"], streaming=True))


def test_the_separator_of_instruction_tuned_lms_is_not_their_eos():
    from sae.errors import SourceError
    from sae.language import separator_id

    class Words:
        eos_token_id = 7

        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: i for i, word in enumerate(self.words)}

        def __call__(self, text, **options):
            return {"input_ids": []}

    assert separator_id(Words("<|endoftext|>", "<|im_end|>")) == 0
    assert separator_id(Words("</s>")) == 7
    neither = Words("a")
    neither.eos_token_id = None
    with pytest.raises(SourceError, match="neither <|endoftext|> nor an EOS"):
        separator_id(neither)
