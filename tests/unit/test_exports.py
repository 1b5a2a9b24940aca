"""Records in the formats of other tools."""

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from _features import CTX, make_sae, placed_on, source
from safetensors.numpy import load_file

from sae.explanations.files import read_explanations
from sae.features import exports, parts, records
from sae.features.exports import EXPORTS, export
from sae.features.parts import Explained

__all__ = ["source"]  # a fixture
TEXT = {"type": "string", "pattern": "^[^\\u0000]*$"}
LOGITS = {
    "type": "array", "maxItems": 20,
    "items": {"type": "object", "required": ["token", "value"], "additionalProperties": False,
              "properties": {"token": TEXT, "value": {"type": "number"}}},
}  # fmt: skip
UPLOAD = {
    "type": "object",
    "required": ["modelId", "source", "features"],
    "additionalProperties": False,
    "properties": {
        "modelId": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "features": {
            "type": "array", "minItems": 1, "maxItems": 128,
            "items": {
                "type": "object",
                "required": ["index", "density", "topLogits", "bottomLogits", "explanations",
                             "activations"],
                "additionalProperties": False,
                "properties": {
                    "index": {"type": "integer", "minimum": 0, "maximum": 10**7},
                    "density": {"type": "number", "minimum": 0, "maximum": 1},
                    "topLogits": LOGITS, "bottomLogits": LOGITS,
                    "explanations": {
                        "type": "array",
                        "items": {
                            "type": "object", "additionalProperties": False,
                            "required": ["text", "methodName", "modelName"],
                            "properties": {"text": TEXT | {"maxLength": 512}, "methodName": TEXT,
                                           "modelName": TEXT | {"minLength": 1}},
                        },
                    },
                    "activations": {
                        "type": "array", "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["tokens", "values"],
                            "properties": {
                                "tokens": {"type": "array", "minItems": 1, "maxItems": 1024,
                                           "items": TEXT},
                                "values": {"type": "array", "items": {"type": "number"}},
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
"""The limits of Neuronpedia's `POST /api/feature/upload-batch`."""


@pytest.fixture
def found(source):
    return records(placed_on(source, make_sae(source)))


@pytest.mark.slow
def test_neuronpedia_uploads_keep_its_limits(found, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCH", 20)
    export(found, "neuronpedia", tmp_path)
    seen = []
    files = sorted(tmp_path.glob("upload-*.json"))
    assert len(files) == 3
    for file in files:
        content = json.loads(file.read_text())
        jsonschema.validate(content, UPLOAD)
        for feature in content["features"]:
            seen.append(feature["index"])
            for one in feature["activations"]:
                assert len(one["tokens"]) == len(one["values"])
            record = found[feature["index"]]
            assert max(feature["activations"][0]["values"]) == pytest.approx(record.max)
    assert seen == found.indices


SCHEMA = Path(__file__).parents[1] / "fixtures/neuronpedia/neuronpedia_bulk.schema.json"


@pytest.mark.slow
def test_the_bulk_folder_fits_its_schema(found, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCH", 20)
    known = {i: [Explained(f"latent {i}", "rules", "none")] for i in found.indices[:3]}
    export(found, "neuronpedia_bulk", tmp_path / "out", known)
    (model,) = (tmp_path / "out").iterdir()
    (source,) = model.iterdir()
    assert (model.name, source.name) == (found.facts["lm"], "1-resid")
    rows = {}
    for file in sorted(source.rglob("*.*")):
        raw = file.read_bytes()
        kind = file.parent.name if file.suffix == ".gz" else file.stem
        lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).splitlines()
        schema = json.loads(SCHEMA.read_text())["$defs"][kind]
        for line in lines:
            rows.setdefault(kind, []).append(json.loads(line))
            jsonschema.validate(rows[kind][-1], schema)
    assert len(list((source / "features").iterdir())) == 3
    assert {kind: len(rows[kind]) for kind in ("release", "model", "sourceset", "source")} == (
        dict.fromkeys(("release", "model", "sourceset", "source"), 1)
    )
    features = {int(row["index"]): row for row in rows["features"]}
    assert sorted(features) == found.indices
    assert len({row["id"] for row in rows["activations"]}) == len(rows["activations"])
    for index, feature in features.items():
        record = found[index]
        assert feature["maxActApprox"] == pytest.approx(record.max)
        assert feature["topkCosSimIndices"] == record.nearest.ids.tolist()
        own = [row for row in rows["activations"] if int(row["index"]) == index]
        assert max(row["maxValue"] for row in own) == pytest.approx(record.max)
        for row in own:
            assert len(row["tokens"]) == len(row["values"]) == CTX
            assert row["values"][row["maxValueTokenIndex"]] == max(row["values"])
    assert {int(row["index"]): row["description"] for row in rows["explanations"]} == {
        i: f"latent {i}" for i in known
    }
    export(found, "neuronpedia_bulk", tmp_path / "again", known)
    for file in source.rglob("*.gz"):
        again = tmp_path / "again" / file.relative_to(tmp_path / "out")
        assert again.read_bytes() == file.read_bytes()
        assert file.read_bytes()[4:8] == bytes(4)  # no time


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../up", "/etc", "a/b", "..", "", "c:\\\\x"])
def test_the_name_of_an_lm_leads_nowhere(found, tmp_path, name):
    found.facts["lm"] = name
    known = {i: [Explained(f"latent {i}", "rules", "none")] for i in found.indices[:3]}
    export(found, "neuronpedia_bulk", tmp_path / "out", known)
    (model,) = (tmp_path / "out").iterdir()
    assert (model / "1-resid/source.jsonl").is_file()
    assert [one.name for one in tmp_path.iterdir() if one.name == "up"] == []


@pytest.mark.slow
def test_circuit_tracer_has_a_file_a_latent(found, tmp_path):
    export(found, "circuit_tracer", tmp_path / "out")
    files = {int(one.stem): json.loads(one.read_text()) for one in (tmp_path / "out").iterdir()}
    assert sorted(files) == found.indices
    for index, content in files.items():
        first = content["examples_quantiles"][0]["examples"][0]
        assert first["tokens_acts_list"][first["train_token_ind"]] == pytest.approx(
            found[index].max
        )
        assert sum(content["histogram"]) == found[index].firings


@pytest.mark.slow
def test_delphi_finds_every_firing(found, tmp_path):
    export(found, "delphi", tmp_path / "out")
    (hook,) = (tmp_path / "out/latents").iterdir()
    config = json.loads((hook / "config.json").read_text())
    assert config["cache_ctx_len"] == found.text.tokens.shape[1]
    total = 0
    for file in hook.glob("*.safetensors"):
        first = int(file.stem.split("_")[0])
        content = load_file(file)
        np.testing.assert_array_equal(content["tokens"], found.text.tokens)
        total += len(content["locations"])
        for latent in (0, 7):
            mine = content["locations"][:, 2] == latent
            expected = found.firings(first + latent)
            np.testing.assert_allclose(content["activations"][mine], expected.value, rtol=2e-3)
            record = found[first + latent]
            strongest = content["locations"][mine][expected.value.argmax()]
            shown = record.contexts[0]
            assert (shown.context, shown.peak) == tuple(strongest[:2])
    assert total == sum(record.firings for record in found)


@pytest.mark.slow
def test_a_long_context_is_cut_around_the_maximum(found, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_LONGEST", 5)
    export(found, "neuronpedia", tmp_path)
    content = json.loads((tmp_path / "upload-0.json").read_text())
    for feature in content["features"]:
        (first, *_) = feature["activations"]
        assert len(first["tokens"]) == len(first["values"]) == 5
        assert max(first["values"]) == pytest.approx(found[feature["index"]].max)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_delphi_reads_every_latent(found, tmp_path, monkeypatch):
    for name, attribute in (
        ("faiss", ""), ("blobfile", ""), ("sentence_transformers", "SentenceTransformer"),
    ):  # fmt: skip
        stub = ModuleType(name)
        vars(stub)[attribute] = object
        monkeypatch.setitem(sys.modules, name, stub)  # what it embeds and uploads with
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents.loader import LatentDataset

    known = {found.indices[0]: [Explained("short", "contexts", "an LM")]}
    export(found, "delphi", tmp_path / "d", known)
    dataset = LatentDataset(
        tmp_path / "d/latents", SamplerConfig(), ConstructorConfig(), tokenizer=object()
    )
    np.testing.assert_array_equal(dataset.tokens.numpy(), found.text.tokens)
    read = {data.latent.latent_index: data.activation_data for of in dataset.buffers for data in of}
    assert sorted(read) == [record.latent for record in found if record.firings]
    for latent, data in read.items():
        row, value = found.firings(latent)
        context, position = found.locate(row)
        np.testing.assert_array_equal(data.locations[:, 0].numpy(), context)
        np.testing.assert_array_equal(data.locations[:, 1].numpy(), position)
        np.testing.assert_allclose(data.activations.numpy(), value, rtol=2e-3)


@pytest.mark.peers
def test_saedashboard_reads_its_batches(found, tmp_path):
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    export(found, "saedashboard", tmp_path)
    for file in tmp_path.glob("batch-*.json"):
        content = json.loads(file.read_text())
        read = NeuronpediaDashboardBatch(**content)
        again = read.to_dict()
        assert [one["feature_index"] for one in again["features"]] == [
            one["feature_index"] for one in content["features"]
        ]
        for before, after in zip(content["features"], again["features"], strict=True):
            assert before["activations"] == after["activations"]
            assert before.items() <= {name: after[name] for name in before}.items()


def test_there_is_a_writer_for_every_word_of_the_setting():
    from sae.evals.dashboard import DashboardEval

    assert set(EXPORTS) == set(DashboardEval(export=tuple(EXPORTS)).export)


@pytest.mark.slow
def test_explanations_go_into_the_formats_that_hold_them(found, tmp_path):
    index = found.indices[1]
    text = "words\0 about \ud800 things " + "x" * 600
    known = {index: [Explained(text, "rules", "none"), Explained("short", "contexts", "an LM")]}
    clean = text.replace("\0", "\ufffd").replace("\ud800", "?")
    export(found, "neuronpedia", tmp_path / "n", known)
    content = json.loads((tmp_path / "n" / "upload-0.json").read_text())
    jsonschema.validate(content, UPLOAD)
    of = {one["index"]: one["explanations"] for one in content["features"]}
    assert of[index] == [
        {"text": clean[:512], "methodName": "rules", "modelName": "none"},
        {"text": "short", "methodName": "contexts", "modelName": "an LM"},
    ]
    assert not any(of[other] for other in of if other != index)
    export(found, "neuronpedia_bulk", tmp_path / "b", known)
    (file,) = (tmp_path / "b").rglob("explanations/batch-0.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert [row["description"] for row in rows] == [clean, "short"]
    assert {(row["index"], row["typeName"]) for row in rows} == {
        (str(index), "rules"), (str(index), "contexts"),
    }  # fmt: skip
    export(found, "delphi", tmp_path / "d", known)
    back = read_explanations(tmp_path / "d" / "explanations-contexts")
    assert back == {str(index): "short"}  # delphi's folder, read as one of ours
