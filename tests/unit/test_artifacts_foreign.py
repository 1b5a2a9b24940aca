"""Files of other libraries: the same numbers as their formulas, round trips, and clear errors."""

import json
import os
import pickle
import shutil
from pathlib import Path

import _foreign as foreign
import pytest
import torch
from _foreign import CASES, D_IN, D_SAE, FOUR, UNIT, V6, K
from safetensors.torch import load_file, save_file

import sae as package
from sae.artifacts import FORMATS, load, save, to_saebench
from sae.artifacts.places import hook_of, place_of, point_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ArtifactError, ConfigError, SourceError
from sae.types import SITES, Point

X = 2 * foreign.numbers(10, 40, D_IN)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def ours(activation: str = "relu", **metadata: object) -> SAE:
    threshold = foreign.THRESHOLD.clamp(min=0) if activation == "jumprelu" else None
    return SAE(
        foreign.W_ENC, foreign.B_ENC, UNIT, foreign.B_DEC, threshold=threshold, metadata=metadata,
        config=SAEConfig("l1", activation, D_IN, D_SAE, K if activation == "topk" else None),
    )  # fmt: skip


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
        ("native", "relu"), ("native", "topk"), ("native", "jumprelu"),
        ("saelens", "relu"), ("saelens", "topk"), ("saelens", "jumprelu"),
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


def made_of() -> dict:
    lm = {"kind": "hub", "name": "pythia-70m", "repo": "EleutherAI/pythia-70m-deduped"}
    return {"kind": "lm", "lm": lm, "corpus": {"name": "news"}, "point": "resid.4", "ctx": 128}


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


def test_names_of_places():
    for site in SITES:
        assert point_of(hook_of(Point(site, 7))) == Point(site, 7)
    assert point_of("blocks.0.hook_resid_pre") is None
    assert point_of("blocks.3.hook_resid_pre") == Point("resid", 2)
    assert point_of("transformer.h.11.attn") == Point("attn_out", 11)
    assert point_of("model.layers.3.mlp.act") is None
    assert point_of(None) is None


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
    foreign.authors(("TiedSAE", foreign.TIED))(folder)  # leaves no module behind
    (folder / "learned_dicts.pt").unlink()
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
    formats = [None] if name != "autoencoder.pt" else ["openai"]
    for format in formats:
        with pytest.raises(ArtifactError, match="nothing else is unpickled|cannot be read"):
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
    before = torch.serialization.get_safe_globals()
    load(foreign.authors(("TiedSAE", foreign.TIED))(tmp_path / "a"))
    assert torch.serialization.get_safe_globals() == before


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
        (SAELENS({"architecture": "temporal", **V6}, FOUR), "'temporal' has no counterpart"),
        (SAELENS({"architecture": "abstopk", **V6}, FOUR), "'abstopk' has no counterpart"),
        (SAELENS({"activation_fn_str": "tanh-relu"}, FOUR), "activation_fn='tanh-relu'"),
        (SAELENS({"architecture": "topk", "k": K, **V6}, FOUR), "rows have lengths from"),
        (SAELENS({"architecture": "topk", **V6}, FOUR), "k=None must be a whole number"),
        (SAELENS({"architecture": "topk", "k": 99, **V6}, FOUR | {"W_dec": UNIT}),
         "k=99 must be between 1 and d_sae=9"),
        (SAELENS({"architecture": "jumprelu", **V6}, FOUR), "lacks threshold; it holds W_dec"),
        (SAELENS(V6, FOUR | {"b_enc": torch.zeros(4)}), r"encoder bias has shape \(4,\)"),
        (SAELENS(V6, FOUR | {"W_dec": torch.zeros(D_SAE, 7)}), "transcoder"),
        (SAELENS(V6, FOUR | {"b_dec": torch.full((D_IN,), torch.nan)}), "NaN"),
        (DL("BatchTopKSAE", foreign.UNIT_LINEAR), "lacks threshold"),
        (DL(None, foreign.UNIT_LINEAR | foreign.COUNTS), "may be of AutoEncoderTopK or of Batch"),
        (DL("AutoEncoder", foreign.LINEAR), "lacks encoder.bias"),
        (DL("AutoEncoder", ["no", "state"]), "holds no state dict but a list"),
        (foreign.sparsify(transcode=True), "transcoder"),
        (foreign.sparsify(skip_connection=True), "skip connection"),
        (foreign.sparsify(activation="groupmax"), "activation='groupmax'"),
        (foreign.sparsify(k=True), "k=True must be a whole number"),
        (foreign.openai("TopK", {"k": K}), "divides by its standard deviation"),
        (foreign.openai("Identity"), "lets latents be negative"),
        (foreign.authors(("ReverseSAE", foreign.TIED)), "a ReverseSAE has no counterpart"),
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
    with pytest.raises(ArtifactError, match="has W_skip beside the four tensors"):
        save(tmp_path / "out", sae, format)


