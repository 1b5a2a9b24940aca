"""From words and saved metadata to evaluations, sources and names of files."""

import numpy as np
import pytest
import torch

from sae.activations.folder import FolderActivations
from sae.activations.from_config import lm_activations
from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE, find_device, own_settings, source_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ArtifactError, ConfigError, SourceError, StoreError
from sae.evals import CoreEval, DownstreamEval, Estimate, EvalResult, Evaluation, Measured, Table
from sae.evals.from_config import check_evals, ctx_of, make_evals, measure, run_evals
from sae.evaluation import _as_in_run
from sae.reports.results import result_file
from sae.tables import read_table
from sae.types import Point

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 60}
COUNTS = {"tokens": 640, "val_tokens": 320, "test_tokens": 640, "ctx": 32,
          "val_fraction": 0.1, "test_fraction": 0.2}  # fmt: skip
SETTINGS = {"core": {"resamples": 20}, "downstream": {"num_tokens": 128, "resamples": 20}}


def sae_of(activations: dict, width: int = 32) -> SAE:
    eye = torch.eye(width)
    metadata = {"activations": activations, "settings": {"eval": SETTINGS}}
    return SAE(eye, torch.zeros(width), eye, torch.zeros(width),
               SAEConfig("l1", "relu", width, width), metadata)  # fmt: skip


@pytest.fixture
def own():
    return lm_activations(LM, TEXT, Point("resid", 1), COUNTS)


@pytest.fixture
def sae(own):
    return sae_of(own.describe())


