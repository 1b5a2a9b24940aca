"""Files of latents: what an evaluation found, and another reads."""

import json
import math

import numpy as np
import pytest
from _features import make_sae, placed_on, source
from test_dashboard import content, unpack

from sae.checksums import seal
from sae.errors import ArtifactError, ConfigError
from sae.evals.case_study import CaseStudyEval
from sae.evals.circuit import CircuitEval
from sae.evals.dashboard import DashboardEval
from sae.features.sets import FeatureSet, feature_set, read_features, sae_key
from sae.provenance import content_key, write_json
from sae.reports.pages import write_pages

__all__ = ["source"]  # a fixture


@pytest.fixture
def one(source):
    return placed_on(source, make_sae(source))


def test_a_set_of_latents_as_a_file(one, tmp_path):
    path = tmp_path / "features.json"
    made = feature_set(one, [5, 3], [0.5, -0.25], eval="test")
    made.save(path)
    assert read_features(path, one) == made
    assert made.sae == sae_key(one)
    FeatureSet((1,), (1.0,), "other", "resid.1").save(path)
    with pytest.raises(ConfigError, match=r"holds latents of another SAE \(at resid.1\)"):
        read_features(path, one)
    assert read_features(path).latents == (1,)
    with pytest.raises(ConfigError, match="There is no file"):
        read_features(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "other"}, "is not a lightning-sae.features of version 1"),
        (
            {"latents": [-1]},
            "latents must be whole numbers of at least 0, each with a finite weight",
        ),
        ({"latents": [1, 2]}, "each with a finite weight"),
        ({"weights": None}, "each with a finite weight"),
        ({"weights": ["x"]}, "each with a finite weight"),
        ({"weights": [10**400]}, "each with a finite weight"),
        ({"made_by": 3}, "made_by"),
    ],
)
def test_a_file_that_holds_no_set(tmp_path, changes, match):
    written = FeatureSet((1,), (1.0,), "x", "resid.1").content()
    write_json(tmp_path / "x.json", seal(written | changes))
    with pytest.raises(ArtifactError, match=match):
        read_features(tmp_path / "x.json")


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_json_does_not_have_is_refused(tmp_path, weight):
    """Python reads NaN and Infinity, and pages cannot write them."""
    written = FeatureSet((1,), (weight,), "x", "resid.1").content()
    (tmp_path / "x.json").write_text(json.dumps(written | {"checksum": content_key(written)}))
    with pytest.raises(ArtifactError, match="each with a finite weight"):
        read_features(tmp_path / "x.json")


def test_latents_that_the_sae_lacks_are_refused(one, tmp_path):
    path = tmp_path / "features.json"
    feature_set(one, [1, one.sae.d_sae], [1.0, 2.0]).save(path)
    with pytest.raises(ArtifactError, match="holds latent 48; this SAE has latents 0 to 47"):
        DashboardEval(features=[str(path)]).run(one)


@pytest.mark.slow
def test_a_dashboard_has_a_column_for_each_set(one, tmp_path):
    files = [str(tmp_path / f"{name}.json") for name in "abce"]
    feature_set(one, [5, 3], [0.5, -0.25], eval="ioi", task="ioi").save(tmp_path / "a.json")
    feature_set(one, [2], [4.0], eval="ioi", task="ioi").save(tmp_path / "b.json")
    feature_set(one, [7], [1.0]).save(tmp_path / "c.json")
    feature_set(one, [8], [2.0]).save(tmp_path / "e.json")
    assert write_pages(DashboardEval(features=files).run(one), tmp_path / "page")
    index = content(tmp_path / "page/data/index.js")
    columns = {column["heading"]: unpack(column["numbers"]) for column in index["columns"]}
    assert list(columns) == ["ioi ioi", "ioi ioi #2", "set", "set #2"]
    named = dict(zip(unpack(index["latent"]).astype(str), columns["ioi ioi"].tolist(), strict=True))
    assert {name: value for name, value in named.items() if not np.isnan(value)} == {
        "5": 0.5, "3": -0.25,
    }  # fmt: skip
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ArtifactError):
        DashboardEval(features=[str(tmp_path / "d.json")]).run(one)


@pytest.mark.slow
def test_a_case_study_and_a_circuit_take_the_first_latent(one, tmp_path):
    file = tmp_path / "features.json"
    feature_set(one, [5, 3], [0.5, -0.25]).save(file)
    assert CaseStudyEval(feature=str(file)).run(one).details["latent"] == "5"
    assert CircuitEval(feature=str(file))._root(one) == 5
    feature_set(one, [], []).save(file)
    for evaluation in (CaseStudyEval, CircuitEval):
        with pytest.raises(ConfigError, match="holds no latent"):
            evaluation(feature=str(file)).measure([one, one][: evaluation.least], "test")
