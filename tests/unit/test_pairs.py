"""Transcoders and crosscoders: aligned rows, losses, folding, splicing, and what is refused."""

import math

import pytest
import torch
from _architectures import RATIO, TRANSCODERS, config_of, expected_terms

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.activations.from_config import ends_of, lm_activations, points_of
from sae.activations.rows import JoinedRows
from sae.artifacts.placed import source_of
from sae.dictionaries import ARCHITECTURES, build_dictionary
from sae.dictionaries.sae import SAE, SAEConfig
from sae.dictionaries.step import StepState
from sae.errors import ConfigError, SiteError, StoreError
from sae.evals import CoreEval, DownstreamEval
from sae.evals.from_config import run_evals
from sae.training.resampling import resample
from sae.training.revival import Drawn
from sae.types import Ends, Point

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 60}
COUNTS = {"tokens": 1280, "val_tokens": 320, "test_tokens": 640, "ctx": 32, "dtype": "float32",
          "val_fraction": 0.1, "test_fraction": 0.2}  # fmt: skip
EVERY_ROW = {"special": "keep", "max_norm": None}
PAIR = Ends.parse("mlp.1->mlp_out.1")
LAYERS = Ends.parse("resid.0+1+2")
D_IN, D_OUT = 12, 7


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def transcoder(word="l1", *, mean=None, seed=0, **changes):
    config = config_of(word, **changes)
    return build_dictionary(config, d_in=D_IN, d_out=D_OUT, mean=mean, seed=seed)


def crosscoder(widths=(5, 7), **changes):
    config = {"architecture": "crosscoder", "dict_ratio": RATIO, "l1": 1e-2} | changes
    return build_dictionary(config, d_in=sum(widths), widths=widths)


def shaken(dictionary):
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * numbers(*parameter.shape, seed=len(parameter))
    dictionary.after_step()
    return dictionary


@pytest.fixture(params=TRANSCODERS)
def word(request):
    return request.param


@pytest.mark.parametrize(
    "text", ["resid.4", "mlp_in.4->mlp_out.4", "resid.2+4+8", "resid.2+mlp_out.2+4"]
)
def test_ends_read_back_what_they_say(text):
    assert str(Ends.parse(text)) == text


def test_ends_know_what_they_are():
    assert Ends.parse("resid.4") == Ends.at(Point("resid", 4))
    assert Ends.parse("resid.4").point == Point("resid", 4)
    assert PAIR.pair
    assert PAIR.point is None
    assert PAIR.points == (Point("mlp", 1), Point("mlp_out", 1))
    assert not LAYERS.pair
    assert LAYERS.points == tuple(Point("resid", layer) for layer in range(3))
    for wrong in ("4", "resid", "resid.2+x", "resid.2->4", "nowhere.1", ""):
        with pytest.raises(SiteError, match="not a point"):
            Ends.parse(wrong)


def test_who_reads_several_layers_is_known_to_the_command_line():
    from conf.effects import JOINING

    assert {name for name, cls in ARCHITECTURES.items() if cls.joins} == set(JOINING)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", [PAIR, LAYERS], ids=str)
def test_a_row_holds_what_the_lm_says_of_one_token(tiny_lm, ends, stream):
    source = lm_activations(LM, TEXT, ends, COUNTS | EVERY_ROW | {"stream": stream})
    source.prepare()
    rows, store, lm = source.split("train"), source.store("train"), tiny_lm("llama")
    captured = lm.capture(torch.from_numpy(store.tokens).long(), ends.points)
    expected = torch.cat([x[:, 1:].flatten(0, 1) for x in captured.values()], dim=1)
    got = torch.cat([rows.read(i) for i in range(rows.num_chunks)])
    torch.testing.assert_close(got, expected)
    assert isinstance(rows, JoinedRows)
    assert rows.stats.mean == pytest.approx(expected.double().mean(0).numpy(), rel=1e-4, abs=1e-5)

    data = ActivationDataModule(source, batch_size=64, normalize="mean_square")
    assert data.widths == tuple(x.shape[-1] for x in captured.values())
    order = torch.cat([order_of(batch / data.scale, expected) for batch in data.train_dataloader()])
    assert len(order) == data.steps * 64
    assert len(order.unique()) > 0.95 * len(order)  # some contexts begin alike
    for part, scale in zip(captured.values(), data.scales, strict=True):
        mean_square = (scale * part[:, 1:]).square().sum(-1).mean().item()
        assert mean_square == pytest.approx(part.shape[-1], rel=1e-4)


def order_of(batch, rows):
    """Which row each vector of a batch is, all columns of it."""
    found = torch.cdist(batch.double(), rows.double()).argmin(1)
    torch.testing.assert_close(batch, rows[found], atol=1e-4, rtol=1e-4)
    return found


