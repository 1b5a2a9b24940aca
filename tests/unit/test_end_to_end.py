"""End-to-end training: values and gradients of the loss, order of contexts, what is refused."""

import pytest
import torch

from sae.activations.contexts import ContextDataModule
from sae.activations.from_config import lm_activations
from sae.dictionaries import build_dictionary
from sae.errors import ConfigError
from sae.functional import prediction_mask
from sae.training.end_to_end import EndToEndModule, EndToEndSettings
from sae.training.from_config import build_module
from sae.training.module import RunLength, SAEModule
from sae.types import Ends

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 60}
COUNTS = {"tokens": 1280, "val_tokens": 320, "test_tokens": 640, "ctx": 32, "dtype": "float32",
          "val_fraction": 0.1, "test_fraction": 0.2, "stream": True}  # fmt: skip
ENDS = ("resid.1", "mlp_in.1->mlp_out.1", "resid.0+2")


def prepared(where, **changes):
    source = lm_activations(LM, TEXT, Ends.parse(where), COUNTS | changes)
    source.prepare()
    return ContextDataModule(source, batch_size=100, epochs=2)


def module_of(data, settings, *, kind=EndToEndModule, word="l1"):
    ends, widths = data.source.ends, data.widths
    dictionary = build_dictionary(
        {"architecture": word, "dict_ratio": 2, "l1": 1e-2},
        d_in=widths[0] if ends.pair else data.d_in,
        d_out=widths[1] if ends.pair else None,
        widths=widths if word == "crosscoder" else (),
        mean=data.mean * data.scale,
    )
    return kind(
        dictionary, length=RunLength(data.steps, data.batch_size), scale=data.scale,
        ends=ends, load_lm=data.source.load_lm, settings=EndToEndSettings(**settings),
        keep_first=data.source.specs["train"].keep_first,
    )  # fmt: skip


@pytest.fixture
def at_full_penalty(monkeypatch):
    """A module outside of a trainer has no steps to count."""
    from sae.dictionaries.step import NOMINAL

    monkeypatch.setattr(SAEModule, "_state", lambda self: NOMINAL)


@pytest.mark.slow
@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("where", ENDS)
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_losses_equal_a_slow_loop(tiny_lm, at_full_penalty, where, loss, keep_first):
    """Captured, encoded and spliced by hand, one prediction after the other."""
    data = prepared(where, keep_first=keep_first)
    word = "crosscoder" if "+" in where else "l1"
    settings = {"loss": loss, "weight": 2.0, "reconstruction": 0.5}
    module = module_of(data, settings, word=word)
    batch = next(iter(data.train_dataloader()))
    x, output = module.output(batch)

    lm, ends, first = tiny_lm("llama"), data.source.ends, 0 if keep_first else 1
    captured = lm.capture(batch.tokens, ends.points)
    rows = torch.cat([captured[point] for point in ends.points], -1)[:, first:]
    torch.testing.assert_close(x, rows.flatten(0, 1) * data.scale)
    sae = module.dictionary.folded(data.scale)
    x_hat = sae(rows[..., : sae.d_in])
    put = {}
    for i, point in enumerate(ends.writes):
        value = captured[point].clone()
        width = value.shape[-1]
        value[:, first:] = x_hat[..., i * width : (i + 1) * width]
        put[point] = lambda _, value=value: value
    spliced, clean = lm.logits(batch.tokens, put).double(), lm.logits(batch.tokens).double()
    terms = []
    for c in range(len(batch.tokens)):
        for t in range(first, batch.tokens.shape[1] - 1):
            if batch.document[c, t] != batch.document[c, t + 1]:
                continue
            p, q = clean[c, t].log_softmax(-1), spliced[c, t].log_softmax(-1)
            kl = (p.exp() * (p - q)).sum()
            terms.append(kl if loss == "kl" else -q[batch.tokens[c, t + 1]])
    assert len(terms) == int(prediction_mask(batch.document, keep_first).sum())
    expected = {
        loss: 2 * torch.stack(terms).mean().float(),
        "reconstruction": module.dictionary.training_output(x).terms["reconstruction"] / 2,
        "sparsity": module.dictionary.training_output(x).terms["sparsity"],
    }
    assert output.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.terms[name], value, atol=2e-6, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("where", ENDS)
