"""The streaming metrics: states, groups, undefined values, several processes."""

import pickle

import pytest
import torch

from sae import functional
from sae.errors import ConfigError, DegenerateInputError
from sae.metrics import Firing, NextToken, Reconstruction
from sae.metrics.bootstrap import bootstrap_intervals, multinomial_weights


def data(rows: int = 60, d_in: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d_in, generator=generator) + 2
    x_hat = x + 0.3 * torch.randn(rows, d_in, generator=generator)
    l0 = torch.randint(0, 9, (rows,), generator=generator)
    return x, x_hat, l0, torch.arange(rows) // 6


def filled(*batches: tuple[torch.Tensor, ...], num_groups: int = 1024) -> Reconstruction:
    metric = Reconstruction(d_in=4, num_groups=num_groups)
    for batch in batches:
        metric.update(*batch)
    return metric


def test_total_equals_the_one_shot_formulas():
    x, x_hat, l0, document = data()
    total = filled((x[:17], x_hat[:17], l0[:17], document[:17]),
                   (x[17:], x_hat[17:], l0[17:], document[17:])).compute()  # fmt: skip
    for name, value in functional.reconstruction(x, x_hat).items():
        assert total[name] == pytest.approx(value.item(), rel=1e-12)
    assert total["l0"] == l0.double().mean().item()


def test_nothing_seen_is_an_error():
    metrics = (Reconstruction(2), Firing(2), NextToken())
    for metric in metrics:
        metric._update_count = 1  # keeps torchmetrics from warning first
        with pytest.raises(DegenerateInputError, match="seen no"):
            metric.compute()


def test_undefined_is_none():
    metric = Reconstruction(d_in=2)
    metric.update(torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3))
    result = metric.compute()
    assert result["fvu"] is None
    assert result["relative_bias"] is None
    assert result["mse"] == 1


def test_without_documents_there_are_no_intervals():
    x, x_hat, l0, document = data()
    assert set(filled((x, x_hat, l0)).intervals().values()) == {None}
    assert set(filled((x, x_hat, l0, torch.zeros_like(document))).intervals().values()) == {None}


def test_intervals_hold_the_value_and_repeat():
    metric = filled(data())
    intervals, values = metric.intervals(seed=3), metric.compute()
    assert intervals == filled(data()).intervals(seed=3)
    assert intervals != metric.intervals(seed=4)
    wider = metric.intervals(seed=3, level=0.99)
    for name, interval in intervals.items():
        assert interval is not None
        value, wide = values[name], wider[name]
        assert value is not None
        assert wide is not None
        assert wide[0] <= interval[0] < value < interval[1] <= wide[1]


def test_each_resample_has_its_own_variance():
    """Against a loop that really repeats the rows of the drawn documents."""
    x, x_hat, l0, document = data()
    weights = multinomial_weights(10, 50, seed=1)
    fvus = torch.stack([
        functional.fvu(x.repeat_interleave(w[document].long(), 0),
                       x_hat.repeat_interleave(w[document].long(), 0))
        for w in weights
    ])  # fmt: skip
    low, high = fvus.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    interval = filled((x, x_hat, l0, document)).intervals(num_resamples=50, seed=1)["fvu"]
    assert interval == pytest.approx((low, high), rel=1e-9)


def test_more_documents_than_groups_share_groups():
    x, x_hat, l0, document = data()
    few, many = filled(data(), num_groups=3), filled(data())
    assert few.compute() == pytest.approx(many.compute(), rel=1e-12)
    assert few.num_rows() == 60
    assert (few.num_units(), many.num_units()) == (3, 10)
    assert few.intervals()["fvu"] is not None


def test_states_of_two_processes_add_up():
    x, x_hat, l0, document = data()
    first = filled((x[:20], x_hat[:20], l0[:20], document[:20]))
    second = filled((x[20:], x_hat[20:], l0[20:], document[20:]))
    together = Reconstruction(d_in=4)
    for name, reduce in first._reductions.items():
        states = torch.stack([getattr(first, name), getattr(second, name)])
        setattr(together, name, reduce(states))  # what torchmetrics does after a gather
    together._update_count = 1
    assert together.compute() == pytest.approx(filled(data()).compute(), rel=1e-12)