def test_streamed_pairs_run_the_lm_once_a_chunk(monkeypatch):
    source = lm_activations(LM, TEXT, PAIR, COUNTS | EVERY_ROW | {"stream": True})
    source.prepare()
    rows = source.split("train")
    for part in rows.parts:
        part._kept.clear()
        part.passes._last = None
    lm, asked = source.load_lm("cpu"), []
    capture = lm.capture
    monkeypatch.setattr(lm, "capture", lambda t, p: asked.append(len(t)) or capture(t, p))
    rows.read(0)
    assert sum(asked) == 1280 // 32


def test_rows_of_other_lengths_are_not_joined():
    sources = [TensorActivations(numbers(n, 4)) for n in (400, 500)]
    for source in sources:
        source.prepare()
    with pytest.raises(StoreError, match="side by side"):
        JoinedRows([source.split("train") for source in sources])


@pytest.mark.parametrize(
    ("word", "changes"), [*((word, {}) for word in TRANSCODERS), ("topk", {"multi_k": True})]
)
def test_the_loss_is_about_the_target(word, changes):
    dictionary = shaken(transcoder(word, skip=True, **changes))
    x, y = (batch := numbers(30, D_IN + D_OUT)).split([D_IN, D_OUT], dim=1)
    dead = torch.arange(dictionary.d_sae) % 5 == 0
    output = dictionary.training_output(batch, StepState(dead=dead))
    y_hat = (x - dictionary.shift) @ dictionary.W_skip + dictionary.b_dec
    y_hat = output.code.dense() @ dictionary.W_dec + y_hat
    torch.testing.assert_close(output.x_hat, y_hat)
    torch.testing.assert_close(
        output.terms, expected_terms(word, dictionary, x, y, output, dead=dead)
    )
    if word in ("l1", "april"):
        total = sum(output.terms.values()).detach()
        torch.testing.assert_close(dictionary.row_losses(batch).mean(), total)


@pytest.mark.parametrize("skip", [False, True])
def test_folded_transcoder_maps_lm_units_to_lm_units(word, skip):
    dictionary = shaken(transcoder(word, skip=skip, mean=numbers(D_IN + D_OUT, seed=3)))
    scale = torch.cat([torch.full((D_IN,), 0.25), torch.full((D_OUT,), 8.0)])
    x = numbers(20, D_IN)
    sae = dictionary.folded(scale)
    torch.testing.assert_close(sae(x / 0.25), dictionary(x) / 8, atol=2e-5, rtol=2e-5)
    assert torch.equal(sae.encode(x / 0.25) != 0, dictionary.encode(x) != 0)
    assert (sae.W_skip is not None) == skip
    assert (sae.d_in, sae.d_out) == (D_IN, D_OUT)


def test_folded_crosscoder_maps_lm_units_to_lm_units():
    dictionary, x = shaken(crosscoder()), numbers(20, 12)
    scale = torch.cat([torch.full((5,), 0.25), torch.full((7,), 8.0)])
    sae = dictionary.folded(scale)
    torch.testing.assert_close(sae(x / scale), dictionary(x) / scale, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(dictionary.d_sae))
    assert dictionary.d_sae == RATIO * 12 / 2  # per dimension of one layer


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_the_crosscoders_penalty_sums_norms_over_layers(kernels):
    dictionary, x = shaken(crosscoder()), numbers(20, 12)
    dictionary.kernels = kernels
    output = dictionary.training_output(x, StepState(0.5))
    penalty = 0.0
    for row in output.code.dense().detach():
        for f, atom in zip(row, dictionary.W_dec.detach(), strict=True):
            penalty += float(f * (atom[:5].norm() + atom[5:].norm()))
    assert output.terms["sparsity"].item() == pytest.approx(0.5 * 1e-2 * penalty / 20, rel=1e-4)


def test_a_transcoder_starts_at_both_means_and_learns_its_skip_connection():
    mean = numbers(D_IN + D_OUT, seed=3)
    dictionary = transcoder("l1", skip=True, mean=mean)
    assert torch.equal(dictionary.shift, mean[:D_IN])
    assert torch.equal(dictionary.b_dec, mean[D_IN:])
    assert not dictionary.W_skip.any()
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(dictionary.d_sae))
    sum(dictionary.training_output(numbers(50, D_IN + D_OUT)).terms.values()).backward()
    for name, parameter in dictionary.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    again, other = transcoder(), transcoder(seed=1)
    assert torch.equal(again.W_dec, transcoder().W_dec)
    assert not torch.equal(again.W_dec, other.W_dec)


