"""Files of other libraries: the same numbers as their formulas, round trips, and clear errors."""

import json
import os
import pickle
from pathlib import Path

import _foreign as foreign
import pytest
import torch
from _foreign import CASES, D_IN, D_SAE, FOUR, TOLERANCE, UNIT, V6, K, X, made_of, ours
from safetensors.torch import load_file, save_file

from sae.artifacts import FORMATS, load, save
from sae.artifacts.places import hook_of, in_lm, place_of, point_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ArtifactError, ConfigError
from sae.types import SITES, Point


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_of_the_formula(case, tmp_path):
    sae = load(case.write(tmp_path / "theirs"))
    assert sae.config.activation == case.activation
    f, x_hat = (
        torch.tensor(rows, dtype=torch.float32) for rows in zip(*map(case.forward, X), strict=True)
    )
    assert 0.1 < (f > 0).float().mean() < 0.9
    torch.testing.assert_close(sae.encode(X), f * case.rows.norm(dim=1), **TOLERANCE)
    torch.testing.assert_close(sae(X), x_hat, **TOLERANCE)
    assert sae.dtype == torch.float32
    assert sae.metadata["origin"]["format"] in FORMATS
    json.dumps(sae.metadata)
    again = load(save(tmp_path / "own", sae))  # and it is an SAE like any other
    torch.testing.assert_close(again(X), sae(X), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("format", "activation"),
    [
        ("native", "relu"), ("native", "topk"), ("native", "jumprelu"), ("native", "lista"),
        ("saelens", "relu"), ("saelens", "topk"), ("saelens", "abs_topk"),
        ("saelens", "jumprelu"), ("native", "abs_topk"),
        ("dictionary_learning", "relu"), ("dictionary_learning", "topk"),
        ("dictionary_learning", "jumprelu"), ("sparsify", "topk"), ("openai", "relu"),
    ],
)  # fmt: skip
def test_round_trip(tmp_path, format, activation):
    sae = ours(activation, activations=made_of())
    folder = save(tmp_path / "deep" / "out", sae, format)
    for path in (folder, str(folder)):
        again = load(path)  # found by its files
        assert again.config.activation == activation
        torch.testing.assert_close(again.encode(X), sae.encode(X), **TOLERANCE)
        torch.testing.assert_close(again.decode(sae.encode(X)), sae(X), **TOLERANCE)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert load(folder, format).config == again.config