def test_gradients_are_the_slope_of_the_loss_and_reach_the_sae_alone(at_full_penalty, where):
    data = prepared(where)
    word = "crosscoder" if "+" in where else "l1"
    module = module_of(data, {"loss": "kl", "weight": 100.0}, word=word)
    module.dictionary.b_enc.data += 10.0  # all latents fire: no kink within a step of any direction
    batch = next(iter(data.train_dataloader()))

    def loss():
        return torch.stack(list(module.output(batch)[1].terms.values())).sum()

    loss().backward()
    assert all(p.grad is None and not p.requires_grad for p in module.lm.model.parameters())
    assert "reconstruction" not in module.output(batch)[1].terms
    for name in ("b_dec", "W_dec", "encoder_rows"):
        parameter = getattr(module.dictionary, name)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        step = 1e-1 / direction.norm()
        with torch.no_grad():
            parameter += step * direction
            above = loss().item()
            parameter -= 2 * step * direction
            below = loss().item()
            parameter += step * direction
        slope = (above - below) / (2 * step.item())
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=0.01, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "trained"), [([], False), (["true"], True)])
def test_no_squared_error_trains_the_decoder_of_a_gated_sae(at_full_penalty, words, trained):
    from train import compose

    words = [f"sae.gate_trains_decoder={word}" for word in words]
    data = prepared("resid.1")
    module = build_module(compose(["experiment=e2e", "sae=gated", *words]), data)
    terms = module.output(next(iter(data.train_dataloader())))[1].terms
    (terms["gate"] + terms["sparsity"]).backward()
    assert module.dictionary.encoder_rows.grad.any()
    assert (module.dictionary.W_dec.grad is not None) == trained


def test_the_lm_is_no_part_of_the_module(at_full_penalty):
    data = prepared("resid.1")
    module = module_of(data, {})
    module.output(next(iter(data.train_dataloader())))
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"dictionary", "tokens_since_fired", "revived"}


def test_every_epoch_reads_every_context_once_and_any_step_is_reached():
    data = prepared("resid.1")
    assert (data.contexts, data.batch_size, data.steps) == (3, 93, 2 * 40 // 3)
    stream = [i for step in range(data.steps) for i in data._chosen(step).tolist()]
    assert sorted(stream[:40]) == list(range(40))
    assert len(set(stream[40:])) == len(stream[40:]) == 38
    assert stream[:38] != stream[40:78]
    fresh = prepared("resid.1")
    assert fresh._chosen(20).tolist() == stream[60:63]
    store = data.source.store("train")
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps
    assert batches[20].tokens.tolist() == store.tokens[stream[60:63]].tolist()
    assert batches[20].document.tolist() == store.document[stream[60:63]].tolist()
    assert len(batches[20]) == 93


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.batch_size=16"], "less than a context, which has 31 vectors"),
        (["e2e.loss=mse"], "one of kl, ce"),
        (["e2e.weight=0"], "above 0"),
        (["e2e.reconstruction=-1"], "at least 0"),
    ],
)
def test_settings_that_cannot_be_are_errors(words, message, tmp_path):
    from train import compose, train

    with pytest.raises(ConfigError, match=message):
        train(compose(["debug=tiny", "experiment=e2e", "sae=topk", "k=4", *words]), tmp_path)


def test_own_activations_cannot_be_trained_end_to_end(tmp_path):
    import numpy as np

    from train import compose, train

    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(400, 8)).astype("f4"))
    words = ["activations=folder", f"activations.path={tmp_path}", "sae=topk", "k=4",
             "e2e={loss: kl}", "logger=none"]  # fmt: skip
    with pytest.raises(ConfigError, match="these activations come without one"):
        train(compose(words), tmp_path / "run")
