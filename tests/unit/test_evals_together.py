"""Several SAEs spliced into a tiny LM at once."""

import pytest
import torch

from sae.activations.from_config import lm_activations
from sae.activations.sources import LMActivations
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals import together
from sae.evals.build import prepare_test, run_evals, source_of
from sae.evals.names import result_file
from sae.functional import next_token_cross_entropy, prediction_mask
from sae.types import Point

pytestmark = pytest.mark.slow

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 60}
COUNTS = {"tokens": 640, "val_tokens": 320, "test_tokens": 640, "ctx": 32,
          "val_fraction": 0.1, "test_fraction": 0.2}  # fmt: skip
SETTINGS = {"downstream": {"num_tokens": 256, "resamples": 20, "batch_contexts": 3}}
POINTS = (Point("resid", 1), Point("mlp", 1), Point("attn_out", 2))


def sae_at(point: Point, lm=LM, **counts) -> SAE:
    made_of = lm_activations(lm, TEXT, point, COUNTS | counts)
    width = 128 if point.site == "mlp" else 32
    eye = torch.eye(width)
    metadata = {"activations": made_of.describe(), "settings": {"eval": SETTINGS}}
    config = SAEConfig("l1", "relu", width, width)
    return SAE(eye, torch.full((width,), -0.1), eye, torch.zeros(width), config, metadata)


def prepared(saes):
    sources = [source_of(sae) for sae in saes]
    for source in sources:
        assert isinstance(source, LMActivations)
        prepare_test(source)
    return [source for source in sources if isinstance(source, LMActivations)]


def test_all_stand_in_at_once():
    saes = [sae_at(point) for point in POINTS]
    sources = prepared(saes)
    result = together.run(saes, sources, SETTINGS | {"core": {}})
    assert list(result) == ["downstream"]
    got = {name: estimate.value for name, estimate in result["downstream"].metrics.items()}
    store, lm = sources[0].store("test"), sources[0].load_lm("cpu")
    tokens = torch.as_tensor(store.tokens[:8]).long()
    document = torch.as_tensor(store.document[:8]).long()

    def spared(function):
        return lambda x: torch.cat([x[:, :1], function(x[:, 1:])], dim=1)

    means = [torch.as_tensor(source.split("test").stats.mean).float() for source in sources]
    for name, functions in {
        "sae": saes,
        "zero": [torch.zeros_like] * 3,
        "mean": [lambda x, mean=mean: mean.expand_as(x) for mean in means],
    }.items():
        replace = {point: spared(fn) for point, fn in zip(POINTS, functions, strict=True)}
        losses = next_token_cross_entropy(
            lm.logits(tokens, replace), tokens, prediction_mask(document)
        )
        assert got[f"ce_{name}"] == pytest.approx(losses.double().mean().item(), rel=1e-6)
    alone = run_evals(saes[0], sources[0], SETTINGS)["downstream"]
    assert alone.metrics["kl"].value != got["kl"]
    assert "together" not in alone.provenance
    spliced = result["downstream"].provenance["together"]
    assert [entry["point"] for entry in spliced] == ["resid.1", "mlp.1", "attn_out.2"]
    again = together.run(saes, sources, SETTINGS)["downstream"]  # ablations from the store
    assert again.metrics == result["downstream"].metrics


def test_the_file_says_who_was_there(tmp_path):
    saes = [sae_at(point) for point in POINTS[:2]]
    sources = prepared(saes)

    def file(saes, sources):
        result = together.run(saes, sources, SETTINGS)["downstream"]
        found = result_file(tmp_path, result, saes[0], sources[0])
        result.save(found)
        return found.name

    assert file(saes, sources) == "downstream-together=resid.1+mlp.1.json"
    assert file(saes, sources) == "downstream-together=resid.1+mlp.1.json"
    other = sae_at(POINTS[1])
    other.metadata["seed"] = 5
    assert file([saes[0], other], sources).startswith("downstream-together=resid.1+mlp.1-")
    assert file(saes, sources) == "downstream-together=resid.1+mlp.1.json"


@pytest.mark.parametrize(
    ("saes", "evals", "message"),
    [
        (lambda: [sae_at(POINTS[0])], SETTINGS, "no effect on one SAE"),
        (lambda: [sae_at(POINTS[0])] * 2, SETTINGS, "several SAEs at resid.1"),
        (lambda: [sae_at(POINTS[0]), sae_at(POINTS[1], ctx=16)], SETTINGS, "these differ"),
        (lambda: [sae_at(POINTS[0]), sae_at(POINTS[1], {**LM, "seed": 9})], SETTINGS, "differ"),
        (lambda: [sae_at(POINTS[0]), sae_at(POINTS[1])], {"core": {}}, "measures one SAE at a"),
    ],
)
def test_what_does_not_fit_together_says_why(saes, evals, message):
    with pytest.raises(ConfigError, match=message):
        together.check(evals, [source_of(sae) for sae in saes()])
