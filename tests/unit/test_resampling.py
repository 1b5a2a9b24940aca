"""The published rules of neuron resampling, each by itself (sae/training/resampling.py)."""

from typing import get_args

import pytest
import torch

from sae.dictionaries import build_dictionary
from sae.errors import ConfigError
from sae.training.optimizers import AuthorsAdam
from sae.training.resampling import (
    ResampleSettings,
    dead_latents,
    resample,
    reset_adam_rows,
)
from sae.training.revival import STRATEGIES, Drawn, WorstExample, draw_inputs

D_IN = 8
CONFIGS = {
    "tied": {"architecture": "tied", "l1": 1e-3, "centre": "none"},
    "l1": {"architecture": "l1", "l1": 1e-3},
    "topk": {"architecture": "topk", "k": 3},
}


def trained(word, optimizer_class=torch.optim.Adam):
    dictionary = build_dictionary({"dict_ratio": 3, **CONFIGS[word]}, d_in=D_IN, seed=0)
    optimizer = optimizer_class(dictionary.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(64, D_IN, generator=generator)
        sum(dictionary.training_output(x).terms.values()).backward()
        optimizer.step()
        dictionary.after_step()
    return dictionary, optimizer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rule_1_dead_means_silent_for_the_whole_window():
    mask = dead_latents(torch.tensor([0, 1, 999, 1000, 5000]), 1000)
    assert mask.tolist() == [False, False, False, True, True]


def test_rule_2_inputs_are_asked_for_only_when_something_is_dead():
    dictionary, optimizer = trained("l1")
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}

    def never():
        raise AssertionError("no sample is needed")

    latents = resample(dictionary, optimizer, torch.zeros(24, dtype=torch.bool), never, seeded())
    assert len(latents) == 0
    for name, value in dictionary.state_dict().items():
        assert torch.equal(value, before[name])


def test_rule_3_probability_is_loss_squared():
    losses = torch.tensor([1.0, 2.0, 3.0, 0.0])
    drawn = torch.cat([draw_inputs(losses, 1, seeded(seed)) for seed in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([1.0, 4.0, 9.0, 0.0]) / 14, atol=0.025, rtol=0)


def test_rule_3_no_input_twice_while_there_are_enough():
    drawn = draw_inputs(torch.rand(50) + 0.1, 40, seeded())
    assert len(drawn.unique()) == 40
    assert len(draw_inputs(torch.tensor([1.0, 0.0, 0.0]), 5, seeded())) == 5
    assert len(draw_inputs(torch.zeros(3), 2, seeded())) == 2


@pytest.mark.parametrize("word", ["l1", "topk"])
def test_rules_4_to_6_untied(word):
    dictionary, _ = trained(word)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[2, 7]] = True
    x = torch.randn(2, D_IN, generator=seeded())
    dictionary.revive(torch.tensor([2, 7]), x, x / x.norm(dim=1, keepdim=True), ~dead)
    alive_norm = before["encoder_rows"][~dead].norm(dim=1).mean()
    for latent, row in zip([2, 7], x, strict=True):
        direction = row / row.norm()
        torch.testing.assert_close(dictionary.W_dec[latent], direction)  # rule 4
        torch.testing.assert_close(
            dictionary.encoder_rows[latent], 0.2 * alive_norm * direction
        )  # 5
        assert dictionary.b_enc[latent] == 0  # rule 6
    assert torch.equal(dictionary.W_dec[~dead], before["W_dec"][~dead])
    assert torch.equal(dictionary.encoder_rows[~dead], before["encoder_rows"][~dead])
    assert torch.equal(dictionary.b_enc[~dead], before["b_enc"][~dead])
    assert torch.equal(dictionary.b_dec, before["b_dec"])


