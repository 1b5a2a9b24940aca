"""Latents on a text of the user's own, against SAE.encode on the LM's activations."""

import numpy as np
import pytest
import torch
from _features import CTX, POINT, make_sae, placed_on, source
from hypothesis import given
from hypothesis import strategies as st

from sae.activations.folder import TensorActivations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.dashboard import DashboardEval
from sae.features import latents_on, own_text, records
from sae.features.summary import decile, decile_edges, decile_of
from sae.language.pieces import token_bytes
from sae.reports.dashboard import packed_text
from sae.reports.pages import write_pages

__all__ = ["source"]  # a fixture


@pytest.fixture
def one(source):
    return placed_on(source, make_sae(source))


def dense(one, ids):
    """Codes of the tokens behind a separator, [tokens, d_sae]; rows that do not count are 0."""
    tokens = torch.tensor([[one.lm.separator_id, *ids]])
    x = one.lm.capture(tokens, [POINT])[POINT]
    f = one.sae.encode(x[0])
    f[~one.counted.mask([x], tokens)[0]] = 0
    return f[1:]


def as_dense(reading, width):
    f = torch.zeros(len(reading.written.tokens), width)
    f[reading.row, reading.index] = torch.from_numpy(reading.value)
    return f


def test_a_reading_is_what_the_sae_makes_of_the_lms_activations(one):
    text = "a first text, longer than a context\n \n\nshort\n\nand a third one\nof two lines\n"
    written = own_text.write(one, text)
    parts = ["a first text, longer than a context", "short", "and a third one\nof two lines"]
    ids = [one.lm.tokenizer(part)["input_ids"] for part in parts]
    assert written.tokens.tolist() == sum(ids, [])
    assert written.texts.tolist() == [0, len(ids[0]), len(ids[0]) + len(ids[1])]
    pieces = [part[i : i + CTX - 1] for part in ids for i in range(0, len(part), CTX - 1)]
    assert written.starts.tolist() == np.cumsum([0, *map(len, pieces)])[:-1].tolist()
    reading = own_text.read(one, written)
    assert (np.diff(reading.row) >= 0).all()
    expected = torch.cat([dense(one, piece) for piece in pieces])
    assert (expected > 0).sum() > 20
    torch.testing.assert_close(as_dense(reading, one.sae.d_sae), expected, atol=1e-5, rtol=1e-4)


def test_rows_that_do_not_count_are_marked_and_silent(one, source):
    ids = [one.lm.separator_id, *one.lm.tokenizer("abcdefg")["input_ids"]]
    long = one.lm.capture(torch.tensor([ids]), [POINT])[POINT][0].norm(dim=1)
    limit = 1.0001 * long[1:].median().item()
    source.__dict__["counted"] = type(one.counted)(
        one.counted.rule, one.counted.special_ids, {str(POINT): limit}
    )
    reading = own_text.read(one, own_text.write(one, "abcdefg"))
    assert reading.counted.tolist() == (long[1:] <= limit).tolist()
    assert 0 < reading.counted.sum() < 7
    assert reading.counted[reading.row].all()


def test_signed_codes_have_two_sides(source):
    one = placed_on(source, make_sae(source, "identity", d_sae=20))
    reading = own_text.read(one, own_text.write(one, "abc def"))
    f = dense(one, reading.written.tokens.tolist())
    both = torch.cat([f.relu(), (-f).relu()], dim=1)
    torch.testing.assert_close(as_dense(reading, 40), both, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.data())
def test_deciles_by_borders_are_those_by_rank(values, data):
    falling = np.sort(np.array(values, float))[::-1]
    of = np.array([data.draw(st.sampled_from(values))], float)
    assert decile_of(of, decile_edges(falling)) == decile(of, falling)


UNREADABLE = {
    b"": "is empty", b" \n\n \n": "is empty", b"\xef\xbb\xbf": "is empty",
    b"caf\xe9": "byte 3 is 0xe9", "utf-16 text".encode("utf-16"): "not UTF-8",
    b"\xed\xa0\x80": "not UTF-8",  # a lone surrogate
    b"x" * 1_000_000: "1,000,000 bytes; at most 65,536", b"word " * 4000: "at most 4,096",
}  # fmt: skip