def test_metrics_survive_pickling_and_reset():
    metric = filled(data())
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    metric.reset()
    assert metric.num_rows() == 0


def test_half_precision_input_is_summed_in_float64():
    x, x_hat, l0, _ = data()
    metric = Reconstruction(d_in=4).to(torch.bfloat16)
    metric.update(x.bfloat16(), x_hat.bfloat16(), l0)
    expected = functional.fvu(x.bfloat16().double(), x_hat.bfloat16().double()).item()
    assert metric.compute()["fvu"] == pytest.approx(expected, rel=1e-12)


def test_firing_adds_batches():
    metric = Firing(d_sae=5)
    metric.update(torch.tensor([0, 0, 1, 5, 10]), 10)
    metric.update(torch.tensor([0, 1, 1, 0, 10]), 10)
    result = metric.compute()
    assert result["silent"] == 0.2
    assert result["dense"] == pytest.approx(2 / 5)  # exactly 10 % is not dense
    assert result["num_rows"] == 20
    frequencies = metric.frequencies
    assert frequencies.tolist() == [0, 0.05, 0.1, 0.25, 1]


def next_token_data(contexts: int = 6, ctx: int = 8, vocab: int = 11):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab, (contexts, ctx), generator=generator)
    document = (torch.arange(contexts * ctx) // 13).view(contexts, ctx)
    logits = {
        name: torch.randn(contexts, ctx, vocab, generator=generator)
        for name in ("clean", "sae", "zero", "mean")
    }
    return tokens, document, logits


def test_next_token_equals_plain_means():
    tokens, document, logits = next_token_data()
    metric = NextToken()
    for part in (slice(0, 1), slice(1, 6)):
        metric.update(tokens[part], document[part], {k: v[part] for k, v in logits.items()})
    result = metric.compute()
    mask = functional.prediction_mask(document)
    for name in logits:
        mean = functional.next_token_cross_entropy(logits[name], tokens, mask).double().mean()
        assert result[f"ce_{name}"] == pytest.approx(mean.item())
    ce = {name: result[f"ce_{name}"] for name in logits}
    assert result["delta_ce"] == pytest.approx(ce["sae"] - ce["clean"])
    assert metric.num_rows() == int(mask.sum())
    for name, key in (("sae", "kl"), ("zero", "kl_zero"), ("mean", "kl_mean")):
        kl = functional.kl_divergence(logits["clean"], logits[name])[:, :-1][mask].double().mean()
        assert result[key] == pytest.approx(kl.item())
    agree = functional.top1_agreement(logits["clean"], logits["sae"])[:, :-1][mask]
    assert result["top1_agreement"] == pytest.approx(agree.double().mean().item())


def test_next_token_takes_known_ablations():
    tokens, document, logits = next_token_data()
    full = NextToken()
    full.update(tokens, document, logits)
    again = NextToken()
    again.update(tokens, document, {name: logits[name] for name in ("clean", "sae")})
    for name in ("zero", "mean"):
        again.set_ablation(name, full.ablation(name))
    assert again.compute() == full.compute()
    assert again.intervals() == full.intervals()


def test_next_token_keeps_first_when_asked():
    tokens, document, logits = next_token_data()
    metric = NextToken(ablations=(), keep_first=True)
    metric.update(tokens, document, {name: logits[name] for name in ("clean", "sae")})
    assert metric.num_rows() == int(functional.prediction_mask(document, keep_first=True).sum())
    assert "ce_zero" not in metric.compute()


def test_unknown_ablation_is_an_error():
    with pytest.raises(ConfigError, match="zero, mean"):
        NextToken(ablations=("resample",))


def test_undefined_in_a_resample_gives_no_interval():
    sums = {"rows": torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)}
    assert bootstrap_intervals(lambda s: {"inverse": 1 / s["rows"]}, sums) == {"inverse": None}
