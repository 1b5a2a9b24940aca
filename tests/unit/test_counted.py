"""Which rows count: the rule, the rows of a split under it, and what a bad SAE scores."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _activations import MLP, RESID, WORDS, FakeCorpus, FakeSource, FakeTokenizer, small_chunks
from _evals import CTX, D_IN, POINT, TinyLM, coarse_sae, constant_sae, identity_sae, make, values

from sae import functional
from sae.activations import cache as cache_module
from sae.activations.counted import Counted, RowRule
from sae.activations.counted_rows import CountedRows, all_rows
from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.activations.rows import parts_of
from sae.activations.sources import LMActivations
from sae.activations.stats import RunningStats
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, DegenerateInputError
from sae.evals import CoreEval, DownstreamEval
from sae.language.text import special_ids
from sae.types import SPLITS, Ends

MASSIVE = 7
"""A token whose activations are 100 times as long as the others'."""


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    monkeypatch.setattr(cache_module, "ROWS_PER_CHUNK", cache_module.ROWS_PER_CHUNK)
    small_chunks()


def activations(where: Any = RESID, massive: bool = True, **settings: Any) -> LMActivations:
    source = FakeSource()
    if massive:
        source.lm.embedding[MASSIVE] *= 100
    counts = {"tokens": 2000, "val_tokens": 200, "test_tokens": 200}
    return LMActivations(
        source, FakeCorpus(), where, ctx=8, val_fraction=0.1, test_fraction=0.1,
        **(counts | settings),
    )  # fmt: skip


def everything(source: LMActivations, split: Any, point: Any) -> tuple[torch.Tensor, np.ndarray]:
    """All rows of a point with their tokens, read from the store."""
    rows = source.store(split).rows(point)
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)])
    return x, source.store(split).tokens[:, 1:].ravel()


def read_all(rows: Any) -> torch.Tensor:
    return torch.cat([rows.read(i) for i in range(rows.num_chunks)])


def test_special_tokens_of_a_tokenizer():
    tokenizer: Any = FakeTokenizer()
    assert special_ids(tokenizer) == (WORDS,)
    tokenizer.get_vocab = lambda: {"<|endoftext|>": 4}
    tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id = 2, 1, None
    tokenizer.all_special_ids = [1, 2, 9]
    assert special_ids(tokenizer) == (1, 2, 4)
    assert special_ids(tokenizer, every=True) == (1, 2, 4, 9)


