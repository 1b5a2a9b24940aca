import io
import json
import logging
from dataclasses import dataclass

import lightning as L
import numpy as np
import pytest
import torch
from _evals import place
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch.utils.data import DataLoader

from callbacks.dead_features import DeadFeatures
from callbacks.downstream import DownstreamPerplexity
from callbacks.manifest import Manifest
from callbacks.metrics_csv import MetricsCSV
from callbacks.progress import TrainingProgress
from callbacks.reconstruction import Reconstruction
from sae import functional
from sae.activations.folder import TensorActivations
from sae.activations.store import ActivationStore
from sae.dictionaries import build_dictionary
from sae.dictionaries.codes import DenseCode
from sae.errors import ConfigError
from sae.evals import DownstreamEval
from sae.language import LanguageModel
from sae.types import Point

ROWS, D = 48, 6
X = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0)) + 0.5


class Module(L.LightningModule):
    """A Lightning module with just what the callbacks read."""

    dead_after_tokens = 20

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(D))
        self.register_buffer("tokens_since_fired", torch.tensor([0, 19, 20, 500]))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))

    def training_step(self, x, batch_idx):
        self.tokens_seen += len(x)
        self.log_dict({"train/loss": 0.5, "tokens": self.tokens_seen.double()})
        return (self.weight * x).square().mean()

    def validation_step(self, x, batch_idx):
        x_hat = x * self.weight.detach() * 0.9
        f = torch.zeros(len(x), 4)
        f[:, 1] = 1.0  # fires always
        if batch_idx == 0:
            f[0, 2] = 1.0  # fires on one vector of all
        return {"x": x, "x_hat": x_hat, "code": DenseCode(f)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Recorder(Logger):
    name = version = ""

    def __init__(self):
        super().__init__()
        self.logged, self.histograms = {}, []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.update({(step, key): value for key, value in metrics.items()})

    def log_firing_histogram(self, histogram, step):
        self.histograms.append((step, histogram))


def fit(callbacks, loggers, steps=6, module=None, **kwargs):
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=loggers, callbacks=callbacks,
        enable_checkpointing=False, enable_model_summary=False, val_check_interval=3,
        check_val_every_n_epoch=None, log_every_n_steps=2,
        enable_progress_bar=any(isinstance(c, TrainingProgress) for c in callbacks), **kwargs,
    )  # fmt: skip
    loader = DataLoader(X, batch_size=8)  # pyright: ignore[reportArgumentType]
    trainer.fit(module or Module(), loader, DataLoader(X, batch_size=7))  # pyright: ignore
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning with torch 2.13
]


def test_reconstruction_is_that_of_the_whole_split():
    recorder = Recorder()
    fit([Reconstruction()], [recorder])
    expected = functional.reconstruction(X, X * 0.9)
    steps = {step for step, key in recorder.logged if key == "val/fvu"}
    assert len(steps) == 2
    for name in ("fvu", "mse", "cosine", "relative_bias"):
        for step in steps:
            assert recorder.logged[step, f"val/{name}"] == pytest.approx(expected[name].item())
    step = max(steps)
    assert recorder.logged[step, "val/l0"] == 1 + 1 / ROWS
    assert recorder.logged[step, "tokens"] == 6 * 8


def test_the_median_row_of_the_split_stands_beside_its_fvu():
    recorder = Recorder()
    fit([Reconstruction(lambda: X.mean(0))], [recorder])
    error, square = (0.1 * X).square().sum(1), (X - X.mean(0)).square().sum(1)
    medians = [v for (_, key), v in recorder.logged.items() if key == "val/fvu_median"]
    ratios = (error / square).sort().values  # of 48 rows, over batches of 7
    assert len(medians) == 2
    for found in medians:
        assert 0.994 * ratios[23] <= found <= 1.006 * ratios[24]
    assert medians[0] != pytest.approx(functional.fvu(X, 0.9 * X).item(), rel=0.02)