@pytest.mark.parametrize("centre", ["none", "mean"])
def test_rules_4_to_6_tied_answer_with_a_fifth(centre):
    """Stand-in for rule 5 where the encoder norm is fixed: the bias damps (see Tied.revive)."""
    mean = torch.randn(D_IN, generator=seeded(3))
    config = {"dict_ratio": 3, **CONFIGS["tied"], "centre": centre}
    dictionary = build_dictionary(config, d_in=D_IN, mean=mean)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[2, 7]] = True
    x = torch.randn(2, D_IN, generator=seeded()) * 3
    direction = torch.nn.functional.normalize(x + torch.randn(2, D_IN, generator=seeded(4)), dim=1)
    dictionary.revive(torch.tensor([2, 7]), x, direction, ~dead)
    W = dictionary.W / dictionary.W.norm(dim=1, keepdim=True)
    torch.testing.assert_close(W[[2, 7]], direction)
    f = dictionary.encode(x)
    answers = torch.stack([f[0, 2], f[1, 7]])
    torch.testing.assert_close(answers, 0.2 * ((x - dictionary.centre) * direction).sum(1))
    alive_norm = before["W"][~dead].norm(dim=1).mean()
    torch.testing.assert_close(dictionary.W[[2, 7]].norm(dim=1), alive_norm.expand(2))
    assert torch.equal(dictionary.W[~dead], before["W"][~dead])
    assert torch.equal(dictionary.b_enc[~dead], before["b_enc"][~dead])


@pytest.mark.parametrize("word", sorted(CONFIGS))
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, AuthorsAdam])
def test_rule_7_adam_rows_of_revived_latents_and_no_others(word, optimizer_class):
    dictionary, optimizer = trained(word, optimizer_class)
    latents = torch.tensor([2, 7])
    others = torch.tensor([i for i in range(24) if i not in (2, 7)])
    moments = ("exp_avg", "exp_avg_sq")
    before = {
        (id(p), m): optimizer.state[p][m].clone() for p in dictionary.parameters() for m in moments
    }
    steps = [s["step"].clone() for s in optimizer.state.values() if "step" in s]
    reset_adam_rows(optimizer, dictionary.latent_parameters(), latents)
    owned = {id(p) for p in dictionary.latent_parameters()}
    for parameter in dictionary.parameters():
        for moment in moments:
            now, old = optimizer.state[parameter][moment], before[id(parameter), moment]
            if id(parameter) not in owned:
                assert torch.equal(now, old)
                continue
            assert not now[latents].any()
            assert torch.equal(now[others], old[others])
    assert steps == [s["step"] for s in optimizer.state.values() if "step" in s]


@pytest.mark.parametrize("toward", ["input", "residual"])
@pytest.mark.parametrize("word", sorted(CONFIGS))
def test_a_whole_resampling_draws_badly_reconstructed_inputs(word, toward):
    dictionary, optimizer = trained(word)
    x = torch.randn(100, D_IN, generator=seeded(5))
    x[17] *= 1000  # nothing else has a loss that counts beside this one
    dead = torch.zeros(24, dtype=torch.bool)
    dead[3] = True
    missed = (x - dictionary(x)).detach()[17]
    target = {"input": x[17], "residual": missed}[toward]
    latents = resample(dictionary, optimizer, dead, lambda: x, seeded(), Drawn(toward))
    assert latents.tolist() == [3]
    atom = dictionary.folded(1.0).W_dec[3]
    torch.testing.assert_close(atom, target / target.norm())


def test_settings_resolve_shares_and_say_what_is_wrong():
    settings = ResampleSettings(
        at_tokens=["50%", 1e3], dead_after_tokens="10%", sample_tokens="1%"
    ).resolve(10_000)
    assert settings == ResampleSettings(
        at_tokens=[1000, 5000], dead_after_tokens=1000, sample_tokens=100
    )
    assert [settings.due(a, a + 400) for a in (600, 700, 1000, 4800)] == [True, True, False, True]
    with pytest.raises(ConfigError, match="dead_after_tokens"):
        ResampleSettings(at_tokens=[], dead_after_tokens="ten", sample_tokens=1).resolve(100)
    with pytest.raises(ConfigError, match="toward=error must be one of input, residual"):
        ResampleSettings(toward="error")
    with pytest.raises(ConfigError, match="at least one token"):
        ResampleSettings(at_tokens=[], dead_after_tokens=0, sample_tokens=1).resolve(100)


