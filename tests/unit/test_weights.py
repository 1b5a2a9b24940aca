"""LM folders whose files do not fit together: an error that names what, never random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import SourceError

BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", "gpt_neox": "gpt_neox.layers"}


def source_of(folder):
    from sae.language import LMSource

    return LMSource.from_config({"kind": "folder", "name": "folder", "path": str(folder)})


@pytest.fixture(params=BLOCKS)
def family(request):
    return request.param


@pytest.fixture
def saved(family, tiny_lm, tmp_path):
    """The folder of a tiny LM whose embeddings are not tied."""
    lm = tiny_lm(family)
    folder = tmp_path / "saved"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def edit(folder, change):
    file = folder / "model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    save_file(change(state), file, metadata={"format": "pt"})


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_whole_checkpoint_loads_as_it_is(saved, family, tiny_lm):
    tokens = torch.arange(8)[None]
    assert torch.equal(source_of(saved).load().logits(tokens), tiny_lm(family).logits(tokens))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "lm."])
def test_keys_with_another_prefix_are_named(saved, prefix):
    edit(saved, lambda state: {prefix + key: tensor for key, tensor in state.items()})
    with pytest.raises(SourceError, match=rf"lacks .*It holds {prefix}.*_orig_mod"):
        source_of(saved).load()


def test_a_missing_weight_is_named(saved, family):
    block = f"{BLOCKS[family]}.1."
    gone = next(key for key in sorted(load_file(saved / "model.safetensors")) if block in key)
    edit(saved, lambda state: {key: tensor for key, tensor in state.items() if key != gone})
    with pytest.raises(SourceError, match=f"lacks {gone}: "):
        source_of(saved).load()


def test_embeddings_that_are_not_tied_need_an_output(saved):
    heads = ("embed_out.weight", "lm_head.weight")
    configure(saved, tie_word_embeddings=False)
    edit(saved, lambda state: {key: tensor for key, tensor in state.items() if key not in heads})
    with pytest.raises(SourceError, match=r"lacks (embed_out|lm_head)\.weight"):
        source_of(saved).load()


def test_blocks_beyond_the_configuration_are_named(saved, family):
    """A checkpoint of four layers beside a configuration of three would lose one of them."""
    last, more = f"{BLOCKS[family]}.2.", f"{BLOCKS[family]}.3."

    def grow(state):
        return state | {k.replace(last, more): t.clone() for k, t in state.items() if last in k}

    edit(saved, grow)
    with pytest.raises(SourceError, match=f"holds {more}.*no place"):
        source_of(saved).load()


def test_what_changes_nothing_may_be_there(saved, family, tiny_lm):
    """Heads for other tasks, and masks that old checkpoints hold."""
    attention = "self_attn" if family == "llama" else "attn" if family == "gpt2" else "attention"
    more = {
        "score.weight": torch.ones(2, 2),
        f"{BLOCKS[family]}.0.{attention}.masked_bias": torch.ones(1),
    }
    edit(saved, lambda state: state | more)
    tokens = torch.arange(8)[None]
    assert torch.equal(source_of(saved).load().logits(tokens), tiny_lm(family).logits(tokens))


@pytest.mark.parametrize("where", ["head", "top"])
def test_what_would_be_left_out_is_named(saved, family, where):
    """A bias of the unembedding, a norm beside the blocks: without them it is another LM."""
    name = {"head": "lm_head.bias", "top": f"{BLOCKS[family].partition('.')[0]}.norm_in.weight"}
    edit(saved, lambda state: state | {name[where]: torch.ones(257)})
    with pytest.raises(SourceError, match=f"holds {name[where]}, for which.*no place"):
        source_of(saved).load()


@pytest.mark.slow
def test_a_checkpoint_of_another_family_is_named(saved, family):
    configure(saved, model_type="gemma2" if family == "llama" else "llama")
    with pytest.raises(SourceError, match=r"lacks .*model\.(layers|embed)"):
        source_of(saved).load()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("entry", ["link", "folder"])
def test_entries_of_an_lm_folder_that_are_no_files(tiny_lm, tmp_path, name, entry):
    tiny_lm("llama").model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/nowhere") if entry == "link" else (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=r"is a link to /nowhere|has no config|did not load"):
        source_of(tmp_path).load()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_named(tiny_lm, tmp_path, name):
    tiny_lm("llama").model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    with pytest.raises(SourceError, match=f"{name} starts with a byte order mark"):
        source_of(tmp_path).load()


def test_an_lm_of_images_and_text_is_refused_with_the_reason(tmp_path):
    """Gemma 3 from 4B: `gemma3`, whose text part is a `gemma3_text`."""
    from transformers import Gemma3Config

    from sae.errors import SiteError

    Gemma3Config().save_pretrained(tmp_path)
    for random in (False, True):
        with pytest.raises(SiteError, match=r"'gemma3' read images.*\(gemma3_text\).*gemma-3-1b"):
            trained_or_random(tmp_path, random)


def trained_or_random(folder, random):
    from sae.language.pretrained import config_in
    from sae.language.sites import family_of
    from sae.language.weights import trained_model

    return family_of(config_in(folder)) if random else trained_model(folder)


# --- GGUF ------------------------------------------------------------------------------------

TENSORS = {"token_embd.weight": (257, 32), "output_norm.weight": (32,), "output.weight": (257, 32)}
for block in range(2):
    TENSORS |= {
        f"blk.{block}.{name}.weight": shape
        for name, shape in (
            ("attn_q", (32, 32)), ("attn_k", (32, 32)), ("attn_v", (32, 32)),
            ("attn_output", (32, 32)), ("ffn_gate", (64, 32)), ("ffn_up", (64, 32)),
            ("ffn_down", (32, 64)), ("attn_norm", (32,)), ("ffn_norm", (32,)),
        )
    }  # fmt: skip


@pytest.fixture
def gguf(tmp_path):
    """`gguf({"name": shape, …})` is a tiny LLaMA in such a file, with exactly these tensors."""

    def write(tensors):
        from gguf import GGUFWriter

        writer = GGUFWriter(str(tmp_path / "lm.gguf"), "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(2)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(4)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(257)
        for i, (name, shape) in enumerate(tensors.items()):
            generator = torch.Generator().manual_seed(i)
            writer.add_tensor(name, torch.randn(shape, generator=generator).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "lm.gguf"

    return write


def converted(file):
    from transformers import AutoConfig

    from sae.language.convert import model_of
    from sae.language.quiet import quiet

    with quiet():
        return model_of(file, AutoConfig.from_pretrained(file.parent, gguf_file=file.name))


def test_a_whole_gguf_file_is_converted(gguf):
    model = converted(gguf(TENSORS))
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(257, 32, generator=generator).bfloat16()
    assert torch.equal(model.get_input_embeddings().weight, expected)
    tied = {name: shape for name, shape in TENSORS.items() if name != "output.weight"}
    head = converted(gguf(tied)).get_output_embeddings()
    assert torch.equal(head.weight, expected)


def test_a_gguf_file_is_read_once(gguf, monkeypatch):
    import gguf as library

    from sae.language.convert import _quick_reader

    calls = []

    class Reader(library.GGUFReader):
        def __init__(self, *args):
            calls.append("file")
            super().__init__(*args)

    names = library.get_tensor_name_map

    def table(*args):
        calls.append("names")
        return names(*args)

    monkeypatch.setattr(library, "GGUFReader", Reader)
    monkeypatch.setattr(library, "get_tensor_name_map", table)
    with _quick_reader():
        converted(gguf(TENSORS))
    assert sorted(calls) == ["file", "names"]
    assert library.GGUFReader is Reader
    assert library.get_tensor_name_map is table


@pytest.mark.parametrize("gone", ["blk.1.ffn_down", "blk.0.attn_norm", "token_embd"])
def test_weights_that_a_gguf_file_lacks_are_named(gguf, gone):
    theirs = {"blk.1.ffn_down": "layers.1.mlp.down_proj", "token_embd": "embed_tokens",
              "blk.0.attn_norm": "layers.0.input_layernorm"}[gone]  # fmt: skip
    file = gguf({name: shape for name, shape in TENSORS.items() if name != f"{gone}.weight"})
    with pytest.raises(SourceError, match=rf"lm\.gguf lacks model\.{theirs}\.weight"):
        converted(file)


@pytest.mark.parametrize(
    "more", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.2.attn_q.weight", "mm.0.weight"]
)
def test_tensors_of_a_gguf_file_without_a_place_are_named(gguf, more):
    """transformers reads on without a word: rope_freqs, for one, is Llama 3.1's scaling."""
    with pytest.raises(SourceError, match=rf"lm\.gguf holds {more}.*another LM"):
        converted(gguf(TENSORS | {more: (32, 32)}))


