"""Dictionaries against each other: permuted copies, random ones, numpy's correlations, tables."""

import csv
import json

import numpy as np
import pytest
import torch
from _evals import Rows, place
from scipy.optimize import linear_sum_assignment

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, DegenerateInputError
from sae.evals.compare import Compare
from sae.metrics import similarity
from sae.metrics.similarity import match, max_correlation, max_cosine, share_above
from sae.reports import write_pages
from sae.reports.compare import matrix
from sae.tables import read_table

POINT = {"kind": "lm", "point": "resid.4", "stores": {"test": "abc"}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", 7)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae_of(atoms, *, made_of=POINT, activation="relu", bias=-0.5):
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    n, d = atoms.shape
    config = SAEConfig("tied", activation, d, n)
    metadata = {"activations": made_of, "settings": {"sae": {"l1": 1e-3}}}
    return SAE(
        atoms.T.contiguous(), torch.full((n,), bias), atoms, torch.zeros(d), config, metadata
    )


def test_a_permuted_copy_is_found():
    atoms, order = randn(30, 8), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    lengths = 1 + torch.rand(30, 1)
    nearest = max_cosine(atoms, lengths * atoms[order])
    torch.testing.assert_close(nearest.value, torch.ones(30))
    assert torch.equal(order[nearest.index], torch.arange(30))
    matching = match(atoms, lengths * atoms[order])
    assert torch.equal(order[matching.second], matching.first)
    torch.testing.assert_close(matching.cosine, torch.ones(30))


def test_signs_count_unless_they_mean_nothing():
    atoms = randn(10, 20)
    assert max_cosine(atoms, -atoms).value.max() < 0.9
    torch.testing.assert_close(max_cosine(atoms, -atoms, absolute=True).value, torch.ones(10))
    torch.testing.assert_close(match(atoms, -atoms, absolute=True).cosine, torch.ones(10))


def test_max_cosine_is_that_of_a_slow_loop():
    a, b = randn(20, 5), randn(33, 5, seed=1)
    for j, (value, index) in enumerate(zip(*max_cosine(a, b), strict=True)):
        cosines = [float(a[j] @ other / a[j].norm() / other.norm()) for other in b]
        assert float(value) == pytest.approx(max(cosines), abs=1e-5)
        assert int(index) == int(np.argmax(cosines))


def test_matching_is_one_to_one_and_best():
    a, b = randn(20, 5), randn(33, 5, seed=1)
    matching = match(a, b)
    assert len(set(matching.second.tolist())) == len(matching.first) == 20
    unit = torch.nn.functional.normalize
    cosines = (unit(a, dim=1) @ unit(b, dim=1).T).double().numpy()
    rows, columns = linear_sum_assignment(-cosines)
    assert float(matching.cosine.sum()) == pytest.approx(cosines[rows, columns].sum(), abs=1e-4)
    assert matching.cosine.mean() <= max_cosine(a, b).value.mean()
    swapped = match(b, a)
    assert float(swapped.cosine.sum()) == pytest.approx(float(matching.cosine.sum()), abs=1e-4)


@pytest.mark.parametrize("dimensions", [16, 64])
def test_random_dictionaries_have_the_max_cosine_that_chance_gives(dimensions):
    """Against a simulation with the marginal law of one coordinate of a random unit vector."""
    n, rng = 300, np.random.default_rng(0)
    mmcs = float(max_cosine(randn(n, dimensions), randn(n, dimensions, seed=1)).value.mean())
    cosines = 2 * rng.beta((dimensions - 1) / 2, (dimensions - 1) / 2, (4000, n)) - 1
    assert mmcs == pytest.approx(cosines.max(axis=1).mean(), abs=0.01)


def test_correlation_is_numpys():
    x = randn(500, 6)
    a, b = sae_of(randn(10, 6)), sae_of(randn(15, 6, seed=1))
    nearest = max_correlation(a.encode, b.encode, lambda: x.split(64))
    full = np.corrcoef(a.encode(x).T.double().numpy(), b.encode(x).T.double().numpy())[:10, 10:]
    np.testing.assert_allclose(nearest.value.numpy(), full.max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(nearest.index.numpy(), full.argmax(axis=1))
    other = max_correlation(a.encode, b.encode, lambda: x.split(64), absolute=True)
    np.testing.assert_allclose(other.value.numpy(), np.abs(full).max(axis=1), atol=1e-5)


def test_latents_that_never_vary_correlate_with_nothing():
    def encode(x):
        return torch.cat([x, torch.full((len(x), 1), 3.3), torch.zeros(len(x), 1)], dim=1)

    x = randn(100, 4) + 1000  # a mean that float32 sums would not survive
    nearest = max_correlation(encode, encode, lambda: [x])
    torch.testing.assert_close(nearest.value[:4], torch.ones(4), atol=1e-4, rtol=0)
    assert nearest.index[:4].tolist() == [0, 1, 2, 3]
    assert nearest.value[4:].isnan().all()
    with pytest.raises(DegenerateInputError, match="No latent varies"):
        max_correlation(encode, lambda x: torch.zeros(len(x), 2), lambda: [x])


def test_share_above():
    assert share_above(torch.tensor([0.95, 0.9, 0.2, 1.0]), 0.9) == 0.5


@pytest.fixture
def compared():
    atoms = randn(12, 6)
    saes = {
        "a": sae_of(atoms),
        "b/0": sae_of(torch.cat([atoms.flip(0), randn(8, 6, seed=3)])),
        "elsewhere": sae_of(atoms, made_of=POINT | {"point": "resid.5"}),
        "narrow": sae_of(randn(4, 3), made_of=POINT | {"point": "mlp.4"}),
        "signed": sae_of(-atoms, activation="identity", bias=0.0),
    }
    rows = Rows(randn(900, 6), None)
    subjects = [place(sae, None, rows, name=name) for name, sae in saes.items()]
    return Compare(num_tokens=800, batch_rows=128).run(subjects)


def placed(**saes):
    """SAEs without activations."""
    return [place(sae, None, None, name=name) for name, sae in saes.items()]


def of_pair(compared, table, first, second):
    rows = compared.tables[table].rows()
    return [row for row in rows if (row["first"], row["second"]) == (first, second)]


def pair_of(compared, first, second):
    (row,) = of_pair(compared, "pairs", first, second)
    return row


def test_a_comparison_has_both_ways_of_every_pair(compared):
    assert len(compared.tables["pairs"]) == 5 * 4
    assert compared.tokens == {"saes": 5, "pairs": 20}
    there, back = pair_of(compared, "a", "b/0"), pair_of(compared, "b/0", "a")
    assert there["mmcs"] == pytest.approx(1, abs=1e-6)
    assert back["mmcs"] < 0.99
    assert there["share_above"] == 1
    assert back["share_above"] == pytest.approx(12 / 20, abs=0.06)
    assert there["matched_share"] == back["matched_share"] == 1
    latents = of_pair(compared, "latents", "a", "b/0")
    assert [row["matched"] for row in latents] == list(range(11, -1, -1))
    turned = {row["latent"]: row["matched"] for row in of_pair(compared, "latents", "b/0", "a")}
    assert turned == {i: 11 - i if i < 12 else None for i in range(20)}
    assert there["max_correlation"] == pytest.approx(1, abs=1e-5)
    assert there["correlated_latents"] == 12


def test_only_what_can_be_compared_is(compared):
    elsewhere = pair_of(compared, "a", "elsewhere")
    assert elsewhere["mmcs"] == pytest.approx(1, abs=1e-6)
    assert elsewhere["max_correlation"] is None
    assert set(pair_of(compared, "a", "narrow").values()) == {"a", "narrow", 12, 4, 0, None}
    signed = pair_of(compared, "signed", "a")
    assert signed["absolute"] == 1
    assert signed["mmcs"] == pytest.approx(1, abs=1e-6)


def test_too_many_latents_are_not_matched():
    subjects = placed(a=sae_of(randn(12, 6)), b=sae_of(randn(9, 6)))
    compared = Compare(match_latents=11, correlations=False).run(subjects)
    pairs = compared.tables["pairs"].rows()
    assert [pair["matched_share"] for pair in pairs] == [None, None]
    assert pairs[0]["mmcs"] is not None
    assert {row["correlated"] for row in compared.tables["latents"].rows()} == {None}


def test_tables_and_picture(compared, tmp_path):
    folder = tmp_path / "compare"
    compared.save(folder / "compare.json")
    write_pages(compared, folder)
    content = json.loads((folder / "compare.json").read_text())
    names = content["details"]["names"]
    assert names == ["a", "b/0", "elsewhere", "narrow", "signed"]
    assert content["provenance"]["saes"]["a"]["d_sae"] == 12
    with (folder / "mmcs.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", *names]
    assert float(rows[1][2]) == pytest.approx(1, abs=1e-6)  # a in b/0
    assert float(rows[2][1]) == pytest.approx(pair_of(compared, "b/0", "a")["mmcs"])
    assert rows[1][4] == ""  # of another width
    pairs = compared.tables["pairs"].rows()
    assert [row[i] for i, row in enumerate(matrix(names, pairs, "mmcs"))] == [1.0] * 5
    schema = content["tables"]["latents"]
    assert schema["file"] == "compare.latents.parquet"
    assert schema["rows"] == 4 * (12 + 20 + 12 + 4 + 12)
    assert schema["columns"]["correlation"] == {"type": "float64", "unit": "correlation"}
    table = read_table(folder / schema["file"])
    assert len(table) == schema["rows"]
    found = [row for row in table if (row["first"], row["second"]) == ("a", "b/0")]
    assert [row["nearest"] for row in found] == list(range(11, -1, -1))
    assert [row["correlation"] for row in found] == pytest.approx([1.0] * 12, abs=1e-4)
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0 must be .* at least 1"),
        ({"matched_above": 1.5}, "matched_above=1.5 must be .* above 0 and below 1"),
        ({}, r"was given 1 SAE\(s\), and takes at least 2"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ConfigError, match=message):
        Compare(**settings).run(placed(a=sae_of(randn(4, 3))))
