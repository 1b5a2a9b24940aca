"""Labelled texts: out of a wheel and a CSV file; their activations, read once."""

import numpy as np
import pyarrow
import pytest
import torch
from _labelled import POINT

from sae.activations import labelled as activations
from sae.activations.counted import Counted, RowRule
from sae.activations.labelled import text_activations
from sae.errors import ConfigError, SourceError
from sae.language.fetch import WheelFile
from sae.tasks import labelled
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv


@pytest.fixture
def wheel(toy_wheel, monkeypatch):
    """A wheel that looks like sae-probes' own."""

    def packed(text: str) -> bytes:
        return pyarrow.compress(text.encode(), codec="zstd", asbytes=True)

    data = "sae_probes/data"
    config = toy_wheel({
        f"{data}/probing_datasets_MASTER.csv.zst": packed(
            "Data type,Dataset save name\n"
            "Binary Classification,cleaned_data/1_one.csv\n"
            "Binary Classification,cleaned_data/2_two words.csv\nRegression,cleaned_data/3_no.csv\n"
        ),
        f"{data}/cleaned_data/1_one.csv.zst": packed("prompt,target\nNA,True\nb,False\n"),
        f"{data}/cleaned_data/2_two words.csv.zst": packed("prompt,target\nc,B\nd,A\n"),
    })  # fmt: skip
    monkeypatch.setattr(labelled, "PROBES", WheelFile(**config))
    labelled.probe_set_names.cache_clear()
    yield
    labelled.probe_set_names.cache_clear()


def test_sets_come_out_of_the_wheel(wheel):
    one, two = probe_sets(["all"])
    assert (one.name, one.classes, list(one.texts)) == ("1_one", ("False", "True"), ["NA", "b"])
    assert one.labels.tolist() == [1, 0]
    assert (two.name, two.labels.tolist()) == ("2_two words", [1, 0])
    with pytest.raises(ConfigError, match="1_won is not one of the 2 sets, for example 1_one"):
        probe_sets(["1_won"])


def test_csv(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text('text,label\n"a, b",x\nc,y\nd,x\n')
    mine = read_csv(str(file))
    assert (mine.name, mine.classes, mine.labels.tolist()) == ("mine", ("x", "y"), [0, 1, 0])
    assert mine.first_of_each(1).texts == ["a, b", "c"]
    for content, says in (
        ("text,class\na,b\n", "no column label. Its columns: text, class"),
        ("text,label\na,b\nc,b\n", "has 1 classes"),
        ("text,label\na,b\n ,c\n", "no text in row 1"),
    ):
        file.write_text(content)
        with pytest.raises(SourceError, match=says):
            read_csv(str(file))
    with pytest.raises(SourceError, match="is not a file"):
        read_csv(str(tmp_path / "none.csv"))


def test_key_is_of_texts_and_labels():
    a = LabelledTexts.of("a", ["x", "y"], ["0", "1"])
    assert a.key == LabelledTexts.of("b", ["x", "y"], ["no", "yes"]).key
    assert a.key != LabelledTexts.of("a", ["x", "y"], ["1", "0"]).key


def one_by_one(lm, text):
    ids = torch.tensor([[lm.separator_id, *lm.tokenizer(text)["input_ids"]]])
    return lm.capture(ids, [POINT])[POINT][0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_activations_are_those_of_each_text_alone(tiny_lm, family, monkeypatch):
    monkeypatch.setattr(activations, "_BATCH_TOKENS", 24)  # several batches
    lm = tiny_lm(family)
    texts = ["a", "some words", "other words that are longer", "bc"]
    last = text_activations(lm, POINT, texts, name="t", which="last", max_tokens=512)
    every = text_activations(lm, POINT, texts, name="t", which="all", max_tokens=512)
    assert last.lengths.tolist() == [1, 1, 1, 1]
    assert every.lengths.tolist() == [len(text) for text in texts]
    for text, x, all_x in zip(texts, last.x, every.x.split(every.lengths.tolist()), strict=True):
        alone = one_by_one(lm, text)
        torch.testing.assert_close(x, alone[-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(all_x, alone[1:], atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut_where_they_may_be(tiny_lm):
    lm = tiny_lm("llama")
    last = text_activations(lm, POINT, ["abcdef"], name="t", which="last", max_tokens=4)
    torch.testing.assert_close(last.x[0], one_by_one(lm, "def")[-1], atol=1e-5, rtol=1e-4)
    every = text_activations(lm, POINT, ["abcdef"], name="t", which="all", max_tokens=4)
    torch.testing.assert_close(every.x, one_by_one(lm, "abc")[1:], atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="max_tokens=1 must be at least 2"):
        text_activations(lm, POINT, ["a"], name="t", which="last", max_tokens=1)


def test_the_last_row_is_the_last_that_counts(tiny_lm, monkeypatch):
    monkeypatch.setattr(activations, "_BATCH_TOKENS", 24)
    lm = tiny_lm("llama")
    texts = ["some words", "other words that are longer", "a", "bcd"]
    alone = [one_by_one(lm, text)[1:] for text in texts]
    limit = alone[0][-1].norm().item() - 1e-3
    expected, moved = [], 0
    for x in alone:
        counts = [i for i in range(len(x)) if x[i].norm() <= limit]
        expected.append(x[counts[-1]] if counts else torch.zeros(x.shape[1]))
        moved += counts[-1:] != [len(x) - 1]
    assert moved > 0
    counted = Counted(RowRule(), (), {str(POINT): limit})
    given = {"name": "t", "max_tokens": 512, "counted": counted}
    last = text_activations(lm, POINT, texts, which="last", **given)
    torch.testing.assert_close(last.x, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert last.lengths.tolist() == [1, 1, 1, 1]
    every = text_activations(lm, POINT, texts, which="all", **given)
    assert every.lengths.tolist() == [len(text) for text in texts]
    plain = text_activations(lm, POINT, texts, which="last", name="t", max_tokens=512)
    torch.testing.assert_close(plain.x[0], alone[0][-1], atol=1e-5, rtol=1e-4)


def test_a_text_none_of_whose_rows_count_is_zeros(tiny_lm):
    counted = Counted(RowRule(), (), {str(POINT): 1e-6})
    found = text_activations(
        tiny_lm("llama"), POINT, ["ab"], name="t", which="last", max_tokens=9, counted=counted
    )
    assert found.x.shape == (1, 32)
    assert not found.x.any()


def test_second_time_needs_no_pass_and_survives_damage(tiny_lm, cache, monkeypatch):
    lm = tiny_lm("llama")
    first = text_activations(lm, POINT, ["ab", "c"], name="t", which="all", max_tokens=9)
    monkeypatch.setattr(lm, "capture", lambda *_: pytest.fail("the LM ran again"))
    again = text_activations(lm, POINT, ["ab", "c"], name="t", which="all", max_tokens=9)
    assert torch.equal(first.x, again.x)
    monkeypatch.undo()
    (file,) = (cache / "labelled").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    mended = text_activations(lm, POINT, ["ab", "c"], name="t", which="all", max_tokens=9)
    assert np.array_equal(first.x, mended.x)