@pytest.mark.parametrize("given", [{"max_norm": 0.0}, {"max_norm": -1.0}])
def test_settings_that_cannot_be_are_errors(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        RowRule(**given)


@pytest.mark.slow
@pytest.mark.parametrize("where", [RESID, Ends((RESID,), (MLP,))], ids=["one", "pair"])
def test_rows_that_count_are_those_of_a_slow_loop(where):
    source = activations(where)
    source.prepare()
    points = source.ends.points
    limits = []
    for point in points:
        x, tokens = everything(source, "train", point)
        norms = [row.double().norm().item() for row, t in zip(x, tokens, strict=True) if t != WORDS]
        limits.append(10 * float(np.median(norms)))
        assert source.counted.limits[str(point)] == pytest.approx(limits[-1], rel=0.006)
    for split in SPLITS:
        found = [everything(source, split, point) for point in points]
        tokens = found[0][1]
        keep = np.array([
            token != WORDS
            and all(x[i].double().norm() <= limit
                    for (x, _), limit in zip(found, limits, strict=True))
            for i, token in enumerate(tokens)
        ])  # fmt: skip
        assert (tokens == MASSIVE).any()
        assert keep.tolist() == (~np.isin(tokens, (WORDS, MASSIVE))).tolist()
        rows, expected = source.split(split), torch.cat([x for x, _ in found], dim=1)[keep]
        assert torch.equal(read_all(rows), expected)
        assert rows.num_rows == keep.sum()
        assert torch.equal(read_all(all_rows(rows)), torch.cat([x for x, _ in found], dim=1))
        documents = source.store(split).document[:, 1:].ravel()[keep]
        got = [rows.documents(i) for i in range(rows.num_chunks)]
        assert np.concatenate(got).tolist() == documents.tolist()  # pyright: ignore
        widths = [part.d_in for part in parts_of(rows)]
        for part, wanted in zip(parts_of(rows), expected.split(widths, dim=1), strict=True):
            np.testing.assert_allclose(part.stats.mean, wanted.double().mean(0), rtol=1e-12)
            assert part.stats.num_rows == keep.sum()


def test_another_rule_needs_no_harvest_and_a_known_one_no_pass(monkeypatch):
    source = activations()
    source.prepare()
    assert source.split("train").num_rows > 0
    passes = len(source.source.lm.batches)  # pyright: ignore
    again = activations(special="keep", max_norm=None)
    again.prepare()
    assert not again.source.lm.batches  # pyright: ignore
    assert again.split("train").num_rows == 250 * 7
    assert len(source.source.lm.batches) == passes  # pyright: ignore
    monkeypatch.setattr(RunningStats, "update", lambda *_: pytest.fail("measured again"))
    known = activations()
    assert known.split("train").stats.to_json() == source.split("train").stats.to_json()


def test_saved_limits_decide_whatever_the_text():
    source = activations()
    source.prepare()
    saved = source.counted.to_json()
    test = activations(norm_limits=saved["limits"], tokens=1000)
    test.prepare(splits=["test"])  # no training text is read
    assert test.counted.limits == source.counted.limits
    assert torch.equal(read_all(test.split("test")), read_all(source.split("test")))
    of_test = activations(median_of="test")
    of_test.prepare(splits=["test"])
    x, tokens = everything(of_test, "test", RESID)
    norms = x[torch.from_numpy(tokens != WORDS)].double().norm(dim=1).numpy()
    assert of_test.counted.limits["resid.0"] == pytest.approx(10 * np.median(norms), rel=0.006)
    assert of_test.counted.to_json()["median_of"] == "test"


def test_batches_are_of_rows_that_count_and_any_step_is_reached():
    data = ActivationDataModule(activations(), batch_size=96, epochs=2, buffer_rows=300, seed=3,
                                normalize="none")  # fmt: skip
    data.prepare_data()

    def batches(step: int) -> list[torch.Tensor]:
        data.trainer = SimpleNamespace(  # pyright: ignore
            global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1
        )
        return list(data.train_dataloader())

    whole = batches(0)
    num_rows = data.rows("train").num_rows
    assert len(whole) == data.steps == 2 * num_rows // 96
    epoch = torch.cat(whole)[:num_rows]
    expected = read_all(data.rows("train")).float()
    assert torch.equal(epoch.sort(dim=0).values, expected.sort(dim=0).values)
    for step in (1, data.steps // 2, data.steps - 1):
        assert all(map(torch.equal, batches(step), whole[step:]))
    longest = torch.cat(whole).norm(dim=1).max()
    assert longest <= data.counted.limits["resid.0"]  # pyright: ignore
    assert data.sample_rows(10**6, 0).norm(dim=1).max() <= longest


def test_a_checkpoint_of_another_rule_is_refused_and_both_are_named():
    old = ActivationDataModule(activations(), batch_size=32)
    old.prepare_data()
    new = ActivationDataModule(activations(max_norm=5.0), batch_size=32)
    new.prepare_data()
    with pytest.raises(ConfigError, match="special=drop max_norm=10") as error:
        new.load_state_dict(old.state_dict())
    assert "special=drop max_norm=5" in str(error.value)
    before = {name: value for name, value in old.state_dict().items() if name != "rows"}
    with pytest.raises(ConfigError, match="special=keep max_norm=null"):
        new.load_state_dict(before)  # saved before there was a rule
    assert old.source.describe()["key"] != new.source.describe()["key"]


def test_own_rows_have_norms_alone():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 4, generator=generator)
    x[::100] *= 1000
    source = TensorActivations(x, val_fraction=0.2, test_fraction=0.2)
    source.prepare()
    for split, part in (("train", x[:3600]), ("test", x[4800:])):
        keep = torch.arange(len(part)) % 100 != 0
        rows = source.split(split)  # pyright: ignore
        assert torch.equal(read_all(rows), part[keep])
    assert TensorActivations(x, max_norm=None).split("train").num_rows == 5400


def test_without_a_median_there_is_no_cut():
    x = torch.zeros(100, 2)
    x[::10] = torch.arange(1.0, 11.0)[:, None]
    source = TensorActivations(x, val_fraction=0.0, test_fraction=0.0)
    assert source.counted.limits == {"x": math.inf}
    assert torch.equal(read_all(source.split("train")), x)
    assert source.counted.to_json()["limits"] == {"x": None}


def test_a_rule_that_leaves_nothing_is_an_error():
    source = activations(max_norm=1e-9)
    source.prepare()
    with pytest.raises(DegenerateInputError, match="max_norm"):
        _ = source.split("train").num_rows


# What a bad SAE scores


class HeavyLM(TinyLM):
    """The last token but one is 100 times as long as the others, along one direction."""

    def __init__(self, length: float = 300.0) -> None:
        super().__init__()
        self.embed[-2] = length * torch.eye(D_IN)[0]

    def activation(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embed[tokens] + 0.3 * torch.arange(tokens.shape[1])[:, None] / tokens.shape[1]


def first_direction_sae() -> SAE:
    """Reproduces the first coordinate where it is large, and nothing else."""
    atoms = torch.eye(D_IN)[:2].clone()
    atoms[1] = -atoms[0]
    config = SAEConfig("l1", "relu", D_IN, 2)
    return SAE(atoms.T.contiguous(), torch.full((2,), -20.0), atoms, torch.zeros(D_IN), config)


COUNTED = Counted(RowRule(), (0,), {str(POINT): 50.0})


def test_an_sae_that_hits_only_massive_rows_is_seen_by_every_headline_number(tmp_path):
    sae = first_direction_sae()
    fooled = values(CoreEval().run(make(sae, tmp_path / "all", lm=HeavyLM())))
    assert fooled["fvu"] < 0.02  # what one number over all rows would say
    result = CoreEval().run(make(sae, tmp_path / "counted", counted=COUNTED, lm=HeavyLM()))
    seen = values(result)
    for name in ("fvu", "fvu_median", "fvu_under_4_medians"):
        assert seen[name] > 0.9, name
    assert seen["fvu_all_rows"] == pytest.approx(fooled["fvu"], rel=1e-9)
    assert seen["cosine"] < 0.1
    assert seen["l0"] == 0
    downstream = DownstreamEval(num_tokens=20 * CTX, batch_contexts=4)
    context = make(sae, tmp_path / "downstream", counted=COUNTED, lm=HeavyLM())
    predicted = values(downstream.run(context))
    assert predicted["ce_recovered_zero"] < 0.1
    assert predicted["kl"] > 0.9 * predicted["kl_zero"]
    assert predicted["top1_agreement"] < 0.1


def test_heavy_rows_below_the_cut_are_seen_by_what_stands_beside_fvu(tmp_path):
    """As at layer 4 of the default LM: the longest rows under ten medians hold the variance."""
    lm = HeavyLM(length=49.0)
    result = values(CoreEval().run(make(first_direction_sae(), tmp_path, counted=COUNTED, lm=lm)))
    assert result["fvu"] < 0.4
    assert result["first_direction"] > 0.8
    assert result["fvu_median"] > 1.5 * result["fvu"]
    assert result["fvu_under_4_medians"] > 1


def test_the_mean_scores_fvu_1_and_recovers_nothing_of_the_mean_ablation(tmp_path):
    rows = make(identity_sae(), tmp_path / "a", counted=COUNTED, lm=HeavyLM()).rows("test")
    mean = torch.from_numpy(rows.stats.mean).float()
    context = make(constant_sae(mean), tmp_path / "b", counted=COUNTED, lm=HeavyLM())
    core = values(CoreEval().run(context))
    assert core["fvu"] == pytest.approx(1, abs=1e-6)
    assert core["fvu_median"] == pytest.approx(1, abs=1e-6)
    result = DownstreamEval(num_tokens=20 * CTX).run(context)
    recovered = result.metrics["ce_recovered_mean"]
    assert recovered.value == pytest.approx(0, abs=1e-6)
    assert recovered.low is not None
    assert recovered.low <= 1e-6 <= recovered.high + 2e-6  # pyright: ignore
    assert 0 < result.metrics["predictions_left_out"].value < 0.5  # pyright: ignore


def test_rows_that_do_not_count_stay_as_they_are_under_every_condition(tmp_path):
    """Against a loop over single predictions, in float64."""
    context = make(coarse_sae(), tmp_path, counted=COUNTED, lm=HeavyLM())
    result = DownstreamEval(num_tokens=6 * CTX, batch_contexts=4).run(context)
    store, lm = context.store("test"), HeavyLM()
    assert store is not None
    mean = torch.from_numpy(context.rows("test").stats.mean)
    sums: dict[str, list[float]] = {"clean": [], "sae": [], "zero": [], "mean": []}
    made = eligible = 0
    for c in range(6):
        tokens = torch.from_numpy(store.tokens[c]).long()
        x = lm.activation(tokens[None])[0]
        counts = [t > 0 and tokens[t] != 0 and x[t].norm() <= 50 for t in range(CTX)]
        for t in range(1, CTX - 1):
            if store.document[c, t] != store.document[c, t + 1]:
                continue
            eligible += 1
            if not counts[t]:
                continue
            made += 1
            replaced = {"clean": x[t], "sae": context.sae(x[t]), "zero": 0 * x[t], "mean": mean}
            for name, value in replaced.items():
                log_p = torch.log_softmax(value.double() @ lm.unembed.double(), -1)
                sums[name].append(-log_p[tokens[t + 1]].item())
    got = values(result)
    assert 0 < made < eligible
    assert result.tokens["predictions"] == made
    assert result.details["left_out"]["not_counted"] == eligible - made
    assert got["predictions_left_out"] == pytest.approx(1 - made / eligible)
    for name, terms in sums.items():
        assert got[f"ce_{name}"] == pytest.approx(sum(terms) / made, rel=1e-5), name


def test_core_counts_rows_documents_and_what_is_left_out(tmp_path):
    context = make(coarse_sae(), tmp_path, counted=COUNTED, lm=HeavyLM())
    rows = context.rows("test")
    assert isinstance(rows, CountedRows)
    x, keep = rows.all.x, [rows.mask(i, rows.all.read(i)) for i in range(rows.num_chunks)]  # pyright: ignore
    kept = x[torch.cat(keep)]
    result = CoreEval(batch_rows=50).run(context)
    got = values(result)
    x_hat = context.sae(kept)
    assert got["fvu"] == pytest.approx(functional.fvu(kept, x_hat).item(), rel=1e-9)
    assert got["fvu_all_rows"] == pytest.approx(functional.fvu(x, context.sae(x)).item(), rel=1e-9)
    assert got["left_out"] == pytest.approx(1 - len(kept) / len(x))
    error = (kept - x_hat).double().square().sum(1)
    ratios = error / (kept.double() - kept.double().mean(0)).square().sum(1)
    assert got["fvu_median"] == pytest.approx(ratios.median().item(), rel=0.02)
    norms = kept.double().norm(dim=1)
    short = norms < 4 * norms.median()
    assert got["fvu_under_4_medians"] == pytest.approx(
        functional.fvu(kept[short], x_hat[short]).item(), rel=1e-6
    )
    centred = kept.double() - kept.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    share = (eigenvalues[-1] / eigenvalues.sum()).item()
    assert got["first_direction"] == pytest.approx(share, rel=1e-3)
    documents = rows.all.document[torch.cat(keep).numpy()]  # pyright: ignore
    assert result.tokens == {"vectors": len(kept), "documents": len(np.unique(documents))}
    assert result.details["left_out"]["not_counted"] == len(x) - len(kept)
    for name in ("fvu_median", "fvu_under_4_medians", "fvu_all_rows", "left_out"):
        estimate = result.metrics[name]
        assert estimate.low <= estimate.value <= estimate.high  # pyright: ignore