@pytest.fixture
def folder_sae(tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return sae_of(FolderActivations(tmp_path / "x.npy").describe(), width=8)


def test_own_text_needs_the_test_split_only(sae, own):
    source = source_of(sae)
    assert isinstance(source, LMActivations)
    assert source.describe() == own.describe()
    PlacedSAE(sae, source).prepare()
    assert source.store("test").rows(source.ends.points[0]).num_rows == 640 // 32 * 31
    for untouched in ("train", "val"):
        with pytest.raises(StoreError, match="not harvested"):
            source.split(untouched)


def test_other_text_is_test_text_as_a_whole(sae):
    source = source_of(sae, corpus={**TEXT, "seed": 5, "num_documents": 12}, tokens=4096)
    assert isinstance(source, LMActivations)
    PlacedSAE(sae, source).prepare()
    assert source.store("test").num_documents > 6
    with pytest.raises(ConfigError, match="leave a share for training"):
        source.prepare(splits=["train"])
    with pytest.raises(SourceError, match="val split"):
        source.prepare(splits=["val"])


def test_the_text_of_the_training_is_known_by_its_content(own, tmp_path):
    """Under another name, or moved, it must not count as text that was never trained on."""
    renamed = source_of(sae_of(own.describe()), corpus={**TEXT, "name": "new"})
    assert renamed.describe()["stores"] == own.describe()["stores"]
    (tmp_path / "old.txt").write_text(
        "\n\n".join(f"Paragraph {i} of this text." for i in range(99))
    )
    text = {"kind": "text", "name": "mine", "path": str(tmp_path / "old.txt"), "document": "line"}
    trained = sae_of(lm_activations(LM, text, Point("resid", 1), COUNTS).describe())
    (tmp_path / "moved").mkdir()
    (tmp_path / "old.txt").rename(tmp_path / "moved" / "old.txt")
    moved = {**text, "path": str(tmp_path / "moved" / "old.txt")}
    source = source_of(trained, corpus=moved)
    assert isinstance(source, LMActivations)
    assert source.specs["test"].test_fraction == 0.2


@pytest.mark.slow
def test_results_that_differ_get_their_own_names(sae, tmp_path):
    def file(evals=SETTINGS, **other):
        source = source_of(sae, **other)
        PlacedSAE(sae, source).prepare()
        (result,) = run_evals(sae, source, evals).values()
        found = result_file(tmp_path, result, PlacedSAE(sae, source))
        result.save(found)
        return found.name

    core = {"core": SETTINGS["core"]}
    assert file(core) == "core.json"
    assert (
        file({"downstream": {**SETTINGS["downstream"], "batch_contexts": 1}}) == "downstream.json"
    )
    assert file({"core": {"resamples": 7}}) == "core-resamples=7.json"
    assert file(core, tokens=320) == "core-tokens=320.json"
    one, two = ({**TEXT, "name": "my/text", "seed": seed} for seed in (1, 2))
    assert (
        file(core, corpus=one, lm={**LM, "name": "other", "seed": 3}) == "core-my_text-other.json"
    )
    assert file(core, corpus=one) == "core-my_text.json"
    again = file(core, corpus=two)
    assert again.startswith("core-my_text-")
    assert file(core, corpus=two) == again
    assert file(core, corpus=one) == "core-my_text.json"
    (tmp_path / "core-my_text.json").write_text("{")
    assert file(core, corpus=two) == "core-my_text.json"
    assert len(list(tmp_path.glob("*.json"))) == 7


def test_a_folder_has_no_tokens_and_no_point(folder_sae):
    source = source_of(folder_sae)
    PlacedSAE(folder_sae, source).prepare()
    assert ctx_of(source) is None
    results = run_evals(folder_sae, source, SETTINGS)
    assert list(results) == ["core"]
    assert results["core"].provenance["point"] is None
    with pytest.raises(ConfigError, match="no effect"):
        source_of(folder_sae, tokens=64)
    with pytest.raises(ConfigError, match="folder of activations has none. Choose eval="):
        run_evals(folder_sae, source, {"downstream": {}})


def test_a_folder_is_found_from_anywhere(folder_sae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    described = FolderActivations("x.npy").describe()
    assert described["path"] == str(tmp_path / "x.npy")
    monkeypatch.chdir("/")
    assert source_of(sae_of(described, width=8)).split("test").num_rows == 20


def test_an_sae_without_its_origin_says_so():
    with pytest.raises(ArtifactError, match="metadata.activations"):
        source_of(sae_of({}))
    sae = sae_of({})
    sae.metadata.clear()
    assert own_settings(sae) == {}


@pytest.mark.parametrize(
    ("evals", "message"),
    [
        ({"cor": {}}, r"\['cor'\] is not known. Choose one of \['absorption', 'autointerp'"),
        (
            {"core": {"resample": 1}},
            "eval.core.resample is not known. Did you mean eval.core.resamples.* legacy",
        ),
        (
            {"core": {"legacy": ["ev_sae"]}},
            r"eval.core.legacy=\['ev_sae'\] must be names from ev_saebench_legacy, .*; or all",
        ),
        ({"core": {"legacy": True}}, "eval.core.legacy=true must be a list"),
        ({"core": {"legacy": [1]}}, "eval.core.legacy=1 must be a text"),
        (
            {"core": {"resamples": 0}},
            "eval.core.resamples=0 must be a whole number of at least 1",
        ),
        ({"core": {"resamples": True}}, "eval.core.resamples=true must be"),
        (
            {"core": {"bootstrap": {"level": 95}}},
            "^eval.core.bootstrap.level=95 must be a number above 0 and below 1",
        ),
        ({"core": {"bootstrap": {"levle": 0.5}}}, "^eval.core.bootstrap.levle is not known. Did"),
        ({"core": {"bootstrap": 3}}, "^eval.core.bootstrap=3 must be a node of settings"),
        ({"downstream": {"num_tokens": "many"}}, "eval.downstream.num_tokens=many must be"),
        ({"downstream": {"num_tokens": 200.5}}, "num_tokens=200.5 must be a whole number"),
        ({"downstream": {"num_tokens": 31}}, "eval.downstream: .*less than one context of 32"),
    ],
)
def test_mistakes_are_found_before_anything_runs(evals, message):
    with pytest.raises(ConfigError, match=message):
        check_evals(evals, ctx=32)


def test_settings_become_evaluations():
    made = make_evals({"core": {"batch_rows": 1e3}, "downstream": {"num_tokens": 2e4}}, ctx=32)
    assert made == {
        "core": CoreEval(batch_rows=1000),
        "downstream": DownstreamEval(num_tokens=20_000),
    }
    for legacy, names in (("all", ("all",)), (["l0_positive"], ("l0_positive",)), ([], ()),
                          (False, ())):  # fmt: skip
        assert make_evals({"core": {"legacy": legacy}}, ctx=32) == {"core": CoreEval(legacy=names)}
    check_evals({}, ctx=None)
    check_evals(SETTINGS, ctx=None)
    with pytest.raises(ConfigError, match="needs the tokens"):
        check_evals({"downstream": {}}, ctx=None)


def test_nested_settings_reach_the_evaluation(sae, tmp_path):
    """What is not given, also in a node, is as in the run that made the SAE."""
    given = {"core": {"bootstrap": {"level": 0.8}}}
    merged = _as_in_run(sae, {"core": {"resamples": None, **given["core"]}, "downstream": {}})
    assert merged["core"] == {"bootstrap": {"num_resamples": 20, "level": 0.8}}
    assert merged["downstream"] == {"num_tokens": 128, "bootstrap": {"num_resamples": 20}}
    assert _as_in_run(sae, {"core": {"resamples": 7}})["core"]["bootstrap"]["num_resamples"] == 7
    placed = PlacedSAE(sae, source_of(sae))
    placed.prepare()
    result = measure([placed], {"core": merged["core"]})["core"]
    assert result.settings["bootstrap"] == {"num_resamples": 20, "seed": 0, "level": 0.8}
    assert result_file(tmp_path, result, placed).name == "core-bootstrap.level=0.8.json"
    with pytest.raises(ConfigError, match="eval.core.resamples=7 and .*num_resamples=8 are the"):
        check_evals({"core": {"resamples": 7, "bootstrap": {"num_resamples": 8}}}, ctx=32)


def test_evaluations_of_several_saes_are_no_end_of_a_training():
    with pytest.raises(ConfigError, match=r"eval=\[compare\] measures several SAEs"):
        check_evals({"compare": {}}, ctx=32)


class Widths(Evaluation):
    """Widths of the decoders of two SAEs."""

    name = "widths"
    takes = "several"
    least = 2

    def measure(self, subjects, on):
        shapes = [{"sae": one.name, "latents": one.sae.d_sae} for one in subjects]
        table = Table.of({"sae": ("string", ""), "latents": ("int64", "latents")}, shapes)
        return Measured({"rows": Estimate(one := float(sum(s["latents"] for s in shapes)), one)},
                        {"saes": len(subjects)}, tables={"widths": table})  # fmt: skip


def test_an_evaluation_of_two_saes_writes_a_table(sae, tmp_path):
    subjects = [PlacedSAE(sae, source_of, name) for name in ("a", "b")]
    subjects[0].prepare()
    with pytest.raises(ConfigError, match=r"eval=\[widths\] was given 1 SAE.* at least 2"):
        Widths().run(subjects[0])
    result = Widths().run(subjects)
    assert [entry["point"] for entry in result.provenance["together"]] == ["resid.1", "resid.1"]
    content = result.with_tables(tmp_path / "new")
    assert content["tables"] == {
        "widths": {
            "rows": 2, "file": "widths.widths.parquet",
            "columns": {"sae": {"type": "string", "unit": ""},
                        "latents": {"type": "int64", "unit": "latents"}},
        }
    }  # fmt: skip
    expected = [{"sae": "a", "latents": 32}, {"sae": "b", "latents": 32}]
    assert read_table(tmp_path / "new" / "widths.widths.parquet") == expected
    assert EvalResult.from_json(content).metrics == result.metrics


def test_devices(monkeypatch):
    assert find_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == "cpu"
    for wrong in ("foo", "cuda"):
        with pytest.raises(
            ConfigError, match=f"device={wrong} does not exist here.* of: auto, cpu"
        ):
            find_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(word) for word in ("auto", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(ConfigError, match="cpu, cuda, cuda:0, cuda:1"):
        find_device("cuda:2")


def test_the_chat_lm_of_a_run_is_not_asked(sae):
    chat = {"base_url": "https://evil/v1", "model": "m", "key_env": "HOME"}
    sae.metadata["settings"] = {"eval": {"autointerp": {"pool": 300, "chat": chat}}}
    assert _as_in_run(sae, {"autointerp": {}}) == {"autointerp": {"pool": 300}}
    given = {"autointerp": {"chat": {"budget": 5}}}
    assert _as_in_run(sae, given)["autointerp"]["chat"] == {"budget": 5}
