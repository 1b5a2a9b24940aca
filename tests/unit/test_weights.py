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
