"""Closed forms of erasers against their definitions, and a planted concept that a latent erases."""

import numpy as np
import pytest
import torch
from scipy.linalg import null_space, sqrtm

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.features.erasing import closed_forms, latent_edits, ranked
from sae.interventions import projected_out
from sae.probing import erasers, fresh

N, D = 600, 8


@pytest.fixture
def rows():
    """Rows, a concept of two classes, and a label that goes with it."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, N)
    y = np.where(rng.random(N) < 0.8, z, 1 - z)
    mixing = rng.normal(size=(D, D))
    x = rng.normal(size=(N, D)) @ mixing + np.outer(z, rng.normal(size=D))
    x += np.outer(y, rng.normal(size=D)) + 5
    return x, z, y


def torched(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def whitening(x):
    centred = x - x.mean(0)
    return np.linalg.inv(np.real(sqrtm(centred.T @ centred / len(x))))


def cov(x, y):
    return (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)


def class_gap(x, z):
    return np.abs(x[z == 1].mean(0) - x[z == 0].mean(0)).max()


def test_leace_is_its_closed_form_and_class_means_are_equal_after(rows):
    x, z, _ = rows
    eraser = erasers.leace(erasers.moments(*torched(x, z)))
    W = whitening(x)
    u = W @ cov(x, z[:, None].astype(float))
    u /= np.linalg.norm(u)
    expected = x - (x - x.mean(0)) @ (np.linalg.inv(W) @ u @ u.T @ W).T
    erased = eraser(torch.from_numpy(x)).numpy()
    assert np.abs(erased - expected).max() < 1e-8
    assert class_gap(erased, z) < 1e-8
    assert class_gap(x, z) > 0.1


def test_leace_takes_less_than_any_other_that_makes_means_equal(rows):
    x, z, _ = torched(*rows)
    moments = erasers.moments(x, z)
    sizes = [(eraser(x) - x).square().sum() for eraser in
             (erasers.leace(moments), erasers.mean_affine(moments))]  # fmt: skip
    assert sizes[0] <= sizes[1]


def test_leace_of_three_classes():
    x, z = torch.randn(900, 5, dtype=torch.float64), torch.arange(900) % 3
    x[:, 0] += z
    x[:, 1] += (z == 2) * 3
    erased = erasers.leace(erasers.moments(x, z))(x)
    means = torch.stack([erased[z == label].mean(0) for label in range(3)])
    assert (means - means[0]).abs().max() < 1e-8


def test_splince_is_its_closed_form_keeps_the_label_and_erases(rows):
    x, z, y = rows
    targets = y[:, None].astype(float)
    moments = erasers.moments(*torched(x, z))
    eraser = erasers.splince(moments, erasers.covariance(*torched(x, targets)))
    W = whitening(x)
    a, b = W @ cov(x, z[:, None].astype(float)), W @ cov(x, targets)
    U = null_space(a.T)
    V = np.hstack([b, null_space(np.hstack([a, b]).T)])
    P = np.linalg.inv(W) @ V @ np.linalg.inv(U.T @ V) @ U.T @ W
    expected = x.mean(0) + (x - x.mean(0)) @ P.T
    erased = eraser(torch.from_numpy(x)).numpy()
    assert np.abs(erased - expected).max() < 1e-8
    assert np.abs(cov(erased, targets) - cov(x, targets)).max() < 1e-8
    assert class_gap(erased, z) < 1e-8
    leace = erasers.leace(moments)(torch.from_numpy(x)).numpy()
    assert np.abs(cov(leace, targets) - cov(x, targets)).max() > 1e-2


def test_splince_refuses_a_label_that_is_the_concept(rows):
    x, z, _ = torched(*rows)
    xy = erasers.covariance(x, 1.0 - z[:, None].double())
    with pytest.raises(ConfigError, match="SPLINCE cannot keep this label"):
        erasers.splince(erasers.moments(x, z), xy)


def test_splince_refuses_labels_of_which_one_is_the_concept(rows):
    x, z = torched(*rows[:2])
    labels = torch.stack([(x[:, 1] > 0).double(), z.double()], 1)
    with pytest.raises(ConfigError, match="every direction that predicts it predicts the concept"):
        erasers.splince(erasers.moments(x, z), erasers.covariance(x, labels))


def test_means_are_projected_out_with_and_without_the_mean_row(rows):
    x, z, _ = torched(*rows)
    moments = erasers.moments(x, z)
    u = x[z == 1].mean(0) - x[z == 0].mean(0)
    u /= u.norm()
    linear, affine = erasers.mean_projection(moments)(x), erasers.mean_affine(moments)(x)
    assert torch.allclose(linear, x - (x @ u)[:, None] * u, atol=1e-10)
    assert torch.allclose(affine, linear + (x.mean(0) @ u) * u, atol=1e-10)
    assert class_gap(affine.numpy(), z.numpy()) < 1e-10


def test_directions_without_variance_stay(rows):
    x, z, _ = torched(*rows)
    flat = torch.cat([x, torch.full((N, 1), 3.0, dtype=x.dtype)], dim=1)
    erased = erasers.leace(erasers.moments(flat, z))(flat)
    assert torch.equal(erased[:, -1], flat[:, -1])
    assert class_gap(erased.numpy(), z.numpy()) < 1e-8


def test_the_dtype_of_rows_is_kept(rows):
    x, z, _ = torched(*rows)
    eraser = erasers.leace(erasers.moments(x, z))
    assert eraser(x.bfloat16()).dtype == torch.bfloat16
    assert (eraser(x.float()) - eraser(x)).abs().max() < 1e-4


def test_too_few_rows_are_refused_and_few_are_told(rows, caplog):
    x, z, _ = torched(*rows)
    with pytest.raises(ConfigError, match="8 rows of 8 dimensions are too few"):
        erasers.moments(x[:8], z[:8])
    erasers.moments(x[:80], z[:80])
    assert "fitted on 80 rows of 8 dimensions. More than 80" in caplog.text
    caplog.clear()
    erasers.moments(x[:81], z[:81])
    assert not caplog.text


def test_one_class_is_refused(rows):
    x = torch.from_numpy(rows[0])
    with pytest.raises(ConfigError, match="rows are of one class; an eraser needs rows of two"):
        erasers.moments(x, torch.zeros(N, dtype=torch.long))


def test_a_planted_latent_erases_with_little_more_than_the_edit_of_leace():
    """Rows are concept * direction + noise, and one latent of the SAE is that direction."""
    generator = torch.Generator().manual_seed(0)
    n, d = 4000, 16
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    z = torch.randint(0, 2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator) + 3.0 * (2 * z - 1)[:, None] * directions[5]
    sae = SAE(directions.T.contiguous(), torch.zeros(d), directions, torch.zeros(d),
              SAEConfig("test", "identity", d, d))  # fmt: skip
    found = ranked(sae, x, z, seed=0)
    assert int(found.latents[0]) == 5
    every = [*latent_edits(sae, found.latents.tolist(), [1]), *closed_forms(x, z)]
    edits = {(one.method, one.latents): one.replacement for one in every}
    size = {name: (edit(x) - x).norm(dim=1).mean() for name, edit in edits.items()}
    for form in ("projection", "delta", "zeroing"):
        assert size[form, 1] <= 1.2 * size["LEACE", 0]
        erased = edits[form, 1](x)
        probe = fresh.linear(erased[:2000], z[:2000], fresh.Axes.of(erased[:2000]))
        assert abs(float(probe.right(erased[2000:], z[2000:]).mean()) - 0.5) < 0.06
    probe = fresh.linear(x[:2000], z[:2000], fresh.Axes.of(x[:2000]))
    assert float(probe.right(x[2000:], z[2000:]).mean()) > 0.95


def test_an_mlp_finds_what_no_linear_probe_can():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    axes = fresh.Axes.of(x[:1500])
    right = fresh.linear(x[:1500], y[:1500], axes).right(x[1500:], y[1500:]).mean()
    by_mlp = (fresh.mlp(x[:1500], y[:1500], axes, 0)(x[1500:])[:, 0] > 0).long() == y[1500:]
    assert right < 0.6 < 0.85 < by_mlp.float().mean()


def test_probes_of_turned_rows_know_as_much():
    """Few rows, one column of a large spread: a turn takes nothing out, nor do four directions."""
    generator = torch.Generator().manual_seed(0)
    n, d = 800, 64
    y = torch.randint(0, 2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator) + (3.0 * y - 1.5)[:, None] * torch.eye(d)[3]
    x[:, 9] *= 500
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    drawn = projected_out(torch.randn(4, d, generator=generator))
    logits = []
    for rows in (x, x @ turn, drawn(x)):
        axes, tested = fresh.Axes.of(rows[:400]), y[400:]
        probe = fresh.linear(rows[:400], y[:400], axes)
        logits.append(probe(rows[400:]))
        by_linear = probe.right(rows[400:], tested).mean()
        mlp = fresh.mlp(rows[:400], y[:400], axes, 0)
        by_mlp = ((mlp(rows[400:])[:, 0] > 0).long() == tested).float().mean()
        assert float(by_linear) > 0.9
        assert float(by_mlp) > 0.85
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-3)
    columns = fresh.by_column(drawn(x)[:400], y[:400], 0).right(drawn(x)[400:], y[400:]).mean()
    assert float(columns) < 0.8, "why no probe that measures is one of columns"