@pytest.mark.parametrize("toward", ["input", "residual"])
def test_a_revived_latent_reads_the_input_and_writes_what_is_missed(toward):
    dictionary, batch = shaken(transcoder()), numbers(40, D_IN + D_OUT)
    dead = torch.zeros(dictionary.d_sae, dtype=torch.bool)
    dead[[3, 8]] = True
    x, y = dictionary.split(batch)
    missed = y - (dictionary(x).detach() if toward == "residual" else 0)
    optimizer = torch.optim.Adam(dictionary.parameters())
    generator = torch.Generator().manual_seed(0)
    resample(dictionary, optimizer, dead, lambda: batch, generator, Drawn(toward))
    for latent in (3, 8):
        likeness = torch.nn.functional.cosine_similarity(dictionary.W_dec[latent], missed)
        drawn = int(likeness.argmax())
        assert likeness[drawn].item() == pytest.approx(1, abs=1e-5)
        read = dictionary.encoder_rows[latent]
        centred = x[drawn] - dictionary.shift
        assert torch.nn.functional.cosine_similarity(read, centred, dim=0).item() > 0.9999


def copying(width):
    """x = relu(x) - relu(-x)."""
    eye = torch.eye(width)
    config = SAEConfig("crosscoder", "relu", width, 2 * width)
    return SAE(torch.cat([eye, -eye], 1), torch.zeros(2 * width), torch.cat([eye, -eye]),
               torch.zeros(width), config)  # fmt: skip


def metrics(results, name):
    return {key: one.value for key, one in results[name].metrics.items()}


EVALS = {"core": {"resamples": 20}, "downstream": {"num_tokens": 640, "resamples": 20}}


@pytest.mark.slow
def test_a_transcoder_that_computes_the_projection_changes_nothing(tiny_lm):
    """The skip connection is the LM's own matrix; the latents never fire."""
    source = lm_activations(LM, TEXT, PAIR, COUNTS)
    source.prepare()
    W = tiny_lm("llama").model.get_submodule("model.layers.1.mlp.down_proj").weight.detach().T
    config = SAEConfig("topk", "relu", 128, 4, d_out=32)
    parts = torch.zeros(128, 4), -torch.ones(4), torch.eye(4, 32)
    metadata = {"activations": source.describe()}
    sae = SAE(*parts, torch.zeros(32), config, metadata, W_skip=W.contiguous())
    results = run_evals(sae, source, EVALS)
    downstream = metrics(results, "downstream")
    assert downstream["delta_ce"] == pytest.approx(0, abs=1e-6)
    assert downstream["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics(results, "core")["fvu"] == pytest.approx(0, abs=1e-6)
    assert results["core"].provenance["point"] == "mlp.1->mlp_out.1"
    assert source_of(sae).describe() == source.describe()

    plain = lm_activations(LM, TEXT, Point("mlp_out", 1), COUNTS)
    plain.prepare()
    of_plain = metrics(run_evals(copying(32), plain, EVALS), "downstream")
    for name in ("ce_clean", "ce_zero", "ce_mean"):  # the ablations are at the target
        assert downstream[name] == pytest.approx(of_plain[name], rel=1e-6)

    silent = SAE(*parts, torch.zeros(32), config, W_skip=torch.zeros(128, 32))
    of_silent = metrics(run_evals(silent, source, EVALS), "downstream")
    assert of_silent["ce_sae"] == pytest.approx(downstream["ce_zero"], rel=1e-6)
    assert abs(of_silent["delta_ce"]) > 1e-4


@pytest.mark.slow
def test_a_crosscoder_is_spliced_in_at_all_layers(tiny_lm):
    source = lm_activations(LM, TEXT, LAYERS, COUNTS)
    source.prepare()
    results = run_evals(copying(96), source, EVALS)
    assert metrics(results, "downstream")["kl"] == pytest.approx(0, abs=1e-6)
    assert results["core"].details["layers"].keys() == {"resid.0", "resid.1", "resid.2"}

    one_lost = copying(96)
    one_lost.W_dec[:, 32:64] = 0
    one_lost.b_dec[32:64] = torch.from_numpy(source.split("test").parts[1].stats.mean).float()
    lossy = run_evals(one_lost, source, EVALS)
    layers = lossy["core"].details["layers"]
    assert [layers[f"resid.{i}"]["fvu"] for i in range(3)] == pytest.approx([0, 1, 0], abs=1e-4)
    share = layers["resid.1"]["norm_share"]
    assert share[0] == 0  # a latent of layer 0
    got = metrics(lossy, "downstream")

    # by hand: the last layer comes from the clean pass, so that the lost one does not matter
    assert got["kl"] == pytest.approx(0, abs=1e-6)
    last_lost = copying(96)
    last_lost.b_dec[64:] = 1.0
    lm, store = tiny_lm("llama"), source.store("test")
    tokens = torch.from_numpy(store.tokens).long()

    def changed(x):
        return torch.cat([x[:, :1], x[:, 1:] + 1.0], dim=1)

    logits = lm.logits(tokens, {Point("resid", 2): changed})
    from sae import functional

    mask = functional.prediction_mask(torch.from_numpy(store.document))
    expected = functional.next_token_cross_entropy(logits, tokens, mask).double().mean().item()
    got = metrics(run_evals(last_lost, source, EVALS), "downstream")
    assert got["ce_sae"] == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(got["ce_mean"])


def test_core_and_downstream_say_what_else_is_left_out():
    source = lm_activations(LM, TEXT, LAYERS, COUNTS)
    assert CoreEval.joined
    assert DownstreamEval.joined
    from sae.evals.base import Evaluation
    from sae.evals.from_config import _joined

    class Other(Evaluation):
        name = "other"

        def measure(self, subjects, on):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"resid\.0\+1\+2"):
        _joined({"other": Other()}, source.ends)
    assert list(_joined({"other": Other(), "core": CoreEval()}, source.ends)) == ["core"]