def test_the_median_is_of_what_the_sae_writes():
    recorder = Recorder()
    read = torch.full((4,), 99.0)
    fit([Reconstruction(lambda: torch.cat([read, X.mean(0)]))], [recorder])
    alone = Recorder()
    fit([Reconstruction(lambda: X.mean(0))], [alone])
    assert recorder.logged[5, "val/fvu_median"] == alone.logged[5, "val/fvu_median"]


def test_dead_silent_dense_and_the_histogram():
    recorder, callback = Recorder(), DeadFeatures()
    fit([callback], [recorder])
    dead = {step: v for (step, key), v in recorder.logged.items() if key == "train/dead"}
    assert dead == {1: 0.5, 3: 0.5, 5: 0.5}
    assert recorder.logged[5, "val/silent"] == 0.5
    assert recorder.logged[5, "val/dense"] == 0.25
    assert [step for step, _ in recorder.histograms] == [3, 6]
    assert callback.histogram == recorder.histograms[-1][1]
    assert callback.histogram["silent"] == 2
    assert sum(callback.histogram["latents"]) == 2


def test_a_module_without_counters_only_lacks_the_dead_share():
    class Plain(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("tokens_seen", None)
            self.register_buffer("tokens_since_fired", None)

        def training_step(self, x, batch_idx):
            return (self.weight * x).square().mean()

    recorder = Recorder()
    fit([DeadFeatures()], [recorder], module=Plain())
    names = {key for _, key in recorder.logged}
    assert names == {"val/silent", "val/dense", "epoch"}


def test_a_validation_step_that_returns_nothing_is_an_error_that_says_what_to_return():
    class Silent(Module):
        def validation_step(self, x, batch_idx):
            return {"loss": 0.0}

    with pytest.raises(ConfigError, match="without 'x'.*x_hat"):
        fit([Reconstruction()], [], module=Silent())


@pytest.fixture(scope="module")
def lm():
    from sae.language import LMSource

    source = LMSource.from_config({"kind": "random", "name": "tiny", "family": "llama"})
    return source.load()


@pytest.fixture(scope="module")
def contexts(lm):
    """What the LM itself would say, so that ablations have something to spoil."""
    tokens = torch.randint(0, 256, (5, 1), generator=torch.Generator().manual_seed(0))
    for _ in range(15):
        tokens = torch.cat([tokens, lm.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    document = np.arange(80).reshape(5, 16) // 13
    return tokens.int().numpy(), document.astype(np.int32)


POINT = Point("resid", 0)


@dataclass
class Spec:
    keep_first: bool = False


class Store(ActivationStore):
    """Tokens without activations."""

    def __init__(self, contexts, folder):
        self.tokens, self.document = contexts
        self.spec, self.folder = Spec(), folder


@pytest.fixture
def downstream(lm, contexts, tmp_path):
    def make(load=None, mean=None, **kwargs):
        mean = torch.zeros(lm.d_model) if mean is None else mean
        return DownstreamPerplexity(
            load or (lambda: lm), Store(contexts, tmp_path), POINT, mean,
            **({"batch_contexts": 2} | kwargs),
        )  # fmt: skip

    return make


def test_downstream_agrees_with_a_slow_loop(lm, contexts, downstream):
    mean = torch.randn(lm.d_model)
    values = downstream(mean=mean).measure(lambda x: 0.5 * x)
    tokens, document = (torch.tensor(a).long() for a in contexts)
    sums = dict.fromkeys(["clean", "sae", "zero", "mean", "kl"], 0.0)
    count = 0
    for row in range(5):
        one = tokens[row : row + 1]
        act = lm.capture(one, [POINT])[POINT]
        logs = {}
        for name, new in {"clean": act, "sae": act * 0.5, "zero": act * 0,
                          "mean": mean.expand_as(act)}.items():  # fmt: skip
            new = torch.cat([act[:, :1], new[:, 1:]], 1)  # position 0 stays
            logits = lm.logits(one, {POINT: lambda x, new=new: new})
            logs[name] = logits[0].double().log_softmax(-1)
        for position in range(1, 15):
            if document[row, position] == document[row, position + 1]:
                count += 1
                for name in logs:
                    sums[name] -= logs[name][position, tokens[row, position + 1]].item()
                clean, spliced = logs["clean"][position], logs["sae"][position]
                sums["kl"] += (clean.exp() * (clean - spliced)).sum().item()
    ce = {name: value / count for name, value in sums.items()}
    assert values["ce_clean"] == pytest.approx(ce["clean"], rel=1e-5)
    assert values["ce_sae"] == pytest.approx(ce["sae"], rel=1e-5)
    assert values["kl"] == pytest.approx(ce["kl"], rel=1e-4)
    assert values["perplexity_sae"] == pytest.approx(np.exp(ce["sae"]), rel=1e-5)
    for name in ("zero", "mean"):
        recovered = (ce[name] - ce["sae"]) / (ce[name] - ce["clean"])
        assert values[f"ce_recovered_{name}"] == pytest.approx(recovered, rel=1e-3)


def test_the_identity_recovers_everything_and_zero_ablation_nothing(downstream):
    callback = downstream()
    perfect = callback.measure(lambda x: x)
    nothing = callback.measure(torch.zeros_like)
    assert perfect["ce_recovered_zero"] == pytest.approx(1.0, abs=1e-6)
    assert perfect["kl"] == pytest.approx(0.0, abs=1e-6)
    assert nothing["ce_recovered_zero"] == pytest.approx(0.0, abs=1e-6)


def test_ablations_are_made_once_and_the_lm_is_loaded_late(lm, downstream, caplog):
    calls, loads = [], []

    class Counting(LanguageModel):
        device, dtype, identity = lm.device, lm.dtype, lm.identity

        def __init__(self): ...

        def logits(self, tokens, replace=None):
            calls.append(1)
            return lm.logits(tokens, replace)

        def logits_under(self, tokens, conditions):
            return (self.logits(tokens, replace) for replace in conditions)

    def load():
        torch.rand(3)  # as building an LM does
        loads.append(1)
        return Counting()

    callback = downstream(load=load)
    assert not loads
    torch.manual_seed(7)
    with caplog.at_level(logging.INFO):
        first = callback.measure(lambda x: x * 0.5)
    assert not caplog.records  # the bar of the training goes on
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(7))
    assert (len(calls), len(loads)) == (12, 1)
    assert callback.measure(lambda x: x * 0.5) == first
    assert (len(calls), len(loads)) == (18, 1)
    # the next run on these tokens has no ablations to make either
    assert downstream(load=load).measure(lambda x: x * 0.5) == first
    assert (len(calls), len(loads)) == (24, 2)


def test_it_is_the_evaluation(lm, contexts, downstream, tmp_path):
    """The same numbers as `eval=downstream`, by the same sums on disk."""
    sae = build_dictionary({"architecture": "topk", "dict_ratio": 2, "k": 3}, d_in=lm.d_model,
                           seed=1).folded(1.0)  # fmt: skip
    rows = TensorActivations(torch.randn(400, lm.d_model)).split("test")
    mean = torch.as_tensor(rows.stats.mean).float()
    watched = downstream(mean=mean, num_tokens=50).measure(sae)
    (kept,) = (tmp_path / "ablations").iterdir()
    context = place(sae, POINT, rows, Store(contexts, tmp_path), lambda: lm)
    result = DownstreamEval(num_tokens=50, batch_contexts=2).run(context)
    assert {name: e.value for name, e in result.metrics.items()} == watched
    assert result.tokens["tokens"] == 48
    assert list((tmp_path / "ablations").iterdir()) == [kept]


def test_downstream_logs_every_nth_validation_and_resumes_the_count(downstream):
    recorder = Recorder()
    callback = downstream(every_n_validations=2, splice=lambda module: lambda x: x * 0.5)
    fit([callback], [recorder], steps=9)
    assert {s for s, k in recorder.logged if k.startswith("val/")} == {5}
    assert recorder.logged[5, "val/perplexity_clean"] > 1
    assert callback.state_dict() == {"validations": 3}
    other = downstream(every_n_validations=2)
    other.load_state_dict(callback.state_dict())
    assert other.state_dict() == {"validations": 3}


def test_downstream_splices_the_sae_as_it_would_be_saved(lm, downstream):
    dictionary = build_dictionary(
        {"architecture": "topk", "dict_ratio": 2, "k": 3}, d_in=lm.d_model, seed=1
    )
    module = Module()
    module.dictionary, module.scale = dictionary, 0.3
    splice = downstream().splice(module)
    x = torch.randn(2, 5, lm.d_model)
    expected = dictionary(x.reshape(10, -1) * 0.3).reshape(x.shape) / 0.3
    torch.testing.assert_close(splice(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"every_n_validations": 0}, "every_n_validations=0"),
        ({"batch_contexts": 0}, "at least 1"),
        ({"num_tokens": 15}, "callbacks.downstream: num_tokens=15 is less than one context of 16"),
    ],
)
def test_downstream_refuses_nonsense(downstream, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        downstream(**kwargs)


def test_manifest_keeps_all_sessions(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = Manifest(path, config={"l1": 1e-3}, seeds={"seed": 3})
    with manifest.stage("harvest"):
        pass
    fit([manifest], [])
    content = json.loads(path.read_text())
    assert (content["config"], content["seeds"]) == ({"l1": 1e-3}, {"seed": 3})
    (session,) = content["sessions"]
    assert (session["status"], session["from_step"], session["to_step"]) == ("finished", 0, 6)
    assert set(session["stage_seconds"]) == {"harvest", "train", "validate"}
    assert session["training"]["vectors"] == 48
    assert session["training"]["vectors_per_second"] > 0
    assert session["versions"]["torch"]

    class Killed(Exception):
        pass

    class KillsLater(Module):
        def training_step(self, x, batch_idx):
            if self.global_step == 4:
                raise Killed
            return super().training_step(x, batch_idx)

    with pytest.raises(Killed):
        fit([Manifest(path)], [], module=KillsLater())
    content["sessions"].append({**session, "started_utc": "later", "status": "running"})
    del content["checksum"]  # it was changed on purpose
    path.write_text(json.dumps(content))
    fit([third := Manifest(path)], [])
    with third.stage("evaluate"):
        pass
    sessions = json.loads(path.read_text())["sessions"]
    assert [s["status"] for s in sessions] == ["finished", "killed", "finished"]
    assert "evaluate" in sessions[-1]["stage_seconds"]


def test_manifest_says_why_a_session_failed(tmp_path):
    class Diverges(Module):
        def training_step(self, x, batch_idx):
            raise RuntimeError("loss is nan")

    with pytest.raises(RuntimeError):
        fit([Manifest(tmp_path / "manifest.json")], [], module=Diverges())
    (session,) = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert (session["status"], session["error"]) == ("failed", "RuntimeError: loss is nan")


def test_progress_draws_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    fit([TrainingProgress(console=console), Reconstruction(), DeadFeatures()], [])
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "6/6" in text
    assert "vectors/s" in text
    assert "l0 1, dead 50.0 %" in text


def test_progress_logs_lines_elsewhere(caplog):
    console = Console(file=io.StringIO())
    with caplog.at_level(logging.INFO, "callbacks.progress"):
        fit([TrainingProgress(log_seconds=0.0, console=console), DeadFeatures()], [])
    lines = [r.getMessage() for r in caplog.records if r.name == "callbacks.progress"]
    assert lines[0].startswith("train: step 1 of 6, ")
    assert " s left" in lines[0]
    assert "dead 50.0 %" in lines[-1]
    assert console.file.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics_csv_holds_training_and_validation_in_one_row(tmp_path):
    fit([Reconstruction(), DeadFeatures()], [MetricsCSV(tmp_path / "metrics.csv")])
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert names[:3] == ["step", "tokens", "train/loss"]
    assert "epoch" not in names
    assert [row.split(",")[:2] for row in rows] == [
        ["1", "16"], ["2", "24"], ["3", "32"], ["5", "48"],
    ]  # fmt: skip
    assert all(rows[-1].split(","))
