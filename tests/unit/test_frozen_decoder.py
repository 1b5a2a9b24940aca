"""The frozen random decoder, a control: what moves, what is refused, what it costs."""

from functools import cache

import pytest
import torch
from _architectures import CASES, UNTIED
from _architectures import config_of as sae_of

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.dictionaries import ARCHITECTURES
from sae.errors import ConfigError
from sae.functional import fvu
from sae.training.from_config import build_module, check_settings

pytestmark = pytest.mark.slow

RESAMPLE = {"at_tokens": [], "dead_after_tokens": "10%", "sample_tokens": 100}


def config_of(word, frozen=True, **resample):
    frozen = {} if frozen is None else {"frozen_decoder": frozen}
    return {
        "sae": sae_of(word, **frozen),
        "optimizer": {"lr": 1e-2},
        "resample": RESAMPLE | resample,
        "trainer": {"kernels": "auto", "batch_size": 32, "devices": 1, "accelerator": "cpu"},
        "activations": {"kind": "lm", "layer": 4},
        "seed": 0,
    }  # fmt: skip


def data_of():
    """Vectors of few active directions, so that learning these pays."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(24, 12, generator=generator), dim=1)
    f = torch.rand(1600, 24, generator=generator) * (
        torch.rand(1600, 24, generator=generator) < 0.1
    )
    data = ActivationDataModule(TensorActivations(f @ atoms + 0.1), batch_size=32, epochs=2)
    data.prepare_data()
    return data


def trained(word, frozen, **resample):
    import lightning as L

    data = data_of()
    module = build_module(config_of(word, frozen, **resample), data)
    start = {name: value.clone() for name, value in module.dictionary.state_dict().items()}
    trainer = L.Trainer(
        max_steps=data.steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, start, data


@cache
def plain(word, frozen):
    return trained(word, frozen)


@pytest.mark.parametrize("word", UNTIED)
def test_a_frozen_decoder_stays_to_the_last_bit(word):
    module, start, data = plain(word, frozen=True)
    dictionary = module.dictionary
    assert torch.equal(dictionary.W_dec, start["W_dec"])
    assert not torch.equal(dictionary.encoder_rows, start["encoder_rows"])
    assert not torch.equal(dictionary.b_dec, start["b_dec"])
    folded = dictionary.folded(data.scale)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(36))


@pytest.mark.parametrize("word", ["l1", "topk", "batch_topk"])
def test_a_frozen_decoder_reconstructs_worse(word):
    frozen, _, data = plain(word, frozen=True)
    free, start, _ = plain(word, frozen=False)
    assert not torch.equal(free.dictionary.W_dec, start["W_dec"])
    x = data.rows("train").read(0).float()
    with torch.no_grad():
        frozen_fvu, free_fvu = (
            fvu(x, m.dictionary(x * data.scale).float() / data.scale) for m in (frozen, free)
        )
    assert free_fvu < frozen_fvu


def test_worst_example_leaves_a_frozen_decoder_alone():
    module, start, _ = trained(
        "topk", True, at_tokens=["30%", "60%"], dead_after_tokens=1, strategy="worst_example"
    )
    assert module.revived > 0
    assert torch.equal(module.dictionary.W_dec, start["W_dec"])


def test_what_cannot_be_frozen_is_refused_before_the_harvest():
    check_settings(config_of("topk"))
    with pytest.raises(ConfigError, match="sae.frozen_decoder is not known"):
        check_settings(config_of("tied"))
    with pytest.raises(ConfigError, match="Use resample=none"):
        check_settings(config_of("topk", at_tokens=["30%"]))
    worst = {"at_tokens": ["30%"], "strategy": "worst_example"}
    with pytest.raises(ConfigError, match="they are one matrix"):
        check_settings(config_of("tied", frozen=None, **worst))
    check_settings(config_of("l1", **worst))


@pytest.mark.parametrize("word", sorted(CASES))
def test_every_untied_one_offers_it(word):
    fields = ARCHITECTURES[word].Config.model_fields
    assert ("frozen_decoder" in fields) == (word in UNTIED)
