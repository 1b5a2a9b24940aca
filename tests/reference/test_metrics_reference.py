"""Our metrics against scikit-learn, torchmetrics, NumPy and slow float64 loops."""

import numpy as np
import pytest
import torch
import torchmetrics
from scipy.special import logsumexp, rel_entr, softmax
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import paired_cosine_distances
from torch import Tensor

from sae import functional
from sae.metrics import NextToken, Reconstruction


def data(
    rows: int = 500, d_in: int = 12, mean: float = 0.0, noise: float = 0.4
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(d_in, generator=generator) * 3 + 0.1
    x = mean + spread * torch.randn(rows, d_in, generator=generator)
    return x, x + noise * torch.randn(rows, d_in, generator=generator)


def streamed(x: Tensor, x_hat: Tensor, document: Tensor | None = None) -> Reconstruction:
    metric = Reconstruction(x.shape[1])
    for part in torch.arange(len(x)).split(64):
        documents = None if document is None else document[part]
        metric.update(x[part], x_hat[part], torch.zeros(len(part)), documents)
    return metric


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("noise", [0.01, 0.4, 3.0])
def test_fvu_is_one_minus_pooled_r2(mean, noise):
    x, x_hat = data(mean=mean, noise=noise)
    expected = 1 - r2_score(x.double(), x_hat.double(), multioutput="variance_weighted")
    assert streamed(x, x_hat).compute()["fvu"] == pytest.approx(expected, rel=1e-9)
    outside = torchmetrics.R2Score(multioutput="variance_weighted").set_dtype(torch.float64)
    outside.update(x_hat.double(), x.double())
    assert functional.fvu(x, x_hat).item() == pytest.approx(1 - outside.compute().item(), rel=1e-9)


def test_fvu_is_not_the_variance_ratio():
    x, x_hat = data()
    blind = (x - x_hat - 1).var(0).sum() / x.var(0).sum()  # cannot see a constant offset
    assert functional.fvu(x, x_hat + 1).item() > 2 * blind.item()
    expected = 1 - r2_score(x.double(), (x_hat + 1).double(), multioutput="variance_weighted")
    assert functional.fvu(x, x_hat + 1).item() == pytest.approx(expected, rel=1e-9)


def test_mean_predictor_is_exactly_one():
    x = torch.randint(-8, 9, (256, 4), generator=torch.Generator().manual_seed(0)).float()
    assert functional.fvu(x, x.double().mean(0).expand_as(x)).item() == pytest.approx(1, abs=1e-15)
    x[-1] -= x.sum(0)  # integers whose mean is exactly 0
    assert streamed(x, torch.zeros_like(x)).compute()["fvu"] == 1


def test_mse_cosine_and_ratios():
    x, x_hat = data(mean=0.5)
    result = streamed(x, x_hat).compute()
    a, b = x.double().numpy(), x_hat.double().numpy()
    mse = torchmetrics.MeanSquaredError()(x_hat, x).item()
    assert result["mse"] == pytest.approx(mse, rel=1e-6)
    assert result["mse"] == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)
    assert result["cosine"] == pytest.approx(1 - paired_cosine_distances(a, b).mean(), rel=1e-9)
    lengths = np.linalg.norm(b, axis=1) / np.linalg.norm(a, axis=1)
    assert result["l2_ratio"] == pytest.approx(lengths.mean(), rel=1e-12)
    assert result["relative_bias"] == pytest.approx((b * b).sum() / (a * b).sum(), rel=1e-12)


@pytest.mark.parametrize("mean", [300.0, 1e4, 1e5])
def test_large_mean_does_not_cancel(mean):
    """Rows of mean 300 make float32 sums 0.7 % wrong; here they and worse cost nothing."""
    x, x_hat = data(rows=20_000, mean=mean)
    a, b = x.double().numpy(), x_hat.double().numpy()
    expected = ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert streamed(x, x_hat).compute()["fvu"] == pytest.approx(expected, rel=1e-5)


def test_one_row_of_huge_norm_among_many():
    """An attention sink, kept by keep_first, must not blur the rest."""
    x, x_hat = data(rows=2_000)
    x[::128] *= 1000
    x_hat[::128] = x[::128]
    loop = sum(float(((p - q) ** 2).sum()) for p, q in zip(x.double(), x_hat.double(), strict=True))
    around = ((x.double() - x.double().mean(0)) ** 2).sum().item()
    assert streamed(x, x_hat).compute()["fvu"] == pytest.approx(loop / around, rel=1e-9)