def test_worst_example_takes_the_worst_first_and_repeats_when_they_run_out():
    dictionary, _ = trained("l1")
    x = torch.randn(50, D_IN, generator=seeded(5))
    errors = (x - dictionary(x)).square().mean(1)
    by_hand = sorted(range(50), key=lambda i: -errors[i].item())
    strategy = WorstExample()
    assert strategy.choose(dictionary, x, 7, seeded()).tolist() == by_hand[:7]
    assert strategy.choose(dictionary, x, 52, seeded()).tolist() == [*by_hand, *by_hand[:2]]


@pytest.mark.parametrize("word", ["l1", "topk"])
def test_worst_example_sets_encoders_as_the_authors_and_nothing_else(word):
    dictionary, optimizer = trained(word)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    x = torch.randn(100, D_IN, generator=seeded(5))
    x[17], x[61] = x[17] * 1000, x[61] * 100
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[3, 9]] = True
    latents = resample(dictionary, optimizer, dead, lambda: x, seeded(), WorstExample())
    assert latents.tolist() == [3, 9]
    columns = before["encoder_rows"].T  # as their code has it: a column for each latent
    wanted = x[[17, 61]].T * 0.2 / torch.norm(columns, dim=0).mean()
    torch.testing.assert_close(dictionary.W_enc[:, [3, 9]], wanted)
    assert torch.equal(dictionary.encoder_rows[~dead], before["encoder_rows"][~dead])
    for name in ("W_dec", "b_enc", "b_dec"):
        assert torch.equal(dictionary.state_dict()[name], before[name])
    for parameter in dictionary.latent_parameters():  # all three, as in their code
        moments = optimizer.state[parameter]["exp_avg"]
        assert not moments[dead].any()
        assert moments[~dead].any()


def test_strategies_refuse_what_they_cannot_do():
    from sae.dictionaries import ARCHITECTURES

    worst = ResampleSettings(at_tokens=["10%"], strategy="worst_example")
    with pytest.raises(ConfigError, match="sae=tied they are one matrix. Use sae=l1"):
        worst.check(ARCHITECTURES["tied"], frozen_decoder=False)
    worst.check(ARCHITECTURES["topk"], frozen_decoder=True)
    with pytest.raises(ConfigError, match="Use resample=none, or resample=worst_example"):
        ResampleSettings(at_tokens=["10%"]).check(ARCHITECTURES["topk"], frozen_decoder=True)
    ResampleSettings(at_tokens=[]).check(ARCHITECTURES["topk"], frozen_decoder=True)
    with pytest.raises(ConfigError, match="must be one of drawn, worst_example"):
        ResampleSettings(strategy="best")
    with pytest.raises(ConfigError, match="toward=input has no effect"):
        ResampleSettings(toward="input", strategy="worst_example")


def test_the_names_of_the_settings_are_those_of_the_strategies():
    annotation = ResampleSettings.model_fields["strategy"].annotation
    assert set(get_args(annotation)) == set(STRATEGIES)


@pytest.mark.parametrize("word", ["tied", "l1", "topk"])
def test_what_is_reconstructed_exactly_revives_nothing(word):
    """All rows equal: with its mean as bias the dictionary leaves no residual to point at."""
    dictionary, optimizer = trained(word)
    x = torch.ones(16, D_IN)
    dictionary.forward = lambda rows: rows  # pyright: ignore[reportAttributeAccessIssue]
    before = [parameter.detach().clone() for parameter in dictionary.parameters()]
    dead = torch.ones(dictionary.d_sae, dtype=torch.bool)
    resample(dictionary, optimizer, dead, lambda: x, seeded(), Drawn(toward="residual"))
    for then, now in zip(before, dictionary.parameters(), strict=True):
        assert torch.equal(then, now)
    resample(dictionary, optimizer, dead, lambda: x, seeded(), Drawn(toward="input"))
    assert all(bool(parameter.isfinite().all()) for parameter in dictionary.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, dictionary.parameters(), strict=True))
