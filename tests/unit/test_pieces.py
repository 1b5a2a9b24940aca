"""Bytes of tokens: together they are the text."""

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sae.language.pieces import pieces, token_bytes

TEXT = "café 🌱\n<b>\u200b\u202eabc\u0000\t漢字"


def test_a_byte_level_tokenizer(tiny_source):
    tokenizer = tiny_source("gpt2").load_tokenizer()
    vocabulary = token_bytes(tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    assert b"".join(vocabulary[i] for i in ids) == TEXT.encode()
    assert "".join(pieces(ids, vocabulary)) == TEXT
    assert vocabulary[tokenizer.eos_token_id] == b"<|endoftext|>"


def test_a_tokenizer_without_a_fast_backend(tiny_source):
    fast = tiny_source("gpt2").load_tokenizer()

    class Slow:
        get_vocab = fast.get_vocab
        decode = fast.decode

    vocabulary = token_bytes(Slow())
    assert "".join(pieces(fast("plain text")["input_ids"], vocabulary)) == "plain text"


def test_a_sentencepiece_tokenizer_with_bytes():
    words = {"<unk>": 0, "▁caf": 1, "é": 2, "▁": 3, **{f"<0x{i:02X}>": 4 + i for i in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    vocabulary = token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = [1, 2, 3, *(4 + byte for byte in "🌱".encode())]
    assert pieces(ids, vocabulary) == [" caf", "é", " ", "", "", "", "🌱"]
