"""SAEs made and saved by the libraries themselves, loaded here, and the other way round.

sae-lens and eai-sparsify are in the extra `peers`; dictionary-learning==0.1.0 is installed beside
them without its dependencies, of which nnsight is only imported.
"""

import json
import sys
from types import ModuleType

import pytest
import torch

pytestmark = [
    pytest.mark.peers,
    # Other libraries' own imports are not free of warnings.
    pytest.mark.filterwarnings("ignore:::transformer_lens"),
    pytest.mark.filterwarnings("ignore:::sae_lens"),
    pytest.mark.filterwarnings("ignore:::sparsify"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

D_IN, D_SAE, K = 16, 48, 6
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def x():
    return 2 * torch.randn(64, D_IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dl():
    """dictionary_learning with a stub for nnsight, which only its buffer of activations uses."""
    with pytest.MonkeyPatch.context() as patch:
        stub = ModuleType("nnsight")
        stub.LanguageModel = object
        patch.setitem(sys.modules, "nnsight", stub)
        import dictionary_learning.dictionary as classes
        from dictionary_learning import utils
        from dictionary_learning.trainers import batch_top_k, top_k

        found = {name: getattr(classes, name) for name in (
            "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"
        )}  # fmt: skip
        found |= {
            "AutoEncoderTopK": top_k.AutoEncoderTopK,
            "BatchTopKSAE": batch_top_k.BatchTopKSAE,
        }
        yield found, utils.load_dictionary


@pytest.fixture(scope="module")
def coder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # read when it is imported
        from sparsify import SparseCoder
        from sparsify.config import SparseCoderConfig

    def make():
        made = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K), dtype=torch.float32)
        shake(made)
        made.set_decoder_norm_to_unit_norm()
        return made

    return SparseCoder, make


def shake(module):
    """Random numbers into every parameter: none of them may be ignored."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))


def ours(activation):
    """An SAE of this house with a known place."""
    from sae.dictionaries.sae import SAE, SAEConfig

    generator = torch.Generator().manual_seed(2)
    W_enc, b_enc = torch.randn(D_IN, D_SAE, generator=generator), torch.randn(D_SAE)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    threshold = torch.rand(D_SAE, generator=generator) if activation == "jumprelu" else None
    made_of = {"kind": "lm", "lm": {"name": "tiny"}, "corpus": {"name": "news"},
               "point": "resid.4", "ctx": 128}  # fmt: skip
    return SAE(
        0.4 * W_enc, b_enc, W_dec, torch.randn(D_IN, generator=generator), threshold=threshold,
        config=SAEConfig("l1", activation, D_IN, D_SAE, K if "topk" in activation else None),
        metadata={"activations": made_of},
    )  # fmt: skip


def same(sae, x, f, x_hat, norms):
    assert 0.02 < (f > 0).float().mean() < 0.98
    torch.testing.assert_close(sae.encode(x), f * norms, **TOLERANCE)
    torch.testing.assert_close(sae(x), x_hat, **TOLERANCE)


SAE_LENS = ["standard", "topk", "abstopk", "jumprelu", "gated"]


@pytest.mark.parametrize("subtract", [True, False], ids=["x_minus_b_dec", "x"])
@pytest.mark.parametrize("word", SAE_LENS)
@torch.no_grad()
def test_from_sae_lens(word, subtract, x, tmp_path):
    from sae_lens import saes

    from sae.artifacts import load

    name = {"standard": "StandardSAE", "topk": "TopKSAE", "abstopk": "AbsTopKSAE",
            "jumprelu": "JumpReLUSAE", "gated": "GatedSAE"}[word]  # fmt: skip
    more = {"k": K} if "topk" in word else {}
    config = getattr(saes, f"{name}Config")(
        d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=subtract, **more
    )
    config.metadata.hook_name = "blocks.3.hook_mlp_out"
    theirs = getattr(saes, name)(config)
    shake(theirs)
    if "topk" in word:
        theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
    theirs.save_model(tmp_path / "theirs")
    sae = load(tmp_path / "theirs")
    assert sae.metadata["origin"]["point"] == "mlp_out.3"
    same(sae, x, theirs.encode(x), theirs(x), theirs.W_dec.norm(dim=1))


@pytest.mark.parametrize("by_norm", [True, False])
@torch.no_grad()
def test_from_sae_lens_batchtopk(by_norm, x, tmp_path):
    """Its training SAE selects over a batch; what it saves for inference has a threshold."""
    from sae_lens import saes

    from sae.artifacts import load

    config = saes.BatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, rescale_acts_by_decoder_norm=by_norm
    )
    training = saes.BatchTopKTrainingSAE(config)
    shake(training)
    training.topk_threshold.fill_(0.6)
    training.save_model(tmp_path / "checkpoint")
    checkpoint = load(tmp_path / "checkpoint")
    training.save_inference_model(tmp_path / "inference")  # may change its weights
    theirs = saes.SAE.load_from_disk(tmp_path / "inference")
    assert theirs.cfg.architecture() == "jumprelu"
    sae = load(tmp_path / "inference")
    same(sae, x, theirs.encode(x), theirs(x), theirs.W_dec.norm(dim=1))
    torch.testing.assert_close(checkpoint.encode(x), sae.encode(x), **TOLERANCE)
    torch.testing.assert_close(checkpoint(x), sae(x), **TOLERANCE)


@torch.no_grad()
def test_from_a_scaled_checkpoint_of_sae_lens(x, tmp_path):
    from sae_lens import saes
    from sae_lens.training.activation_scaler import ActivationScaler

    from sae.artifacts import load

    config = saes.StandardSAEConfig(
        d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in"
    )
    theirs = saes.StandardSAE(config)
    shake(theirs)
    theirs.save_model(tmp_path / "theirs")
    ActivationScaler(scaling_factor=1.7).save(str(tmp_path / "theirs" / "activation_scaler.json"))
    theirs.fold_activation_norm_scaling_factor(1.7)
    sae = load(tmp_path / "theirs")
    same(sae, x, theirs.encode(x), theirs(x), theirs.W_dec.norm(dim=1))


@pytest.mark.parametrize("activation", ["relu", "topk", "abs_topk", "jumprelu"])
@torch.no_grad()
def test_to_sae_lens(activation, x, tmp_path):
    from sae_lens import SAE

    from sae.artifacts import save

    mine = ours(activation)
    theirs = SAE.load_from_disk(save(tmp_path / "out", mine, "saelens"))
    same(mine, x, theirs.encode(x), theirs(x), 1.0)
    assert theirs.cfg.metadata.hook_name == "blocks.4.hook_resid_post"
    assert theirs.cfg.metadata.context_size == 128
    assert theirs.cfg.normalize_activations == "none"


@torch.no_grad()
def test_sae_lens_folds_what_we_wrote_to_the_same(x, tmp_path):
    """`fold_W_dec_norm` has nothing to do on unit rows."""
    from sae_lens import SAE

    from sae.artifacts import save

    mine = ours("jumprelu")
    theirs = SAE.load_from_disk(save(tmp_path / "out", mine, "saelens"), fold_W_dec_norm=True)
    same(mine, x, theirs.encode(x), theirs(x), 1.0)


def dense(output):
    values, indices, pre = output
    return torch.zeros_like(pre).scatter(-1, indices, values.to(pre.dtype))


@torch.no_grad()
def test_from_sparsify(coder, x, tmp_path):
    from sae.artifacts import load

    theirs = coder[1]()
    theirs.save_to_disk(tmp_path / "layers.4")
    sae = load(tmp_path / "layers.4")
    assert sae.metadata["origin"]["point"] == "resid.4"
    same(sae, x, dense(theirs.encode(x)), theirs(x).sae_out, 1.0)


@torch.no_grad()
def test_to_sparsify(coder, x, tmp_path):
    from sae.artifacts import save

    mine = ours("topk")
    theirs = coder[0].load_from_disk(save(tmp_path / "out", mine, "sparsify"))
    same(mine, x, dense(theirs.encode(x)), theirs(x).sae_out, 1.0)


@pytest.mark.parametrize(
    "word",
    ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
     "BatchTopKSAE"],
)  # fmt: skip
@torch.no_grad()
def test_from_dictionary_learning(dl, word, x, tmp_path):
    from sae.artifacts import load

    classes, _ = dl
    topk = word in ("AutoEncoderTopK", "BatchTopKSAE")
    theirs = classes[word](D_IN, D_SAE, **({"k": K} if topk else {}))
    shake(theirs)
    if topk:
        theirs.decoder.weight.div_(theirs.decoder.weight.norm(dim=0, keepdim=True))
        theirs.threshold.fill_(0.5)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": word, "k": K}, "buffer": {"ctx_len": 128}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = load(tmp_path)
    W_dec = theirs.W_dec if word == "JumpReluAutoEncoder" else theirs.decoder.weight.T
    same(sae, x, theirs.encode(x), theirs(x), W_dec.norm(dim=1))


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@torch.no_grad()
def test_to_dictionary_learning(dl, activation, x, tmp_path):
    from sae.artifacts import save

    mine = ours(activation)
    folder = save(tmp_path / "out", mine, "dictionary_learning")
    theirs, config = dl[1](str(folder), device="cpu")
    same(mine, x, theirs.encode(x), theirs(x), 1.0)
    assert config["trainer"]["layer"] == 4


D_OUT = 10
TRANSCODERS = ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"]


@pytest.mark.parametrize("word", TRANSCODERS)
@torch.no_grad()
def test_transcoders_of_sae_lens_both_ways(word, x, tmp_path):
    from sae_lens import saes

    from sae.artifacts import load, save
    from sae.artifacts.places import ends_of

    module = sys.modules["sae_lens.saes.transcoder"]
    config = getattr(module, f"{word}Config")(
        d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, apply_b_dec_to_input=False
    )
    theirs = getattr(module, word)(config)
    shake(theirs)
    theirs.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    theirs.cfg.metadata.hook_name_out = "blocks.4.hook_mlp_out"
    theirs.save_model(tmp_path / "theirs")
    sae = load(tmp_path / "theirs")
    assert (sae.d_in, sae.d_out, sae.W_skip is not None) == (D_IN, D_OUT, "Skip" in word)
    assert tuple(map(str, ends_of(sae))) == ("resid.3", "mlp_out.4")
    norms = theirs.W_dec.norm(dim=1)
    same(sae, x, theirs.encode(x), theirs(x), norms)
    again = saes.SAE.load_from_disk(save(tmp_path / "ours", sae, "saelens"))
    assert type(again) is type(theirs)
    same(sae, x, again.encode(x), again(x), 1.0)
    assert again.cfg.metadata.hook_name_out == "blocks.4.hook_mlp_out"


@pytest.mark.parametrize(("transcode", "skip"), [(True, False), (True, True), (False, True)])
@torch.no_grad()
def test_transcoders_of_sparsify(coder, transcode, skip, x, tmp_path):
    from sae.artifacts import load
    from sae.errors import ArtifactError
    from sae.language.names import read_name

    settings = sys.modules["sparsify.config"].SparseCoderConfig
    theirs = coder[0](
        D_IN, settings(num_latents=D_SAE, k=K, transcode=transcode, skip_connection=skip),
        dtype=torch.float32,
    )  # fmt: skip
    shake(theirs)
    theirs.set_decoder_norm_to_unit_norm()
    theirs.save_to_disk(tmp_path / "layers.4.mlp")
    sae = load(tmp_path / "layers.4.mlp")
    assert (sae.config.d_out, sae.W_skip is not None) == (D_IN if transcode else None, skip)
    # which point that is depends on the LM
    hook = sae.metadata["origin"]["hook_out" if transcode else "hook"]
    assert str(read_name(hook, "llama")[0]) == "mlp_out.4"
    same(sae, x, dense(theirs.encode(x)), theirs(x).sae_out, 1.0)
    theirs.W_dec *= torch.linspace(1, 2, D_SAE)[:, None]
    theirs.save_to_disk(tmp_path / "free")
    with pytest.raises(ArtifactError, match="lengths from 1 to 2. TopK ignores"):
        load(tmp_path / "free")