def test_shapes_of_a_gguf_file_that_do_not_fit(gguf):
    with pytest.raises(SourceError, match=r"down_proj.*of shape \[32, 32\].*asks for \[32, 64\]"):
        converted(gguf(TENSORS | {"blk.0.ffn_down.weight": (32, 32)}))


def test_sizes_that_do_not_fit_are_both_told(tiny_lm, tmp_path):
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    wrong = lm.model.config.intermediate_size + 8
    configure(tmp_path, intermediate_size=wrong)
    with pytest.raises(SourceError, match=rf"layers.0.mlp.*of shape \[.*asks for \[.*{wrong}"):
        source_of(tmp_path).load()


@pytest.mark.parametrize(
    "method", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}]
)
def test_quantised_weights_are_refused(tiny_lm, tmp_path, method):
    tiny_lm("llama").model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    configure(tmp_path, quantization_config=method)
    with pytest.raises(SourceError, match=rf"quantised weights \({method['quant_method']}\)"):
        source_of(tmp_path).load()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["half", "pointer", "bytes"])
def test_damaged_files_are_clear_errors(tiny_lm, tmp_path, name, damage):
    tiny_lm("llama").model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n"
    file.write_bytes({"half": whole[: len(whole) // 2], "pointer": pointer}.get(damage, b"\xff\0"))
    message = "git-lfs pointer.*269,060,552 bytes" if damage == "pointer" else "did not load"
    with pytest.raises(SourceError, match=message):
        source_of(tmp_path).load()


def test_an_index_that_names_absent_files(tiny_lm, tmp_path):
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path, max_shard_size="20KB")
    lm.tokenizer.save_pretrained(tmp_path)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(SourceError, match="did not load.*model-00002-of"):
        source_of(tmp_path).load()


def test_hidden_files_do_not_make_another_lm(saved):
    before = source_of(saved).identity()
    for name in ("._model.safetensors", ".config.json", "~$vocab.txt", ".merges.txt.swp"):
        (saved / name).write_bytes(b"\0\5\x16\7")
    assert source_of(saved).identity() == before
    source_of(saved).load()


def test_tokens_beyond_the_embedding_are_named(tiny_lm, tmp_path):
    lm = tiny_lm("gpt2")
    with pytest.raises(SourceError, match="makes token 300.*embeds tokens 0 to 256"):
        lm.logits(torch.tensor([[1, 300]]))
    from sae.types import Point

    with pytest.raises(SourceError, match="makes token 257"):
        lm.capture(torch.tensor([[1, 257]]), [Point("resid", 0)])


def test_a_hub_id_that_is_a_folder_is_refused(saved, monkeypatch):
    from sae.errors import ConfigError
    from sae.language import LMSource

    monkeypatch.chdir(saved.parent)
    with pytest.raises(ConfigError, match="lm=folder lm.path=saved"):
        LMSource.from_config({"kind": "hub", "name": "x", "repo": "saved"})