def logits_data(size: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 17, (5, 9), generator=generator)
    document = (torch.arange(45) // 7).view(5, 9)
    names = ("clean", "sae", "zero", "mean")
    return tokens, document, {
        name: size * (2 * torch.rand(5, 9, 17, generator=generator) - 1) for name in names
    }  # fmt: skip


@pytest.mark.parametrize("size", [1.0, 20.0, 200.0])
def test_next_token_against_scipy(size):
    tokens, document, logits = logits_data(size)
    metric = NextToken()
    metric.update(tokens, document, logits)
    got = metric.compute()
    losses: dict[str, list[float]] = {name: [] for name in (*logits, "kl", "kl_zero", "top1")}
    for c in range(5):
        for t in range(1, 8):
            if document[c, t] != document[c, t + 1]:
                continue
            z = {name: value[c, t].double().numpy() for name, value in logits.items()}
            for name, values in z.items():
                losses[name].append(logsumexp(values) - values[tokens[c, t + 1]])
            for name, other in (("kl", "sae"), ("kl_zero", "zero")):
                losses[name].append(rel_entr(softmax(z["clean"]), softmax(z[other])).sum())
            losses["top1"].append(z["clean"].argmax() == z["sae"].argmax())
    mean = {name: np.mean(values) for name, values in losses.items()}
    assert metric.num_rows() == len(losses["clean"])
    for name in logits:
        assert got[f"ce_{name}"] == pytest.approx(mean[name], rel=1e-5)
    for name in ("kl", "kl_zero"):
        assert got[name] == pytest.approx(mean[name], rel=1e-5)
    assert got["top1_agreement"] == pytest.approx(mean["top1"])
    perplexity = got["perplexity_clean"]
    assert perplexity == pytest.approx(np.exp(got["ce_clean"]), rel=1e-12)


def test_perplexity_against_torchmetrics():
    tokens, _, logits = logits_data(3.0)
    outside = torchmetrics.text.Perplexity()(logits["clean"][:, :-1], tokens[:, 1:]).item()
    mask = functional.prediction_mask(torch.zeros_like(tokens), keep_first=True)
    ours = functional.next_token_cross_entropy(logits["clean"], tokens, mask).mean()
    assert functional.perplexity(ours).item() == pytest.approx(outside, rel=1e-5)


def test_kl_against_torchmetrics():
    _, _, logits = logits_data(3.0)
    p, q = (logits[name].double().softmax(-1).view(-1, 17) for name in ("clean", "sae"))
    outside = torchmetrics.KLDivergence().set_dtype(torch.float64)(p, q).item()
    ours = functional.kl_divergence(logits["clean"], logits["sae"]).mean().item()
    assert ours == pytest.approx(outside, rel=1e-5)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Documents with a level of error of their own, drawn anew 200 times: 95 % cover."""
    generator = torch.Generator().manual_seed(0)
    documents, per_document, d_in = 80, 5, 2
    document = torch.arange(documents).repeat_interleave(per_document)
    covered, naive_covered = 0, 0
    for _ in range(200):
        error = torch.rand(documents, generator=generator)[document]  # shared within a document
        x = torch.randn(len(document), d_in, generator=generator)
        noise = torch.randn(len(document), d_in, generator=generator)
        metric = Reconstruction(d_in, num_groups=len(document))
        metric.update(x, x + error[:, None] * noise, torch.zeros(len(document)), document)
        truth = 1 / 3  # E[error^2] / Var(x)
        low, high = metric.intervals(num_resamples=200)["fvu"] or (1, 0)
        covered += low < truth < high
        metric.reset()
        rows = torch.arange(len(document))
        metric.update(x, x + error[:, None] * noise, torch.zeros(len(document)), rows)
        low, high = metric.intervals(num_resamples=200)["fvu"] or (1, 0)
        naive_covered += low < truth < high
    assert 0.92 <= covered / 200 <= 0.98
    assert naive_covered < covered  # resampling tokens pretends to know more
