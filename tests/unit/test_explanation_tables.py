"""Tables of explanations: means, seeds, correlations, what qualifies and what is not won."""

import numpy as np
import pytest
from scipy import stats

from sae.explanations.correlated import correlations
from sae.explanations.judges import JUDGES
from sae.explanations.latents import Latent
from sae.explanations.means import correlation, difference_at_equal_density
from sae.explanations.study import SCORERS, Row
from sae.explanations.summary import by_subject, headline, qualification
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap
from sae.reports.autointerp import _not_won
from sae.reports.scores import explained_by_rules

BOOTSTRAP = Bootstrap(num_resamples=200)


def test_differences_are_taken_within_bins_of_density():
    first = np.array([1e-3, 1e-3, 1e-2, 1e-2]), np.array([0.9, 0.9, 0.5, 0.5])
    second = np.array([1e-3, 1e-2, 1e-2, 0.09]), np.array([0.8, 0.4, 0.4, 0.0])
    found, covered = difference_at_equal_density(first, second, BOOTSTRAP)
    assert found.value == pytest.approx(0.1)
    assert covered == 1.0
    apart = np.array([0.09]), np.array([0.0])
    assert difference_at_equal_density(first, apart, BOOTSTRAP)[0].value is None


def test_a_scorer_below_chance_does_not_qualify():
    """The LM under study, as a simulator: -.01 for true explanations, -.03 for another class's."""
    noise = np.random.default_rng(0).normal(scale=0.001, size=20)
    rows = [
        Row(str(i), "oracle", "explained", "words", 0.1, 30,
            {"simulation": -0.01 + x, "simulation_deranged": -0.03,
             "simulation_top": 0.3 + x, "simulation_top_deranged": 0.1}, {})
        for i, x in enumerate(noise)
    ]  # fmt: skip
    found = {row["scorer"]: row for row in qualification({"classes": (rows, rows)}, BOOTSTRAP)}
    assert found["simulation"]["difference_low"] > 0
    assert not found["simulation"]["qualified"]
    assert found["simulation_top"]["qualified"]


def test_tiles_and_pictures_are_of_scorers_with_a_number_of_rules():
    """With `explainers=[output]`, a push has numbers of output and of the control alone."""
    kinds = (("", "intruder"), ("output", "intervention"), ("tokens", "intervention"),
             ("rules", "simulation"), ("rules", "surprisal"))  # fmt: skip
    rows = [{"explainer": explainer, "scorer": scorer} for explainer, scorer in kinds]
    qualified = {name: [] if name == "simulation" else ["token classes"] for name in SCORERS}
    found = explained_by_rules(rows, qualified)
    assert found == {"intruder": [rows[0]], "surprisal": [rows[4]]}


def test_what_the_sae_does_not_win_is_listed():
    def row(subject, value, low, high, **more):
        return {
            "subject": subject, "scorer": "embedding", "explainer": "rules", "coverage": 1.0,
            "sae_less_this": value, "sae_less_this_low": low, "sae_less_this_high": high,
            "over_tokens_low": None,
        } | more  # fmt: skip

    rows = [
        row("ahead of it", 0.2, 0.1, 0.3),
        row("level", 0.0, -0.1, 0.1),
        row("behind it", -0.2, -0.3, -0.1),
        row("no interval", -0.6, None, None),
        row("not measured", None, None, None),
        row("apart", 0.0, -0.1, 0.1, coverage=0.01),
    ]
    found = _not_won(rows, {"embedding": ["tokens"]}).rows
    assert [(cells[1].text, cells[2].text) for cells in found] == [
        ("level", "no difference seen"),
        ("behind it", "the control is ahead"),
        ("no interval", "too few latents for an interval"),
        ("apart", "too few latents in common"),
    ]
    assert not _not_won(rows, {"embedding": []}).rows


def test_moments_are_those_of_a_loop_over_all_places():
    random = np.random.default_rng(0)
    place, value = np.sort(random.choice(1000, 70, replace=False)), random.gamma(2, 1, 70)
    one = Latent("0", Firings(place, value.astype(np.float32)), Firings(place, value), 70 / 1000)
    code = np.zeros(1000)
    code[place] = value.astype(np.float32)
    skew, kurtosis = (np.mean(code**n) / np.var(code) ** (n / 2) for n in (3, 4))
    assert one.moments == pytest.approx((skew, kurtosis))
    nothing = Firings(place[:0], value[:0])
    assert np.isnan(Latent("0", nothing, nothing, 0.0).moments).all()
    always = Firings(np.arange(1000), np.ones(1000))
    assert np.isnan(Latent("0", always, always, 1.0).moments).all()  # it does not vary


