"""Effects of ablating latents: which, what is kept, and what the pages are told."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from _features import make_sae, placed_on, source
from test_dashboard import content, unpack

from sae.errors import ConfigError
from sae.evals.dashboard import DashboardEval
from sae.features import ablated as effects
from sae.features import records
from sae.features.effects import ablate, strongest
from sae.reports.pages import write_pages
from sae.types import Ends, Point

__all__ = ["source"]  # a fixture


@pytest.fixture
def one(source):
    return placed_on(source, make_sae(source))


@pytest.mark.slow
def test_an_effect_is_measured_once_and_shown_on_its_page(one, tmp_path, monkeypatch):
    one.name = "outputs/mine"
    result = DashboardEval(ablate=(5, 2)).run(one)
    found = records(one)
    measured = effects.known(found)
    assert list(measured) == ["2", "5"]
    record = found[5]
    expected = ablate(one, one.lm, record, strongest(record, 10))
    falling = torch.sort(expected.logits[: len(found.text.vocabulary)]).indices
    rising = falling.flip(0)
    assert measured["5"].lowered.ids.tolist() == falling[:15].tolist()
    assert measured["5"].raised.ids.tolist() == rising[:15].tolist()
    np.testing.assert_allclose(measured["5"].raised.values, expected.logits[rising[:15]], rtol=1e-5)
    rows = {row["latent"]: row for row in result.tables["ablated"].rows()}
    assert list(rows) == ["5", "2"]
    assert rows["5"]["kl"] == pytest.approx(expected.kl)
    assert rows["5"]["kl_random"] == pytest.approx(expected.kl_random)
    assert rows["5"]["positions"] == expected.positions

    write_pages(result, tmp_path / "a")
    chunk = content(tmp_path / "a/data/latents-00000.js")
    place = {name: i for i, name in enumerate(found.latents)}
    assert unpack(chunk["lowered_ids"][place["5"]]).tolist() == falling[:15].tolist()
    kl, _, positions, contexts = unpack(chunk["effect"][place["5"]])
    assert kl == pytest.approx(expected.kl)
    assert (positions, contexts) == (expected.positions, 10)
    assert chunk["effect"][place["7"]] == chunk["raised_ids"][place["7"]] == ""
    known = unpack(content(tmp_path / "a/data/vocabulary.js")["ids"])
    assert set(falling[:15].tolist()) <= set(known.tolist())
    command = content(tmp_path / "a/data/index.js")["command"]
    assert command == "python evaluate.py run=outputs/mine 'eval=[dashboard]'"

    # what is known is not measured again; what is damaged is; later dashboards have it, too
    monkeypatch.setattr(effects, "ablate", None)
    DashboardEval(ablate=(5,)).run(one)
    write_pages(DashboardEval().run(one), tmp_path / "b")
    assert content(tmp_path / "b/data/latents-00000.js") == chunk
    file = found.folder / "effects-10/5.json"
    file.write_text(file.read_text().replace('"kl": 0', '"kl": 1'))
    assert list(effects.known(found)) == ["2"]
    with pytest.raises(TypeError):
        DashboardEval(ablate=(5,)).run(one)


def test_a_number_chooses_by_hash_and_a_list_names(one):
    found = records(one)
    hashes = sorted(found.indices, key=lambda i: sha256(str(i).encode()).hexdigest())
    assert effects.chosen(found, 3) == [str(i) for i in hashes[:3]]
    assert len(effects.chosen(found, 10**6)) == len(found)
    assert effects.chosen(found, [7, "3"]) == ["7", "3"]
    for silent in (47, 48, "-1", "x"):  # 47 never fires, 48 is not there, the code has no signs
        with pytest.raises(ConfigError, match=r"eval\.dashboard\.ablate"):
            effects.chosen(found, [silent])


def test_an_sae_of_several_points_is_refused_before_the_passes(one, source, monkeypatch):
    monkeypatch.setattr("sae.evals.dashboard.records", None)
    source.ends = Ends.at(Point("resid", 0), Point("resid", 1))
    with pytest.raises(ConfigError, match="one point"):
        DashboardEval(ablate=1).run(one)