def test_words_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="format=authors is only read, not written"):
        save(tmp_path / "out", ours(), "authors")
    with pytest.raises(ConfigError, match="format=pickle is not known"):
        save(tmp_path / "out", ours(), "pickle")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match="is there already and not empty"):
        save(tmp_path / "mine", ours(), "saelens")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    save(tmp_path / "mine" / "new", ours())


# The hub, played by a folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    import sae.language.quiet

    root, calls = tmp_path / "hub", []

    def snapshot_download(repo_id, allow_patterns, ignore_patterns, local_files_only=False):
        calls.append((repo_id, allow_patterns, ignore_patterns))
        if not (root / repo_id).is_dir():
            raise OSError(f"{repo_id} not found")
        return str(root / repo_id)

    def create_repo(repo_id, private, exist_ok):
        if repo_id == "no/rights":
            raise OSError("403 Forbidden")
        calls.append(("create", repo_id, private))
        return f"https://hub/{repo_id}"

    def upload_folder(repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(sae.language.quiet, "require_hub", lambda what, instead: None)
    return calls


@pytest.mark.parametrize("format", ["native", "saelens"])
def test_push_and_load(hub, format):
    sae = ours()
    assert package.push_to_hub(sae, "me/mine", format).endswith("me/mine")
    torch.testing.assert_close(load("me/mine")(X), sae(X), **TOLERANCE)
    assert hub == [
        ("create", "me/mine", False),
        ("me/mine", ["*.json", "*.safetensors", "*.pt"], ["*/*"]),
    ]


def test_a_subfolder_of_a_repository(hub, tmp_path):
    path = foreign.sparsify()(tmp_path / "hub" / "eleuther" / "sae")
    torch.testing.assert_close(load("eleuther/sae/layers.4")(X), load(path)(X))
    repo, allowed, ignored = hub[-1]
    assert (repo, ignored) == ("eleuther/sae", ["layers.4/*/*"])
    assert "layers.4/*.safetensors" in allowed
    with pytest.raises(ArtifactError, match="eleuther/sae is on the hub, but has no layers.5"):
        load("eleuther/sae/layers.5")
    with pytest.raises(ArtifactError, match="me/other cannot be had from the hub: me/other not"):
        load("me/other")
    with pytest.raises(ArtifactError, match="does not take no/rights: 403 Forbidden"):
        package.push_to_hub(ours(), "no/rights")


def test_without_the_hub_an_earlier_copy_does(hub, tmp_path, monkeypatch):
    import sae.language.quiet

    def unreachable(what, instead):
        raise SourceError(f"{what} is on the hub, which cannot be reached. {instead}")

    package.push_to_hub(ours(), "me/mine")
    monkeypatch.setattr(sae.language.quiet, "require_hub", unreachable)
    assert load("me/mine").d_sae == D_SAE
    with pytest.raises(
        SourceError, match="cannot be reached. If a local folder is meant: there is"
    ):
        load("me/other")


def test_a_misspelt_path_is_no_hub_id(hub, tmp_path):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ArtifactError, match="No saved SAE at outputs/mien: it does not exist"):
        load("outputs/mien")
    assert hub == []


# SAEBench


def test_saebench_wrapper():
    sae = ours("jumprelu", activations=made_of())
    wrapped = to_saebench(sae)
    f = wrapped.encode(X.reshape(4, 10, D_IN))
    assert f.shape == (4, 10, D_SAE)
    torch.testing.assert_close(wrapped(X), sae(X))
    torch.testing.assert_close(wrapped.decode(f).reshape(-1, D_IN), sae(X))
    assert isinstance(wrapped.W_dec, torch.nn.Parameter)
    assert (wrapped.W_dec.shape, wrapped.W_enc.shape) == ((D_SAE, D_IN), (D_IN, D_SAE))
    assert (wrapped.b_enc.shape, wrapped.b_dec.shape) == ((D_SAE,), (D_IN,))
    assert wrapped.check_decoder_norms()
    cfg = wrapped.cfg.to_dict()
    assert cfg["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert (cfg["hook_layer"], cfg["hook_name"]) == (4, "blocks.4.hook_resid_post")
    assert (cfg["d_in"], cfg["d_sae"], cfg["context_size"]) == (D_IN, D_SAE, 128)
    json.dumps(cfg)
    moved = wrapped.to(device="cpu", dtype=torch.bfloat16)
    assert (moved.dtype, moved.cfg.dtype, moved.device.type) == (torch.bfloat16, "bfloat16", "cpu")
    assert moved.check_decoder_norms()


def test_saebench_wants_a_place():
    with pytest.raises(ArtifactError, match="SAEBench needs model_name=None"):
        to_saebench(ours())
    with pytest.raises(ArtifactError, match="hook_name='nowhere'"):
        to_saebench(ours(), "gpt2", "nowhere")
    assert to_saebench(ours(), "gpt2", "blocks.3.hook_mlp_out").cfg.hook_layer == 3


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
