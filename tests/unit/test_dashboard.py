"""What a dashboard writes, read back with a decoder of its own."""

import base64
import json
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.made_up import made_up_records, made_up_text
from sae.features.record import Listed, Text
from sae.reports.dashboard import write_dashboard
from sae.reports.dashboard.packing import bits, floats, integers, piece, shares, write_script

KINDS = {"B": np.uint8, "H": np.uint16, "I": np.uint32, "f": np.float32}


def unpack(packed):
    return np.frombuffer(base64.b64decode(packed[1:]), KINDS[packed[0]]) if packed else np.zeros(0)


def content(script):
    found = re.fullmatch(r'dashboard\.receive\("([a-z0-9-]+)",(.*)\);\n', script.read_text("ascii"))
    assert found
    assert found[1] == script.stem
    return json.loads(found[2])


def write(folder, records, text, **options):
    write_dashboard(folder, records, text, title="A title", facts={"LM": "tiny"}, **options)
    return folder


@pytest.mark.parametrize(
    ("numbers", "letter"),
    [([0, 255], "B"), ([256], "H"), ([65_535], "H"), ([65_536], "I"), ([2**32 - 1], "I")],
)
def test_integers_take_the_smallest_type(numbers, letter):
    assert integers(numbers)[0] == letter
    assert unpack(integers(numbers)).tolist() == numbers


@pytest.mark.parametrize("numbers", [[-1], [2**32]])
def test_integers_out_of_range_are_refused(numbers):
    with pytest.raises(OverflowError, match="32 bits"):
        integers(numbers)


def test_floats_shares_and_bits_come_back():
    assert unpack(floats([1.5, -2e-3, np.nan])).tolist()[:2] == [1.5, np.float32(-2e-3)]
    values = np.random.default_rng(0).random(1000) * 7.3
    back = unpack(shares(values, 7.3)) / 65_535 * 7.3
    assert np.abs(back - values).max() <= 7.3 / 65_535 / 2 * 1.0001
    assert unpack(shares([0.0, 0.0], 0.0)).tolist() == [0, 0]  # a silent latent
    flags = np.random.default_rng(1).random(37) < 0.5
    read = np.unpackbits(unpack(bits(flags)), bitorder="little")[:37]
    assert read.astype(bool).tolist() == flags.tolist()


def test_a_token_that_is_no_text_by_itself_stays_bytes():
    assert piece("👩".encode()) == "👩"
    assert piece("👩".encode()[:2]) == [0xF0, 0x9F]
    assert piece(b"\xed\xa0\x80") == [0xED, 0xA0, 0x80]  # a surrogate is not text
    assert piece(b"\0") == "\0"


def test_no_text_ends_a_script_or_a_line_of_it(tmp_path):
    hostile = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "\ud800", "\0"]
    write_script(tmp_path, "hostile", hostile)
    raw = (tmp_path / "hostile.js").read_bytes()
    assert b"<" not in raw
    assert raw.count(b"\n") == 1
    assert raw.isascii()
    assert content(tmp_path / "hostile.js") == hostile


def test_all_numbers_of_a_record_come_back(tmp_path):
    text = made_up_text(contexts=64)
    records = list(made_up_records(text, latents=70))
    write(tmp_path, iter(records), text)
    index = content(tmp_path / "data/index.js")
    assert unpack(index["latent"]).tolist() == list(range(70))
    for name in ("density", "max", "mean", "encoder_cosine", "stability"):
        assert np.array_equal(
            unpack(index[name]), np.float32([getattr(record, name) for record in records])
        )
    assert unpack(index["by_mass"]).reshape(70, 3)[5].tolist() == [
        id + 1 for id in records[5].by_mass.ids[:3]
    ]
    for row in (0, 31, 32, 69):
        record = records[row]
        chunk = content(tmp_path / f"data/latents-{row // 32:05d}.js")
        part = {name: unpack(values[row % 32]) for name, values in chunk.items()}
        for name in ("interval_counts", "histogram", "histogram_tokens", "positions"):
            assert np.array_equal(part[name], getattr(record, name).ravel()), name
        for name in ("by_mass", "by_mean", "top_logits", "bottom_logits", "nearest", "neurons"):
            assert np.array_equal(part[f"{name}_ids"], getattr(record, name).ids), name
            assert np.array_equal(
                part[f"{name}_values"], np.float32(getattr(record, name).values)
            ), name
        start = 0
        for i, shown in enumerate(record.contexts):
            end = start + int(part["count"][i])
            assert part["context"][i] == shown.context
            assert int(part["peak"][i]) - 1 == shown.peak
            assert part["at"][start:end].tolist() == list(shown.positions)
            read = part["value"][start:end] / 65_535 * record.max
            assert np.allclose(read, shown.values, atol=record.max / 65_535)
            start = end
        assert start == len(part["at"])


