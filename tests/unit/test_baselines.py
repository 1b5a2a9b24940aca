"""Baselines against scikit-learn, against each other and against what they promise."""

import numpy as np
import pytest
import torch

from sae import cached
from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.artifacts import load, save_sae
from sae.dictionaries.baselines import BASELINES, Learned, build_baseline
from sae.dictionaries.baselines.base import linear_sae
from sae.dictionaries.baselines.random import least_squares_gain
from sae.errors import ConfigError, DegenerateInputError
from sae.functional import fvu
from sae.training.baselines import TrainingVectors, fit_baseline

D_IN = 6
SETTINGS = {
    "neurons": {"k": None, "centre": "none"},
    "identity": {"k": None, "centre": "none"},
    "random": {"k": None, "centre": "none", "dict_ratio": 3, "sample_vectors": 500, "seed": 0},
    "rotation": {"k": None, "centre": "none", "split": False, "seed": 0},
    "pca": {"k": None, "components": None, "centre": "mean", "split": False},
    "ica": {"k": None, "split": False, "sample_vectors": 5000, "max_iter": 200, "seed": 0},
    "nmf": {"k": None, "components": None, "steps": 100, "sample_vectors": 400, "max_iter": 500,
            "seed": 0},
    "kmeans": {"dict_ratio": 3, "sample_vectors": 5000, "max_iter": 100, "seed": 0},
}  # fmt: skip
LOSSLESS = ("identity", "rotation", "pca", "ica")


class Vectors:
    """Vectors in three chunks; `sample` gives the first ones."""

    def __init__(self, x):
        self.x, (self.num_rows, self.d_in) = x, x.shape
        self.mean = x.double().mean(0) + 0.3  # of a streamed split it is only near the mean

    def chunks(self):
        yield from self.x.tensor_split(3)

    def sample(self, n, seed):
        return self.x[:n]


def baseline(word, **changes):
    return build_baseline({"kind": "baseline", "architecture": word, **SETTINGS[word], **changes})


