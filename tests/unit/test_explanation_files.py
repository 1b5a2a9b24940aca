"""Files of explanations: ours, and those of other tools."""

import json

import pytest

from sae.errors import ConfigError, SourceError
from sae.explanations.files import read_explanations, write_explanations


def test_our_files_are_read_back(tmp_path):
    words = {"3": 'a "quoted", text\nof two lines', "-4": "ümlaut"}
    write_explanations(tmp_path / "deep" / "ours.csv", words)
    assert read_explanations(tmp_path / "deep" / "ours.csv") == words


def test_files_of_other_tools_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"latent": 3, "explanation": "three"}\n\n{"latent": "4", "explanation": "four "}\n'
    )
    assert read_explanations(tmp_path / "rows.jsonl") == {"3": "three", "4": "four"}
    export = [{"index": "3", "description": "three", "typeName": "np_auto-interp"}]
    (tmp_path / "export.json").write_text(json.dumps(export))
    assert read_explanations(tmp_path / "export.json") == {"3": "three"}
    folder = tmp_path / "explanations"
    folder.mkdir()
    (folder / "model.layers.4_latent12.txt").write_text('"twelve"')
    (folder / "model.layers.4_latent13.txt").write_text("thirteen")
    (folder / "notes.md").write_text("no explanation")
    assert read_explanations(folder) == {"12": "twelve", "13": "thirteen"}
    (folder / "model.layers.4_latent0014.txt").write_bytes(b"\xff")
    with pytest.raises(SourceError, match=r"latent0014.txt cannot be read"):
        read_explanations(folder)
    (folder / "model.layers.4_latent0014.txt").write_text("fourteen")
    assert read_explanations(folder)["14"] == "fourteen"
    line = json.dumps({"latent": "-007", "explanation": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_text(line, encoding="utf-8")
    assert read_explanations(tmp_path / "rows.jsonl") == {"-7": "a\u2028b"}


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", "feature,text\n1,x\n", SourceError, "neither latent and explanation.*feature"),
        ("a.csv", "latent,explanation\nx,y\n", SourceError, "'x' is not the number"),
        ("a.csv", "latent,explanation\n1,a\n1,b\n", SourceError, "explained twice"),
        ("a.csv", "latent,explanation\n", SourceError, "holds no explanation"),
        ("a.jsonl", "{nonsense", SourceError, "cannot be read"),
        ("a.jsonl", '{"latent": 1, "explanation": 2}', SourceError, "no explanation in words"),
        ("a.json", "[3]", SourceError, "it has: 3"),
        *(("a.json", text, SourceError, "it holds no list") for text in ("5", "null", "{}", '"a"')),
        ("a.csv", "latent,explanation\n1,a\n001,b\n", SourceError, "explained twice"),
        ("a.csv", "latent,explanation\n１,a\n", SourceError, "is not the number"),
        ("a.txt", "words", ConfigError, "neither of .csv, .jsonl, .json"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, error, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_explanations(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        read_explanations(tmp_path / "none.csv")