def test_places_go_with_the_files(tmp_path):
    save(tmp_path / "a", ours(activations=made_of()), "saelens")
    about = json.loads((tmp_path / "a" / "cfg.json").read_text())
    assert about["metadata"]["sae_lens_version"].split(".")[0] == "6"
    assert about["metadata"]["hook_name"] == "blocks.4.hook_resid_post"
    assert about["metadata"]["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert about["apply_b_dec_to_input"] is False
    save(tmp_path / "b", load(tmp_path / "a"), "dictionary_learning")
    place = place_of(load(tmp_path / "b"))
    assert (place.lm, place.point, place.ctx) == (
        "EleutherAI/pythia-70m-deduped", Point("resid", 4), 128,
    )  # fmt: skip
    assert place_of(load(foreign.sparsify()(tmp_path / "c"))).point == Point("resid", 4)
    assert place_of(ours()).point is None
    metadata = foreign.V6["metadata"] | {"hook_head_index": 3, "context_size": "all"}
    of_head = load(SAELENS({"metadata": metadata}, FOUR)(tmp_path / "d"))
    assert (place_of(of_head).point, place_of(of_head).ctx) == (None, None)


def test_names_of_places():
    for site in SITES:
        assert point_of(hook_of(Point(site, 7))) == Point(site, 7)
    assert point_of("blocks.0.hook_resid_pre") is None
    assert point_of("blocks.3.hook_resid_pre") == Point("resid", 2)
    assert point_of("transformer.h.11.attn") == Point("attn_out", 11)
    assert point_of("model.layers.3.mlp.act") is None
    assert point_of(None) is None


def test_a_module_is_a_place_once_the_family_is_known(tmp_path):
    def read(hook, **more):
        return load(SAELENS({"metadata": foreign.V6["metadata"] | {"hook_name": hook, **more}},
                            FOUR)(tmp_path / f"{len(list(tmp_path.iterdir()))}"))  # fmt: skip

    mlp = read("model.layers.4.mlp")
    assert place_of(mlp).point is None
    assert in_lm(mlp, "qwen2") == (Point("mlp_out", 4), "")
    point, reason = in_lm(mlp, "gemma2")
    assert point is None
    assert "model.layers.4.mlp is not a site" in reason
    assert "norm" in reason
    assert in_lm(read("model.layers.4"), None) == (Point("resid", 4), "")
    assert "embedding" in in_lm(read("blocks.0.hook_resid_pre"), "gpt2")[1]
    of_head = read("blocks.4.attn.hook_z", hook_head_index=3)
    assert in_lm(of_head, "gpt2") == (None, "blocks.4.attn.hook_z of head 3 is a part of a site")
    assert in_lm(ours(), "gpt2") == (None, "")
    folder = foreign.sparsify()(tmp_path / "sparsify")
    of_sparsify = load(folder.rename(folder.with_name("layers.2.mlp")))
    assert in_lm(of_sparsify, "llama")[0] == Point("mlp_out", 2)
    folder = foreign.sparsify(transcode=True)(tmp_path / "transcoder")
    transcoder = load(folder.rename(folder.with_name("layers.2.mlp")))
    assert in_lm(transcoder, "llama", written=True)[0] == Point("mlp_out", 2)
    assert in_lm(transcoder, "gemma2", written=True)[0] is None
    assert in_lm(transcoder, "llama") == (None, "")


def test_one_of_several_dictionaries(tmp_path):
    folder = foreign.authors(("TiedSAE", foreign.TIED), ("UntiedSAE", foreign.UNTIED))(
        tmp_path / "a"
    )
    with pytest.raises(
        ArtifactError, match=r"holds 2 dictionaries: 0 \(.*l1_alpha 0.0001\), 1 .*:0"
    ):
        load(folder)
    second = load(f"{folder}/learned_dicts.pt:1")
    assert second.config.architecture == "UntiedSAE"
    assert second.metadata["origin"]["l1_alpha"] == pytest.approx(10 ** (-4 + 2 / 15))
    assert load(f"{folder}:1").config == second.config
    with pytest.raises(ArtifactError, match="holds 2 dictionaries"):
        load(f"{folder}:2")
    other = foreign.openai()(tmp_path / "b")
    with pytest.raises(ArtifactError, match="holds one SAE. Drop :1"):
        load(f"{other}:1")


def test_openai_by_its_folder(tmp_path):
    file = foreign.openai()(tmp_path / "a")
    assert torch.equal(load(file.parent).W_enc, load(file).W_enc)


def test_zero_decoder_rows_are_silent_latents(tmp_path):
    W_dec = foreign.W_DEC.clone()
    W_dec[2] = 0
    write = foreign.saelens({"architecture": "standard", **V6}, FOUR | {"W_dec": W_dec})
    sae = load(write(tmp_path / "a"))
    assert not sae.encode(X)[:, 2].any()
    f, x_hat = foreign.linear(lambda x: foreign.relu(foreign._pre(x)), W_dec)(X[0])
    torch.testing.assert_close(sae(X[0]), torch.tensor(x_hat), **TOLERANCE)


def test_bfloat16_rows_of_equal_length_are_read(tmp_path):
    tensors = {name: tensor.bfloat16() for name, tensor in (FOUR | {"W_dec": UNIT}).items()}
    write = foreign.saelens({"architecture": "topk", "k": K, **V6}, tensors)
    sae = load(write(tmp_path / "a"))
    b_dec = tensors["b_dec"].float()
    pre = (X - b_dec) @ tensors["W_enc"].float() + tensors["b_enc"].float()
    values, kept = pre.topk(K)
    f = torch.zeros_like(pre).scatter(1, kept, values.relu())
    torch.testing.assert_close(sae(X), f @ tensors["W_dec"].float() + b_dec, **TOLERANCE)


# What cannot be read


class Evil:
    """Pickled, it is the call of a function: the oldest trick against `pickle.load`."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("where", ["top", "attribute", "hyperparameter", "plain_pickle"])
@pytest.mark.parametrize("name", ["learned_dicts.pt", "ae.pt", "autoencoder.pt"])
def test_malicious_pickle_runs_nothing(tmp_path, name, where):
    target, folder = tmp_path / "hacked", tmp_path / "a"
    evil = Evil(target)
    folder.mkdir()
    content = {
        "top": evil,
        "attribute": [({"encoder": evil}, {})],
        "hyperparameter": [({}, {"l1_alpha": evil})],
        "plain_pickle": evil,
    }[where]
    if where == "plain_pickle":
        (folder / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / name)
    format = {"learned_dicts.pt": "authors", "ae.pt": "dictionary_learning"}.get(name, "openai")
    with pytest.raises(ArtifactError, match="cannot be read: .* nothing else is unpickled"):
        load(folder, format)
    with pytest.raises(ArtifactError):
        load(folder)  # the look at its files is as careful
    assert not target.exists()
    pickle.loads(pickle.dumps(evil))
    assert target.exists()  # it would have


def test_a_class_that_is_not_the_authors(tmp_path):
    write = foreign.authors(("HackedSAE", foreign.TIED))
    with pytest.raises(ArtifactError, match="autoencoders.learned_dict.HackedSAE"):
        load(write(tmp_path / "a"))


def test_what_was_restricted_stays_restricted(tmp_path):
    load(foreign.authors(("TiedSAE", foreign.TIED))(tmp_path / "a"))
    allowed = map(str, torch.serialization.get_safe_globals())
    assert not [name for name in allowed if "autoencoders" in name or "numpy" in name]


SAELENS, DL = foreign.saelens, foreign.dictionary_learning


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (SAELENS({"normalize_activations": "layer_norm", **V6}, FOUR),
         "normalize_activations=layer_norm changes every input"),
        (SAELENS({"normalize_activations": "expected_average_only_in", **V6}, FOUR),
         "activation_scaler.json, which holds the factor, is not beside it"),
        (SAELENS({"normalize_activations": "expected_average_only_in", **V6}, FOUR, "x"),
         "scaling_factor='x' must be a number above 0"),
        (SAELENS({"finetuning_scaling_factor": True}, FOUR), "finetuning_scaling_factor"),
        (SAELENS({"architecture": "temporal", **V6}, FOUR), "'temporal' cannot be read"),
        (SAELENS({"activation_fn_str": "tanh-relu"}, FOUR), "activation_fn='tanh-relu'"),
        (SAELENS({"architecture": "topk", "k": K, **V6}, FOUR), "rows have lengths from"),
        (SAELENS({"architecture": "topk", **V6}, FOUR), "k=None must be a whole number"),
        (SAELENS({"architecture": "topk", "k": 99, **V6}, FOUR | {"W_dec": UNIT}),
         "k=99 must be between 1 and d_sae=9"),
        (SAELENS({"architecture": "jumprelu", **V6}, FOUR), "lacks threshold; it holds W_dec"),
        (SAELENS(V6, FOUR | {"b_enc": torch.zeros(4)}), r"encoder bias has shape \(4,\)"),
        (SAELENS(V6, FOUR | {"W_dec": torch.zeros(D_SAE, 7)}), "only in a transcoder"),
        (SAELENS(V6 | {"architecture": "skip_transcoder"}, FOUR), "lacks W_skip"),
        (SAELENS(V6 | {"architecture": "transcoder", "normalize_activations": "layer_norm"}, FOUR),
         "scales the input but not the output"),
        (SAELENS(V6, FOUR | {"b_dec": torch.full((D_IN,), torch.nan)}), "NaN"),
        (DL("BatchTopKSAE", foreign.UNIT_LINEAR), "lacks threshold"),
        (DL(None, foreign.UNIT_LINEAR | foreign.COUNTS), "may be of AutoEncoderTopK or of Batch"),
        (DL("AutoEncoder", foreign.LINEAR), "lacks encoder.bias"),
        (DL("AutoEncoder", ["no", "state"]), "holds a list, not a state dict"),
        (foreign.sparsify(skip_connection=True), "lacks W_skip"),
        (foreign.sparsify(activation="groupmax"), "activation='groupmax'"),
        (foreign.sparsify(k=True), "k=True must be a whole number"),
        (foreign.openai("TopK", {"k": K}), "divides by its standard deviation"),
        (foreign.openai("Identity"), "latents may be negative"),
        (foreign.authors(("ReverseSAE", foreign.TIED)), "a ReverseSAE cannot be read"),
        (foreign.authors(("TiedSAE", {"encoder": UNIT})), "lacks encoder_bias"),
        (foreign.authors(("TiedSAE", foreign.CENTRED | {"center_scale": torch.zeros(D_IN)})),
         "the centring does not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_says_so(tmp_path, write, message):
    with pytest.raises(ArtifactError, match=message):
        load(write(tmp_path / "a"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_damaged_files(case, tmp_path):
    path = case.write(tmp_path / "a")
    files = [path] if path.is_file() else list(path.iterdir())
    format = load(path).metadata["origin"]["format"]
    for file in files:
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"\x80not what it was"):
            file.write_bytes(damaged)
            if file.name == "config.json" and format == "dictionary_learning" and not damaged:
                continue
            with pytest.raises(ArtifactError):
                load(path, format)
        file.write_bytes(whole)
    load(path)


def test_missing_files(tmp_path):
    path = foreign.saelens({**V6}, FOUR)(tmp_path / "a")
    (path / "cfg.json").unlink()
    with pytest.raises(ArtifactError, match="cfg.json is missing"):
        load(path, "saelens")
    with pytest.raises(ArtifactError, match="No saved SAE at .* it holds sae_weights.safetensors"):
        load(path)
    with pytest.raises(ArtifactError, match="a folder that holds one .pt file"):
        load(path, "openai")
    with pytest.raises(ConfigError, match="format=SAELens is not known. Choose one of native, sae"):
        load(path, "SAELens")


# What cannot be written


@pytest.mark.parametrize(
    ("format", "activation", "message"),
    [
        ("sparsify", "relu", "sparsify has no activation=relu; its format holds topk"),
        ("sparsify", "jumprelu", "sparsify has no activation=jumprelu"),
        ("openai", "topk", "openai has no activation=topk"),
        ("saelens", "lista", "saelens has no activation=lista; its format holds relu, topk"),
        ("dictionary_learning", "abs_topk", "dictionary_learning has no activation=abs_topk"),
    ],
)
def test_a_format_refuses_what_it_cannot_hold(tmp_path, format, activation, message):
    with pytest.raises(ArtifactError, match=message):
        save(tmp_path / "out", ours(activation), format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "openai"])
def test_further_weights_are_not_dropped(tmp_path, format):
    sae = ours()
    sae.W_skip = torch.nn.Parameter(torch.eye(D_IN))
    with pytest.raises(ArtifactError, match="has W_skip, which is not written"):
        save(tmp_path / "out", sae, format)


def test_a_transcoder_is_written_where_it_has_a_place(tmp_path):
    config = SAEConfig("l1", "relu", D_IN, D_SAE, d_out=D_IN)
    sae = SAE(foreign.W_ENC, foreign.B_ENC, UNIT, foreign.B_DEC, config)
    with pytest.raises(ArtifactError, match="another output than its input"):
        save(tmp_path / "out", sae, "dictionary_learning")
    assert load(save(tmp_path / "out", sae)).config == config


def test_words_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="format=authors is only read, not written"):
        save(tmp_path / "out", ours(), "authors")
    with pytest.raises(ConfigError, match="format=pickle is not known"):
        save(tmp_path / "out", ours(), "pickle")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match="exists already and is not empty"):
        save(tmp_path / "mine", ours(), "saelens")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    save(tmp_path / "mine" / "new", ours())


def test_files_are_what_the_libraries_document(tmp_path):
    save(tmp_path / "sl", ours("jumprelu"), "saelens")
    tensors = load_file(tmp_path / "sl" / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,),
        "threshold": (D_SAE,),
    }  # fmt: skip
    save(tmp_path / "dl", ours("topk"), "dictionary_learning")
    state = torch.load(tmp_path / "dl" / "ae.pt", weights_only=True)
    assert sorted(state) == [
        "b_dec", "decoder.weight", "encoder.bias", "encoder.weight", "k", "threshold",
    ]  # fmt: skip
    assert state["encoder.weight"].shape == (D_SAE, D_IN)
    save(tmp_path / "sp", ours("topk"), "sparsify")
    assert sorted(load_file(tmp_path / "sp" / "sae.safetensors")) == [
        "W_dec", "b_dec", "encoder.bias", "encoder.weight",
    ]  # fmt: skip


def test_native_is_looked_for_first(tmp_path):
    save(tmp_path / "a", ours())
    extra = {"W_enc": torch.zeros(1)}
    save_file(extra, tmp_path / "a" / "sae_weights.safetensors")
    (tmp_path / "a" / "cfg.json").write_text("{}")
    assert "origin" not in load(tmp_path / "a").metadata
