"""Texts of a run with checksums of their own: configuration, manifest, results of evaluations."""

import json
import logging

import pytest
from test_damage import damaged, noticed

from conf.compose import compose_job
from conf.resume import save_config, saved_config
from conf.schema import check
from sae.checksums import FOLDER_FILE, check_folder, check_text, read_unsealed, seal, seal_text
from sae.errors import ArtifactError
from sae.provenance import write_json


def test_a_sealed_text(tmp_path):
    file, text = tmp_path / "a.yaml", "a: 1\nb: é\n"
    file.write_text(seal_text(text), "utf-8")
    check_text(file)
    first, rest = file.read_text("utf-8").split("\n", 1)
    assert rest == text
    assert first.startswith("# crc32 ")
    file.write_text(f"{first}\n{text.replace('1', '2')}", "utf-8")
    with pytest.raises(ArtifactError, match=r"a\.yaml is damaged.* remove that line"):
        check_text(file)
    file.write_text(text.replace("1", "2"), "utf-8")  # without the line: changed on purpose
    check_text(file)


@pytest.fixture(scope="module")
def config():
    return check(compose_job("train", ["debug=tiny"]))


def test_the_configuration_of_a_run(tmp_path, config):
    save_config(tmp_path, config)
    read = lambda: saved_config(tmp_path)  # noqa: E731
    whole = read()
    assert whole == config
    damaged(tmp_path / "config.yaml", 0, noticed(read, whole))
    file = tmp_path / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(ArtifactError, match=r"config\.yaml is damaged"):
        read()
    file.write_text(text.replace("seed: 0", "seed: 1").split("\n", 1)[1])  # of an earlier version
    changed = read()
    assert changed is not None
    assert changed["seed"] == 1


def test_json_with_a_checksum(tmp_path):
    file, content = tmp_path / "a.json", {"value": 0.25, "list": [1, None]}
    write_json(file, seal(content))
    assert read_unsealed(file) == content
    for seed in range(2):
        damaged(file, seed, noticed(lambda: read_unsealed(file), content))
    write_json(file, content)  # of an earlier version
    assert read_unsealed(file) == content


def test_a_result_of_an_evaluation(tmp_path):
    from sae.artifacts.runs import read_json
    from sae.evals.base import Estimate, EvalResult

    result = EvalResult("core", {"fvu": Estimate(0.25, 0.2, 0.3)}, {"vectors": 512})
    file = tmp_path / "core.json"
    result.save(file)
    assert EvalResult.from_json(read_json(file)) == result
    assert EvalResult.from_json(json.loads(file.read_text())) == result
    for seed in range(2):
        damaged(file, seed, noticed(lambda: read_json(file), result.to_json()))


def test_earlier_sessions_of_a_manifest(tmp_path, caplog):
    from callbacks.manifest import Manifest

    first = Manifest(tmp_path / "manifest.json", {"seed": 0}, {"seed": 0})
    with first.session():
        pass
    second = Manifest(tmp_path / "manifest.json")
    second._session = {"started_utc": "later", "from_step": 5}
    whole = second._earlier()
    assert [session["status"] for session in whole] == ["finished"]
    forgotten = []

    def check():
        found = second._earlier()
        assert found in (whole, [])
        forgotten.append(found == [])

    with caplog.at_level(logging.WARNING):
        damaged(tmp_path / "manifest.json", 0, check)
    assert sum(forgotten) > 40
    assert len(caplog.records) == sum(forgotten)
    assert all("manifest.json is damaged" in record.getMessage() for record in caplog.records)


def test_a_run_that_was_killed_after_its_results_is_finished_whole(tmp_path):
    from sae.recipes import finished

    (tmp_path / "checkpoints").mkdir()
    for name in (
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "metrics.csv",
        "report.html",
    ):
        (tmp_path / name).write_text("step,tokens\n")
    (tmp_path / "results.json").write_text('{"training": {"epochs": 4}}')
    (tmp_path / "report.html").write_text("")
    assert finished(tmp_path, {"sae": {}, "epochs": 4}) == {"training": {"epochs": 4}}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt"}
    assert (tmp_path / FOLDER_FILE).exists()
    check_folder(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,Tokens\n")
    with pytest.raises(ArtifactError, match=r"metrics\.csv is damaged"):
        finished(tmp_path, {"sae": {}, "epochs": 4})