def test_points_and_ends_of_a_configuration():
    pair = {"layer": 1, "site": "mlp_in", "target": "mlp_out"}
    assert points_of(pair) == [Point("mlp_in", 1), Point("mlp_out", 1)]
    assert str(ends_of(pair)) == "mlp_in.1->mlp_out.1"
    assert str(ends_of({"layer": [2, 4], "site": "resid", "target": None})) == "resid.2+4"
    assert str(ends_of({"layer": 2, "site": "resid"})) == "resid.2"  # saved before there were any
    for site, target in (("mlp_out", "mlp_out"), ("resid", "mlp"), ("mlp", "attn_out")):
        with pytest.raises(ConfigError, match="does not come after"):
            ends_of({"layer": 1, "site": site, "target": target})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sae=tied", "site=mlp", "target=mlp_out"], "both ends must be equal"),
        (["sae=lista", "site=mlp", "target=mlp_out"], "both ends must be equal"),
        (["sae=crosscoder", "layer=[0,1]", "site=mlp", "target=mlp_out"], "ends must be equal"),
        (["sae=topk", "k=4", "sae.skip=true"], "needs a target"),
        (["sae=topk", "k=4", "site=mlp_out", "target=mlp"], "does not come after"),
        (["sae=topk", "k=4", "layer=[0,1]"], "One SAE for all layers: sae=crosscoder"),
        (["sae=tied", "sae.skip=true"], "sae.skip is not known"),
        (["sae=pca", "site=mlp", "target=mlp_out"], "fitted to one activation"),
        (["sae=topk", "k=4", "target=nowhere"], "must be one of resid"),
        (["sae=crosscoder", "layer=[0,1]", "l1=[1e-3,1e-2]"], "l1=.* names several SAEs"),
    ],
)
def test_wrong_combinations_are_errors_before_anything_is_harvested(words, message, tmp_path):
    from train import compose, train

    with pytest.raises(ConfigError, match=message):
        train(compose(["debug=tiny", *words]), tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_the_layers_of_a_crosscoder_are_no_sweep():
    from conf.commandline import as_sweep

    words = ["sae=crosscoder", "layer=[2,4,8]", "l1=1e-3"]
    assert as_sweep(words) == words
    several = as_sweep(["sae=crosscoder", "layer=[2,4,8]", "l1=[1e-3,1e-2]"])
    assert several == ["-m", "sae=crosscoder", "layer=[2,4,8]", "l1=0.001,0.01",
                       "launcher=ensemble"]  # fmt: skip
    assert "-m" in as_sweep(["sae=topk", "layer=[2,4,8]"])


def test_a_pair_goes_where_a_library_has_a_name_for_it(tmp_path):
    from sae.artifacts import load, save
    from sae.artifacts.places import ends_of, hook_of, place_of
    from sae.errors import SAEError

    source = lm_activations(LM, TEXT, PAIR, COUNTS)
    sae = transcoder().folded(torch.ones(D_IN + D_OUT), {"activations": source.describe()})
    assert place_of(sae).point is None
    assert place_of(sae).ctx == 32
    assert hook_of(Point("mlp_in", 1)) == "blocks.1.mlp.hook_in"
    with pytest.raises(SAEError, match="another output than its input"):
        save(tmp_path / "out", sae, "dictionary_learning")
    assert tuple(map(str, ends_of(sae))) == ("mlp.1", "mlp_out.1")
    again = load(save(tmp_path / "theirs", sae, "saelens"))
    assert tuple(map(str, ends_of(again))) == ("mlp.1", "mlp_out.1")
    x = torch.randn(5, D_IN)
    torch.testing.assert_close(again(x), sae(x))