def test_a_text_that_cannot_be_read_says_why(one, tmp_path, monkeypatch):
    monkeypatch.setattr("sae.evals.dashboard.records", None)  # before anything is computed
    file = tmp_path / "mine.txt"
    for raw, told in UNREADABLE.items():
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=told) as error:
            DashboardEval(text_file=str(file)).run(one)
        assert "eval.dashboard.text_file" in str(error.value)
    for name in ("missing.txt", "."):
        with pytest.raises(ConfigError, match="not a file"):
            DashboardEval(text_file=str(tmp_path / name)).run(one)


@pytest.mark.slow
def test_the_result_has_every_firing_and_the_page_the_same(one, tmp_path):
    text = "</script><script>\0 \u202e \u2028 שלום 👩‍👩‍👧‍👦\r\n\r\nthe second"
    (tmp_path / "mine.txt").write_bytes(text.encode())
    result = DashboardEval(text_file=str(tmp_path / "mine.txt")).run(one)
    rows = result.tables["own_text"].rows()
    found = records(one)
    reading = own_text.read(one, own_text.write(one, text))
    assert len(rows) == len(reading.row)
    for row, i, index, value in zip(rows, reading.row, reading.index, reading.value, strict=True):
        assert row["text"] == int(i >= reading.written.texts[1])
        assert row["position"] == i - reading.written.texts[row["text"]]
        assert (row["token"], row["latent"]) == (reading.written.tokens[i], str(index))
        assert row["activation"] == pytest.approx(value, rel=1e-5)
        falling = -np.sort(-found.firings(row["latent"]).value)
        assert row["decile"] == min(10, decile(np.float32([row["activation"]]), falling)[0])
    assert write_pages(result, tmp_path / "pages")
    script = (tmp_path / "pages/data/own.js").read_bytes()
    assert b"<" not in script
    assert script.isascii()
    packed = packed_text(reading, found)
    assert len(packed["latents"]) == len({row["latent"] for row in rows})
    write_pages(DashboardEval().run(one), tmp_path / "pages")
    assert not (tmp_path / "pages/data/own.js").exists()


def test_lone_surrogates_are_replaced(one):
    known = token_bytes(one.lm.tokenizer)
    for text, shown in (("a\ud83d\ude00b", "a😀b"), ("a\ud83db", "a\ufffdb")):
        tokens = own_text.write(one, text).tokens.tolist()
        assert b"".join(known[i] for i in tokens) == shown.encode()


def test_latents_on_a_text_are_listed_by_activation(one):
    table = latents_on(one, "a short text")
    f = dense(one, one.lm.tokens("a short text")[0, 1:].tolist())
    frame = table.to_pandas()
    assert len(frame) == (f > 0).sum() > 3
    assert frame["activation"].is_monotonic_decreasing
    for row in frame.itertuples():
        assert row.activation == pytest.approx(f[row.position, row.latent].item(), rel=1e-4)
        assert row.token == "a short text"[row.position]  # the tiny tokenizer reads bytes


def test_latents_on_a_text_keep_the_sign_of_their_code(source):
    one = placed_on(source, make_sae(source, "identity", d_sae=20))
    rows = latents_on(one, "abc").rows()
    f = dense(one, one.lm.tokens("abc")[0, 1:].tolist())
    assert min(row["activation"] for row in rows) < 0
    for row in rows:
        assert row["activation"] == pytest.approx(
            f[row["position"], row["latent"]].item(), rel=1e-4
        )


def test_latents_on_a_text_need_an_lm(one):
    placed = PlacedSAE(one.sae, TensorActivations(torch.randn(100, one.sae.d_in)))
    with pytest.raises(ConfigError, match="come from no known LM"):
        latents_on(placed, "a text")
    with pytest.raises(ConfigError, match="is empty"):
        latents_on(one, " ")