def test_the_text_of_every_context_that_is_shown_is_there_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("sae.reports.dashboard.writer.TOKENS_IN_FILE", 5 * 128)
    text = made_up_text(contexts=500)
    records = list(made_up_records(text, latents=4, shown=20))
    write(tmp_path, records, text)
    about = content(tmp_path / "data/index.js")["text"]
    shown = sorted({shown.context for record in records for shown in record.contexts})
    assert unpack(about["contexts"]).tolist() == shown
    files = [content(path) for path in sorted((tmp_path / "data").glob("text-*.js"))]
    assert len(files) == -(-len(shown) // about["contexts_in_file"])
    tokens = np.concatenate([unpack(file["tokens"]) for file in files]).reshape(-1, 128)
    assert np.array_equal(tokens, text.tokens[shown])
    counted = np.concatenate(
        [np.unpackbits(unpack(file["counted"]), bitorder="little") for file in files]
    )
    assert np.array_equal(counted.reshape(-1, 128), text.counted[shown])
    vocabulary = content(tmp_path / "data/vocabulary.js")
    named = dict(zip(unpack(vocabulary["ids"]).tolist(), vocabulary["pieces"], strict=True))
    assert set(np.unique(text.tokens[shown])) <= set(named)
    assert all(piece(text.vocabulary[id]) == shown for id, shown in named.items())


def test_equal_records_give_equal_bytes_and_replace_what_was_there(tmp_path):
    text = made_up_text()
    write(tmp_path / "a", made_up_records(text, 5), text)
    write(tmp_path / "b", made_up_records(text, 100), text)
    write(tmp_path / "b", made_up_records(text, 5), text)
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*")}
    assert files == {path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*")}
    for name in files:
        if (tmp_path / "a" / name).is_file():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_dashboard_that_was_not_finished_has_no_page(tmp_path):
    text = made_up_text()
    write(tmp_path, made_up_records(text, 3), text)

    def broken():
        yield from made_up_records(text, 40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, broken(), text)
    assert not (tmp_path / "index.html").exists()


def test_a_latent_that_never_fires_and_no_latents_at_all(tmp_path):
    text = made_up_text()
    (record,) = made_up_records(text, 1)
    silent = replace(
        record, firings=0, density=0.0, max=0.0, mean=float("nan"), contexts=(), stability=None,
        histogram=np.zeros_like(record.histogram)[:, -1:], histogram_tokens=np.zeros(0, int),
        by_mass=Listed(np.zeros(0, int), np.zeros(0)),
    )  # fmt: skip
    write(tmp_path / "silent", [silent], text)
    index = content(tmp_path / "silent/data/index.js")
    assert np.isnan(unpack(index["stability"])).all()
    assert unpack(index["by_mass"]).tolist() == [0, 0, 0]
    write(tmp_path / "none", [], text)
    assert unpack(content(tmp_path / "none/data/index.js")["latent"]).size == 0


def test_signed_codes_and_further_columns(tmp_path):
    text = made_up_text()
    (record,) = made_up_records(text, 1)
    records = [record, replace(record, sign=-1)]
    columns = {"purity": {"0": 0.5}, "explanation": {"-0": "<b>words</b>"}}
    write(tmp_path, records, text, columns=columns)
    index = content(tmp_path / "data/index.js")
    assert unpack(index["negative"]).tolist() == [0b10]
    purity, explanation = index["columns"]
    assert np.array_equal(unpack(purity["numbers"]), [0.5, np.nan], equal_nan=True)
    assert explanation == {"heading": "explanation", "texts": [None, "<b>words</b>"]}


def test_the_page_escapes_what_it_is_given_and_allows_nothing(tmp_path):
    text = replace(made_up_text(), name="<i>text</i>", is_training=True)
    write_dashboard(
        tmp_path, made_up_records(text, 1), text, title="<img src=x onerror=alert(1)>",
        facts={"<b>LM</b>": "</dd><script>alert(1)</script>"},
    )  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    for written in ("<img", "<b>LM", "<i>text", "<script>"):
        assert written not in page
    assert "training text" in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert rules["script-src"] == "'self' file:"
    assert "unsafe" not in policy
    assert not re.search(r"https?:", page)


def test_every_file_that_the_page_names_is_there(tmp_path):
    text = made_up_text()
    write(tmp_path, made_up_records(text, 1), text)
    named = re.findall(r'(?:src|href)="(assets/[^"]*)"', (tmp_path / "index.html").read_text())
    assert len(named) > 10
    assert [name for name in named if not (tmp_path / name).is_file()] == []
    assert list((tmp_path / "assets/vendor").glob("*/LICENSE"))


def test_a_latent_takes_at_most_6_kb(tmp_path):
    text = made_up_text(contexts=2048)
    write(tmp_path, made_up_records(text, 256, shown=69), text)
    data = sum(path.stat().st_size for path in (tmp_path / "data").glob("latents-*"))
    assert data / 256 <= 5_600  # the table's columns and the vocabulary come on top


def test_no_more_records_are_in_memory_than_a_file_holds(tmp_path):
    text, alive, most = made_up_text(), weakref.WeakSet(), 0

    def watched():
        nonlocal most
        for record in made_up_records(text, latents=150, shown=3):
            alive.add(Box(record))
            most = max(most, len(alive))
            yield record

    class Box:  # a record is not hashable; this lives as long as the record does
        def __init__(self, record):
            object.__setattr__(record, "box", self)

    write(tmp_path, watched(), text)
    assert 32 <= most <= 2 * 32 + 1  # the next file is read while the last one is still named


def test_the_histogram_has_one_column_behind_its_tokens(tmp_path):
    text = made_up_text()
    (record,) = made_up_records(text, 1)
    write(tmp_path, [replace(record, histogram_tokens=record.histogram_tokens[:2])], text)
    packed = content(tmp_path / "data/latents-00000.js")["histogram"][0]
    read = unpack(packed).reshape(-1, 3)
    assert np.array_equal(read[:, :2], record.histogram[:, :2])
    assert np.array_equal(read[:, 2], record.histogram[:, 2:].sum(1))


def test_a_text_without_a_row_for_each_context(tmp_path):
    text = made_up_text()
    counted = np.arange(text.tokens.shape[1]) > 0  # of positions alone
    other = Text(text.name, False, text.tokens, counted, text.vocabulary)
    write(tmp_path, made_up_records(text, 1), other)
    flags = np.unpackbits(
        unpack(content(tmp_path / "data/text-00000.js")["counted"]), bitorder="little"
    )
    assert flags.reshape(-1, 128)[:, 0].sum() == 0
    assert flags.reshape(-1, 128)[:, 1:].all()