@pytest.fixture(scope="module")
def x():
    """Skewed sources, mixed, with scales and means that differ by a hundred."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(1500, D_IN, generator=generator) ** 3
    mixed = sources @ torch.randn(D_IN, D_IN, generator=generator)
    return mixed * torch.tensor([0.1, 1, 1, 3, 10, 1]) + torch.tensor([5.0, 0, -3, 0, 100, 1])


@pytest.fixture(params=sorted(BASELINES))
def word(request):
    return request.param


def test_every_baseline_has_settings_and_a_yaml(word):
    from conf.options import content

    assert word in SETTINGS, "add the new baseline's settings to this file"
    config = content("sae", word)
    assert (config.pop("kind"), config.pop("architecture")) == ("baseline", word)
    assert set(config) <= set(SETTINGS[word]) <= set(BASELINES[word].model_fields)


def test_saved_and_loaded_it_is_the_same(word, x, tmp_path):
    before = x.clone()
    sae = baseline(word).fit(Vectors(x))
    assert torch.equal(x, before), "a fit must not write into the data"
    assert sae.config.architecture == word
    assert sae.d_sae == baseline(word).latents(D_IN)
    loaded = load(save_sae(tmp_path / "sae", sae))
    assert torch.equal(loaded(x), sae(x))
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(sae.d_sae))


@pytest.mark.parametrize("word", [w for w in SETTINGS if w != "kmeans"])
def test_k_bounds_l0_and_keeps_what_writes_most(word, x):
    every, some = baseline(word).fit(Vectors(x)), baseline(word, k=2).fit(Vectors(x))
    f = some.encode(x)
    assert int((f != 0).sum(1).max()) == 2
    if word in ("random", "nmf"):  # gain and encoder are others with k
        return
    full = every.encode(x)
    kept = full.abs().topk(2, dim=1).indices
    torch.testing.assert_close(f.gather(1, kept), full.gather(1, kept))


@pytest.mark.parametrize("word", LOSSLESS)
def test_full_rank_codes_lose_nothing(word, x):
    sae = baseline(word).fit(Vectors(x))
    assert fvu(x, sae(x)) < 1e-10


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("word", ["rotation", "pca", "ica"])
def test_split_forms_write_what_signed_forms_write(word, k, x):
    signed = baseline(word, k=k).fit(Vectors(x))
    split = baseline(word, k=k, split=True).fit(Vectors(x))
    assert split.d_sae == 2 * signed.d_sae
    assert bool((split.encode(x) >= 0).all())
    torch.testing.assert_close(split(x), signed(x), rtol=1e-4, atol=1e-3)


def test_centre_is_subtracted_and_added(x):
    mean = Vectors(x).mean.float()
    for word in ("neurons", "identity", "rotation"):
        plain, centred = baseline(word, k=2), baseline(word, k=2, centre="mean")
        expected = plain.fit(Vectors(x))(x - mean) + mean
        torch.testing.assert_close(centred.fit(Vectors(x))(x), expected, rtol=1e-4, atol=1e-4)


def test_neurons_are_the_relu_of_the_coordinates(x):
    assert torch.equal(baseline("neurons").fit(Vectors(x)).encode(x), x.relu())
    assert torch.equal(baseline("identity").fit(Vectors(x)).encode(x), x)


def test_rotation_is_orthogonal_and_uniform():
    rows = [
        baseline("rotation", seed=seed).learn(Vectors(torch.zeros(2, 2))).tensors["rows"]
        for seed in range(400)
    ]
    for matrix in rows[:5]:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(2, dtype=torch.float64))
    signs = torch.stack(rows)[:, 0, 0].sign().mean()
    assert abs(float(signs)) < 0.2, "without the signs of R, all entries would be negative"


def test_random_directions_have_the_best_gain(x):
    sae = baseline("random", k=4, centre="mean").fit(Vectors(x))
    sample = x[:500]  # what the gain was fitted to
    assert least_squares_gain(sae, sample) == pytest.approx(1, abs=1e-4)
    error = (sae(sample) - sample).square().sum()
    for factor in (0.9, 1.1):
        other = sae.b_dec + factor * (sae(sample) - sae.b_dec)
        assert (other - sample).square().sum() > error
    cosines = sae.W_dec @ torch.nn.functional.normalize(sae.W_enc, dim=0)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(sae.d_sae))


def test_pca_is_scikit_learns(x):
    from sklearn.decomposition import PCA

    reference = PCA().fit(x.double().numpy())
    learned = baseline("pca").learn(Vectors(x))
    rows = learned.tensors["rows"].numpy()
    cosines = (rows * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-8)
    np.testing.assert_allclose(
        learned.facts["explained_variance_ratio"], reference.explained_variance_ratio_, rtol=1e-8
    )
    sae = baseline("pca", components=2).fit(Vectors(x))
    reduced = PCA(2).fit(x.double().numpy())
    expected = reduced.inverse_transform(reduced.transform(x.double().numpy()))
    np.testing.assert_allclose(sae(x).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_dynamic_pca_beats_static_pca(x):
    static = baseline("pca", components=2).fit(Vectors(x))
    dynamic = baseline("pca", k=2).fit(Vectors(x))
    assert fvu(x, dynamic(x)) < fvu(x, static(x))
    uncentred = baseline("pca", k=2, centre="none").fit(Vectors(x))
    torch.testing.assert_close(uncentred.b_dec, torch.zeros(D_IN))


def test_ica_is_scikit_learns_with_the_scaler(x):
    from sklearn.decomposition import FastICA
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x.numpy())
    ica = FastICA(random_state=0, max_iter=200).fit(scaler.transform(x.numpy()))
    sources = ica.transform(scaler.transform(x.numpy()))
    sae = baseline("ica").fit(Vectors(x))
    lengths = np.linalg.norm(ica.mixing_ * scaler.scale_[:, None], axis=0)
    np.testing.assert_allclose(sae.encode(x).numpy() / lengths, sources, rtol=1e-3, atol=2e-3)
    chosen = np.argsort(-np.abs(sources * lengths), axis=1)[:, :2]
    kept = np.zeros_like(sources)
    np.put_along_axis(kept, chosen, np.take_along_axis(sources, chosen, 1), 1)
    expected = scaler.inverse_transform(ica.inverse_transform(kept))
    top = baseline("ica", k=2).fit(Vectors(x))
    np.testing.assert_allclose(top(x).numpy(), expected, rtol=1e-3, atol=2e-2)


def test_ica_finds_independent_sources(x):
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(1500, D_IN, generator=generator) ** 3
    f = baseline("ica").fit(Vectors(x)).encode(x)
    correlation = np.abs(np.corrcoef(sources.T.numpy(), f.T.numpy())[:D_IN, D_IN:])
    assert (correlation.max(axis=1) > 0.95).all()


def test_nmf_steps_tend_to_nonnegative_least_squares():
    from scipy.optimize import nnls

    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(4, 9, generator=generator) ** 2
    codes = torch.rand(300, 4, generator=generator) * (
        torch.rand(300, 4, generator=generator) < 0.5
    )
    x = codes @ parts + 2
    settings = {"components": 4, "steps": 100}
    learned = baseline("nmf", **settings).learn(Vectors(x))
    sae = baseline("nmf", **settings).assemble(learned)
    assert sae.config.activation == "lista"
    H, m = learned.tensors["rows"].numpy(), learned.tensors["centre"].numpy()
    assert (H >= 0).all()
    exact = np.stack([nnls(H.T, row)[0] for row in x[:40].double().numpy() - m]) @ H + m
    np.testing.assert_allclose(sae(x[:40]).numpy(), exact, atol=0.02)
    assert fvu(x, sae(x)) < 0.05
    top = baseline("nmf", components=4, k=4).assemble(learned)  # pseudo-inverse, positive part
    expected = (x.double().numpy() - m) @ np.linalg.pinv(H)
    np.testing.assert_allclose(
        top.encode(x).numpy(), expected.clip(0) * np.linalg.norm(H, axis=1), atol=1e-4
    )


def test_kmeans_gives_the_nearest_centroid_itself(x):
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(3 * D_IN, batch_size=4096, n_init=1, random_state=0).fit(x.numpy())
    sae = baseline("kmeans").fit(Vectors(x))
    expected = kmeans.cluster_centers_[kmeans.predict(x.numpy())]
    np.testing.assert_allclose(sae(x).numpy(), expected, rtol=1e-4, atol=1e-3)
    assert bool(((sae.encode(x) != 0).sum(1) == 1).all())


@pytest.mark.parametrize(
    ("word", "changes", "error", "message"),
    [
        ("pca", {"k": 7}, ConfigError, "k=7 must be between 1 and the 6 latents"),
        ("pca", {"components": 7}, ConfigError, "components=7 must be between 1 and 6"),
        ("nmf", {"components": 9}, ConfigError, "components=9 must be between 1 and 6"),
        (
            "ica",
            {"sample_vectors": 5},
            DegenerateInputError,
            "5 vectors are too few to fit the 6",
        ),
        (
            "kmeans",
            {"sample_vectors": 17},
            DegenerateInputError,
            "17 vectors are too few to fit the 18",
        ),
        ("kmeans", {"k": 3}, ConfigError, "sae.k=3 must be null"),
        ("pca", {"seed": 3}, ConfigError, "sae.seed is not known.* components"),
        ("svd", {}, ConfigError, "sae.architecture=svd is not known. Choose one of"),
    ],
)
def test_mistakes_are_explained(word, changes, error, message, x, monkeypatch):
    monkeypatch.setitem(SETTINGS, "svd", {})
    with pytest.raises(error, match=message):
        baseline(word, **changes).fit(Vectors(x))


def test_rows_of_zero_length_never_write():
    rows = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    sae = linear_sae("pca", rows, torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.zeros(2), "signed")
    torch.testing.assert_close(sae(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.0, 4.0]]))


def data_of(x):
    data = ActivationDataModule(TensorActivations(x), batch_size=64)
    data.prepare_data()
    return data


def test_it_reads_the_training_split_in_the_lms_own_units(x):
    data = data_of(x)
    vectors = TrainingVectors(data)
    train = torch.cat(list(vectors.chunks()))
    assert len(train) == vectors.num_rows < len(x)
    torch.testing.assert_close(vectors.mean, train.double().mean(0))
    torch.testing.assert_close(vectors.sample(10**6, 0), train)
    sample = vectors.sample(50, 0)
    assert torch.equal(sample, vectors.sample(50, 0))
    near = torch.cdist(sample, train, compute_mode="donot_use_mm_for_euclid_dist")
    assert near.amin(dim=1).max() < 1e-3


def test_one_fit_serves_all_k(x, monkeypatch):
    learned = []
    real = BASELINES["pca"].learn
    monkeypatch.setattr(
        BASELINES["pca"], "learn", lambda self, x: learned.append(self) or real(self, x)
    )

    def fit(**changes):
        sae = {"kind": "baseline", "architecture": "pca", **SETTINGS["pca"], **changes}
        return fit_baseline({"sae": sae}, data_of(x))

    first, facts = fit(k=2)
    for changes in ({"k": 3}, {"split": True}, {"components": 2}, {"k": 2}):
        again, same = fit(**changes)
        assert same == facts
    assert torch.equal(first.W_enc, again.W_enc)
    assert len(learned) == 1
    x = x + 1  # other vectors, another fit
    fit_baseline({"sae": {"architecture": "pca", **SETTINGS["pca"]}}, data_of(x))
    assert len(learned) == 2


def test_a_fit_that_was_killed_leaves_nothing_behind(x, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    config = {"sae": {"architecture": "pca", **SETTINGS["pca"]}}
    monkeypatch.setattr(cached, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_baseline(config, data_of(x))
    monkeypatch.undo()
    assert isinstance(fit_baseline(config, data_of(x))[1], dict)
    assert isinstance(baseline("pca").learn(Vectors(x)), Learned)
