"""Settings and tensors of other libraries' files that change the map: folded or refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.errors import ArtifactError
from tests.unit._foreign import (  # noqa: I001
    B_DEC,
    B_ENC,
    D_IN,
    D_SAE,
    FOUR,
    THRESHOLD,
    UNIT,
    W_DEC,
    W_ENC,
    K,
    sparsify,
)  # fmt: skip

S = 0.5 + torch.arange(D_SAE) / 3  # a factor of each latent, one of them 1.5
X = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))


def load(path, **options):
    import sae

    return sae.load(path, **options)


def saelens(folder, config, tensors, scaler=None):
    folder.mkdir()
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()},
              folder / "sae_weights.safetensors")  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({"d_in": D_IN, "d_sae": D_SAE} | config))
    if scaler:
        (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    return folder


def library(x, factor, code=torch.relu, W_dec=W_DEC):
    """SAELens, versions 2 to 5: `x_hat = (f * factor) @ W_dec + b_dec`."""
    return (code((x - B_DEC) @ W_ENC + B_ENC) * factor) @ W_dec + B_DEC


@pytest.mark.parametrize(
    ("config", "name"),
    [({}, "scaling_factor"), ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
     ({"finetuning_scaling_factor": True}, "scaling_factor")],
)  # fmt: skip
@pytest.mark.parametrize("factor", [S, -S, torch.ones(D_SAE), S * (torch.arange(D_SAE) > 1)])
def test_factors_of_saelens_are_folded(tmp_path, config, name, factor):
    sae = load(saelens(tmp_path / "a", config, FOUR | {name: factor}))
    assert torch.allclose(sae(X), library(X, factor), atol=1e-4)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_factors_of_gated_and_jumprelu_are_folded(tmp_path):
    threshold = torch.full((D_SAE,), 0.4)
    tensors = FOUR | {"threshold": threshold, "scaling_factor": S}
    sae = load(saelens(tmp_path / "j", {"architecture": "jumprelu"}, tensors))
    want = library(X, S, lambda pre: pre * (pre > threshold))
    assert torch.allclose(sae(X), want, atol=1e-4)
    assert sae.config.activation == "jumprelu"


@pytest.mark.parametrize("config", [{}, {"finetuning_scaling_factor": False}])
def test_a_factor_that_the_config_does_not_mention_is_refused(tmp_path, config):
    tensors = FOUR | {"finetuning_scaling_factor": S}
    with pytest.raises(ArtifactError, match="holds finetuning_scaling_factor.*true"):
        load(saelens(tmp_path / "a", config, tensors))
    # of ones it changes nothing, said or not
    ones = FOUR | {"finetuning_scaling_factor": torch.ones(D_SAE)}
    assert torch.allclose(
        load(saelens(tmp_path / "b", config, ones))(X), library(X, 1.0), atol=1e-4
    )


def test_a_factor_that_is_said_but_missing_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="lacks finetuning_scaling_factor"):
        load(saelens(tmp_path / "a", {"finetuning_scaling_factor": True}, FOUR))


def test_factors_that_change_the_selection_are_refused(tmp_path):
    """TopK by pre-activation: rows that are longer than others must not win more often."""
    topk = {"architecture": "topk", "k": K}
    tensors = FOUR | {"W_dec": UNIT, "scaling_factor": S}
    with pytest.raises(ArtifactError, match="rows have lengths"):
        load(saelens(tmp_path / "a", topk, tensors))
    with pytest.raises(ArtifactError, match="scaling_factor.*cannot be folded"):
        load(saelens(tmp_path / "b", topk | {"rescale_acts_by_decoder_norm": True}, tensors))
    with pytest.raises(ArtifactError, match="scaling_factor.*cannot be folded"):
        load(saelens(tmp_path / "c", {}, FOUR | {"scaling_factor": torch.tensor([2.0])}))


@pytest.mark.parametrize(
    ("config", "more", "scaler", "message"),
    [
        ({}, {"threshold": B_ENC.abs()}, None, "threshold"),
        ({"architecture": "jumprelu"}, {"threshold": B_ENC.abs(), "W_skip": W_ENC}, None, "W_skip"),
        ({"architecture": "jumprelu", "activation_fn": "tanh-relu"}, {"threshold": B_ENC.abs()},
         None, "activation_fn='tanh-relu'"),
        ({}, {}, {"scaling_factor": 1.0, "has_whitening": True}, "whitens"),
        ({}, {}, {"scaling_factor": 2.0}, "scales it although cfg.json"),
    ],
)  # fmt: skip
def test_what_saelens_files_hold_beside_is_not_passed_over(tmp_path, config, more, scaler, message):
    with pytest.raises(ArtifactError, match=message):
        load(saelens(tmp_path / "a", config, FOUR | more, scaler))


def test_signed_of_sparsify_selects_by_size_and_keeps_signs(tmp_path):
    sae = load(sparsify(signed=True)(tmp_path))
    pre = (X - B_DEC) @ W_ENC + B_ENC
    order = pre.abs().argsort(dim=1, descending=True)[:, :K]
    code = torch.zeros_like(pre)
    for row, chosen in enumerate(order.tolist()):
        for latent in chosen:
            code[row, latent] = pre[row, latent]
    assert (code < 0).any()
    assert torch.allclose(sae.encode(X), code, atol=1e-5)
    assert torch.allclose(sae(X), code @ UNIT + B_DEC, atol=1e-5)
    assert sae.config.activation == "abs_topk"
    assert load(sparsify(signed=False)(tmp_path / "b")).config.activation == "topk"


@pytest.mark.parametrize("flag", [{"post_norm": True}, {"groups": 4}, {"encoder": "mlp"}])
def test_unknown_settings_of_sparsify_are_refused_where_they_are_on(tmp_path, flag):
    (name,) = flag
    with pytest.raises(ArtifactError, match=f"{name}=.*is not known and"):
        load(sparsify(**flag)(tmp_path / "on"))
    off = load(sparsify(**{name: None}, multi_topk=True, normalize_decoder=False)(tmp_path / "off"))
    assert off.config.activation == "topk"


def _with(state, file, more):
    torch.save(state | more, file)
    return file


def test_tensors_that_are_not_read_are_refused_everywhere(tmp_path):
    extra = {"scaling_factor": S}
    relu = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T,
            "bias": B_DEC}  # fmt: skip
    openai = {"encoder.weight": W_ENC.T, "latent_bias": B_ENC, "decoder.weight": W_DEC.T,
              "pre_bias": B_DEC}  # fmt: skip
    for state, name in ((relu, "ae.pt"), (openai, "autoencoder.pt")):
        assert load(_with(state, tmp_path / name, {})).d_sae == D_SAE
        with pytest.raises(ArtifactError, match="holds unknown tensors: scaling_factor"):
            load(_with(state, tmp_path / name, extra))
        (tmp_path / name).unlink()
    folder = sparsify()(tmp_path)
    state = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "W_dec": UNIT,
             "b_dec": B_DEC} | extra  # fmt: skip
    save_file(state, folder / "sae.safetensors")
    with pytest.raises(ArtifactError, match="holds unknown tensors: scaling_factor"):
        load(folder)


def test_a_class_of_dictionary_learning_that_is_not_known_is_refused(tmp_path):
    torch.save({"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T,
                "bias": B_DEC}, tmp_path / "ae.pt")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AbsTopKSAE"}}))
    with pytest.raises(ArtifactError, match="class AbsTopKSAE, which cannot be read"):
        load(tmp_path)


def gemma_scope(folder, **arrays):
    folder.mkdir(parents=True)
    state = FOUR | {"threshold": THRESHOLD}
    numpy = {name: tensor.numpy() for name, tensor in state.items()}
    np.savez(folder / "params.npz", **(numpy | arrays))
    return folder


def test_a_gemma_scope_file_loads_by_its_keys(tmp_path):
    """Their notebook: `acts = (pre > threshold) * relu(pre)`, `recon = acts @ W_dec + b_dec`."""
    inside = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    pre = X @ W_ENC + B_ENC
    acts = (pre > THRESHOLD) * torch.relu(pre)
    for path in (gemma_scope(inside), inside / "params.npz"):
        sae = load(path)
        assert torch.allclose(sae.encode(X), acts * W_DEC.norm(dim=1), atol=1e-5)
        assert torch.allclose(sae(X), acts @ W_DEC + B_DEC, atol=1e-4)
    assert sae.metadata["origin"] == {
        "format": "gemma_scope", "lm": "google/gemma-2-2b", "point": "resid.20"
    }  # fmt: skip
    assert 0 < (acts > 0).float().mean() < (pre > 0).float().mean()


@pytest.mark.parametrize(
    ("repository", "point", "transcodes"),
    [("gemma-scope-9b-it-mlp", "mlp_out.3", False), ("models--google--gemma-scope-2b-pt-att",
     "attn_z.3", False), ("mine", None, False), ("gemma-scope-2b-pt-transcoders", None, True)],
)  # fmt: skip
def test_the_place_of_a_gemma_scope_file_is_in_its_path(tmp_path, repository, point, transcodes):
    sae = load(gemma_scope(tmp_path / repository / "layer_3" / "width_16k"))
    assert sae.metadata["origin"].get("point") == point
    assert (sae.config.d_out is not None) == transcodes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"threshold": np.array([{}], dtype=object)}, "not unpickled"),
     ({"scaling_factor": np.ones(3, "f4")}, "holds unknown tensors: scaling_factor"),
     ({"b_dec": np.ones(3, "f4")}, "decoder bias has shape")],
)  # fmt: skip
def test_what_a_gemma_scope_file_may_not_hold(tmp_path, arrays, message):
    with pytest.raises(ArtifactError, match=message):
        load(gemma_scope(tmp_path / "a", **arrays))


@pytest.mark.parametrize("part", [0, 10, 0.5])
def test_a_torn_gemma_scope_file(tmp_path, part):
    file = gemma_scope(tmp_path / "a") / "params.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole)) if part < 1 else part])
    with pytest.raises(ArtifactError, match="cannot be read as NumPy arrays"):
        load(file)


def test_settings_of_saelens_that_are_not_known_are_named(tmp_path, caplog):
    """All that versions 3 to 6 write of a training is known; only what is switched on counts."""
    known = {"lr": 1e-3, "l1_coefficient": 1.0, "normalize_sae_decoder": True, "seed": 42,
             "activation_fn_kwargs": {}, "model_from_pretrained_kwargs": {"a": 1},
             "metadata": {"sae_lens_version": "6.1.0"}, "tied_weights": False}  # fmt: skip
    load(saelens(tmp_path / "a", known, FOUR))
    assert not caplog.records
    load(saelens(tmp_path / "b", known | {"tied_weights": True, "lam": 0.1}, FOUR))
    assert "tied_weights=True, lam=0.1 is not known" in caplog.text
    topk = {"activation_fn": "topk", "activation_fn_kwargs": {"k": K, "postact": "tanh"}}
    load(saelens(tmp_path / "c", topk, FOUR | {"W_dec": UNIT}))
    assert "activation_fn_kwargs.postact='tanh'" in caplog.text


def test_settings_of_dictionary_learning_that_are_not_known_are_named(tmp_path, caplog):
    torch.save({"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T,
                "bias": B_DEC}, tmp_path / "ae.pt")  # fmt: skip

    def say(**trainer):
        told = {"dict_class": "AutoEncoder", "lr": 1e-3, "l1_penalty": 0.1, "steps": 5} | trainer
        (tmp_path / "config.json").write_text(json.dumps({"trainer": told}))
        load(tmp_path)

    say(post_norm=False)
    assert not caplog.records
    say(post_norm=True)
    assert "post_norm=True is not known" in caplog.text
