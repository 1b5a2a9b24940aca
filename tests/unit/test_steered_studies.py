"""Studies of steering out of the cache: what they are kept under, and what a kill leaves."""

import json
import math

import pytest
from _features import CTX, POINT, placed_on
from _steering import Z_LATENT, at_home, csv_file, home, placed, settings, text_file  # noqa: F401

from sae.activations.counted import Counted, RowRule
from sae.activations.sources import LMActivations
from sae.evals.steer import SteerEval
from sae.features import steered_studies
from sae.provenance import cache_dir


@pytest.mark.slow
def test_how_many_texts_are_written_at_once_changes_nothing(placed, settings, monkeypatch):  # noqa: F811
    """Nothing is taken from the cache, where the second run would find the texts of the first."""
    monkeypatch.setattr(steered_studies, "_kept", lambda identity, steps, advance, make: make())
    asked = settings | {"kl": [0.3, 1.0], "temperature": 1.0}
    first, second = (
        SteerEval(**asked | {"batch_texts": size, "batch_contexts": size}).run(placed).tables
        for size in (1, 7)
    )
    assert first["texts"].rows() == second["texts"].rows()
    rows = (
        [value for row in tables["arms"].rows() for value in row.values() if type(value) is float]
        for tables in (first, second)
    )
    assert next(rows) == pytest.approx(next(rows), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_texts_of_a_run_that_keeps_position_0_are_its_own(
    placed, settings, monkeypatch, tiny_source, random_corpus  # noqa: F811
):  # fmt: skip
    """Same LM, point, text and rule: all arms are pushed at one position more."""
    keeping = LMActivations(
        tiny_source("gpt2"), random_corpus(), POINT, tokens=4096, val_tokens=256,
        test_tokens=1024, ctx=CTX, dtype="float32", keep_first=True,
    )  # fmt: skip
    keeping.prepare()
    sizes = []
    for source in (placed.source, keeping):
        every_row = Counted(RowRule("keep", None), (), {str(POINT): math.inf})
        monkeypatch.setattr(source, "counted", every_row)
        found = SteerEval(**settings).run(placed_on(source, placed.sae))
        sizes.append({row["arm"]: row["size"] for row in found.tables["arms"].rows()})
    for arm in ("feature", "DiffMean", "noise"):
        assert sizes[0][arm] != sizes[1][arm]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(placed, settings, monkeypatch):  # noqa: F811
    asked = settings | {"features": [Z_LATENT, 3], "seed": 1}

    def content(result):
        found = result.to_json()
        found["details"].pop("seconds")
        tables = {name: table.rows() for name, table in result.tables.items()}
        return json.dumps([found["metrics"], found["details"], tables])

    study, calls = steered_studies.study_feature, []

    def killed(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt("killed")
        return study(*given)

    monkeypatch.setattr(steered_studies, "study_feature", killed)
    with pytest.raises(KeyboardInterrupt, match="killed"):
        SteerEval(**asked).run(placed)
    first = content(SteerEval(**asked).run(placed))
    assert len(calls) == 3  # the first feature was not measured again
    for file in (cache_dir() / "steering").glob("*.json"):
        file.unlink()
    assert content(SteerEval(**asked).run(placed)) == first
    assert content(SteerEval(**asked).run(placed)) == first