def test_correlations_are_those_of_scipy():
    random = np.random.default_rng(0)
    x = random.normal(size=80)
    y = x + random.normal(size=80)
    found = correlation(x, y, BOOTSTRAP)
    expected = stats.pearsonr(x, y)
    assert found.value == pytest.approx(expected.statistic)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08)
    for constant in (0.1, 0.3, 1.0):  # the mean of 0.1s is not 0.1
        assert correlation(x[:13], np.full(13, constant), BOOTSTRAP).value is None


def test_scores_are_correlated_with_each_moment_of_the_same_latents(monkeypatch):
    random = np.random.default_rng(0)
    rows = [
        Row(str(i), "rules", "explained", "", 10.0 ** -random.uniform(1, 3), 30,
            {"rules": float(i), "embedding": np.nan}, {}, skew=float(i % 7), kurtosis=-float(i))
        for i in range(40)
    ]  # fmt: skip
    found = {(row["scorer"], row["of"]): row for row in correlations({"SAE": rows}, BOOTSTRAP)}
    assert set(found) == {("rules", name) for name in ("skew", "kurtosis", "log10 density")}
    assert found["rules", "kurtosis"]["value"] == pytest.approx(-1)
    skew = stats.pearsonr(np.arange(40), np.arange(40) % 7).statistic
    assert found["rules", "skew"]["value"] == pytest.approx(skew)


def test_seeds_are_pooled_and_have_an_interval_of_their_own():
    random = np.random.default_rng(0)

    def row(subject, seed, i):
        value = {"SAE": 0.5, "control": 0.2}[subject] + 0.1 * seed + random.normal(0, 0.01)
        return Row(str(i), "rules", "explained", "", 0.01, 30, {"rules": value}, {}, seed=seed)

    studies = {
        "SAE": [row("SAE", seed, i) for seed in range(3) for i in range(20)],
        "control": [row("control", 0, i) for i in range(20)],
    }
    found = {one["subject"]: one for one in by_subject(studies, BOOTSTRAP)
             if one["scorer"] == "rules"}  # fmt: skip
    ours, control = found["SAE"], found["control"]
    assert (ours["seeds"], ours["latents"], control["seeds"]) == (3, 60, 1)
    means = [np.mean([one.values["rules"] for one in studies["SAE"] if one.seed == seed])
             for seed in range(3)]  # fmt: skip
    half = stats.t.ppf(0.975, 2) * np.std(means, ddof=1) / 3**0.5
    assert ours["value"] == pytest.approx(np.mean(means))
    expected = (np.mean(means) - half, np.mean(means) + half)
    assert (ours["seed_low"], ours["seed_high"]) == pytest.approx(expected)
    assert control["seed_low"] is None
    gap = ours["value"] - control["value"]
    assert control["sae_less_this"] == pytest.approx(gap)
    ends = (control["sae_less_this_seed_low"], control["sae_less_this_seed_high"])
    assert ends == pytest.approx((gap - half, gap + half))
    assert control["sae_less_this_high"] - gap < half  # the latents alone do not see the seeds


def scored(seed, count, value, explainer="rules", latents=None):
    names = latents or [str(i) for i in range(count)]
    return [Row(name, explainer, "explained", "", 0.01, 30, {"rules": value}, {}, seed=seed)
            for name in names]  # fmt: skip


def test_an_interval_over_seeds_holds_the_value_and_needs_whole_seeds():
    rows = [*scored(0, 100, 0.5), *scored(1, 12, 0.2), *scored(2, 12, 0.3), *scored(3, 3, 0.0)]
    empty = [row._replace(values={}) for row in scored(4, 20, 0.0)]
    (found,) = by_subject({"SAE": rows + empty}, BOOTSTRAP)
    assert found["seeds"] == 4  # the fifth has no number
    assert found["seed_low"] < found["value"] < found["seed_high"]
    half = stats.t.ppf(0.975, 2) * np.std([0.5, 0.2, 0.3], ddof=1) / 3**0.5  # three whole ones
    assert found["seed_high"] - found["value"] == pytest.approx(half)


def test_explanations_of_the_first_seed_are_held_against_the_tokens_of_that_seed():
    """A user's explanations are of one SAE; the control is there for all seeds."""
    rows = [
        *scored(0, 12, 0.7, "given"), *scored(0, 12, 0.4, "tokens"), *scored(1, 12, 0.1, "tokens"),
    ]  # fmt: skip
    found = {row["explainer"]: row for row in by_subject({"SAE": rows}, BOOTSTRAP)}
    assert found["given"]["over_tokens"] == pytest.approx(0.3)


def test_a_control_with_scores_beside_an_sae_without_is_no_headline():
    few = scored(0, 3, 0.5)
    rows = list(by_subject({"SAE": few, "ica": scored(0, 20, 0.2)}, BOOTSTRAP))
    assert headline(rows, dict.fromkeys((*SCORERS, *JUDGES), ["token classes"])) == {}
