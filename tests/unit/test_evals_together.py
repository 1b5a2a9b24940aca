"""Several SAEs spliced into a tiny LM at once."""

import pytest
import torch

from sae.activations.from_config import lm_activations
from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE, source_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.from_config import check_together, measure, run_evals
from sae.functional import next_token_cross_entropy, prediction_mask
from sae.reports.results import result_file
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


def placed(saes):
    found = [PlacedSAE(sae, source_of(sae)) for sae in saes]
    for one in found:
        assert isinstance(one.source, LMActivations)
        one.prepare()
    return found


def test_all_stand_in_at_once():
    saes = [sae_at(point) for point in POINTS]
    subjects = placed(saes)
    sources = [one.source for one in subjects]
    result = measure(subjects, SETTINGS | {"core": {}})
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
    again = measure(subjects, SETTINGS)["downstream"]  # ablations from the store
    assert again.metrics == result["downstream"].metrics


def test_the_file_says_who_was_there(tmp_path):
    first, second = placed([sae_at(point) for point in POINTS[:2]])

    def file(subjects):
        result = measure(subjects, SETTINGS)["downstream"]
        found = result_file(tmp_path, result, subjects[0])
        result.save(found)
        return found.name

    assert file([first, second]) == "downstream-together=resid.1+mlp.1.json"
    assert file([first, second]) == "downstream-together=resid.1+mlp.1.json"
    other = sae_at(POINTS[1])
    other.metadata["seed"] = 5
    assert file([first, PlacedSAE(other, second.source)]).startswith(
        "downstream-together=resid.1+mlp.1-"
    )
    assert file([first, second]) == "downstream-together=resid.1+mlp.1.json"


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
        check_together([PlacedSAE(sae, source_of(sae)) for sae in saes()], evals)
