"""Files that changed in their place between training and evaluation, or continuation."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from sae.checksums import seal
from sae.errors import StoreError

pytestmark = pytest.mark.slow

WORDS = ("epochs=1", "tokens=4096", "sae=topk", "k=4", "eval=[core]", "logger=none",
         "trainer.validations=0", "trainer.precision=32-true")  # fmt: skip


def train(folder, *overrides, more=()):
    from train import compose, train

    return train(compose([*overrides, *WORDS, *more]), folder)


def evaluate(folder, evals=None, **options):
    from evaluate import evaluate

    return evaluate(folder, evals or {"core": {}}, device="cpu", **options)


def names(folder):
    return sorted(file.stem for file in (folder / "evals").glob("*.json"))


@pytest.fixture
def lm(tiny_lm, tmp_path):
    folder = tmp_path / "lm"
    tiny_lm("llama").model.save_pretrained(folder)
    tiny_lm("llama").tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"the paragraph {i} of {i * i}, " * 5 for i in range(1500)))
    return file


@pytest.fixture
def of_files(lm, text, tmp_path):
    """A run on an LM in a folder and a text in a file."""
    train(tmp_path / "run", "debug=tiny", "lm=folder", f"lm.path={lm}", "corpus=text",
          f"corpus.path={text}")  # fmt: skip
    return tmp_path / "run"


def change_lm(folder):
    file = folder / "model.safetensors"
    state = {key: 1.1 * tensor for key, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def change_text(file):
    file.write_text(file.read_text().replace("paragraph", "sentence"))


@pytest.mark.parametrize("side", ["lm", "text"])
def test_a_change_is_named_and_its_result_stands_apart(of_files, lm, text, side, caplog):
    before = evaluate(of_files)["core"].metrics["fvu"].value
    assert names(of_files) == ["core"]
    own = (of_files / "evals" / "core.json").read_text()
    change_lm(lm) if side == "lm" else change_text(text)
    with caplog.at_level(logging.WARNING):
        after = evaluate(of_files)["core"].metrics["fvu"].value
    assert after != before
    assert (
        f"the {'LM' if side == 'lm' else 'text'} in {lm if side == 'lm' else text}" in caplog.text
    )
    assert f"the {'text' if side == 'lm' else 'LM'} in" not in caplog.text
    (apart,) = set(names(of_files)) - {"core"}
    assert apart.startswith("core-changed-")
    assert apart.removeprefix("core-changed-") in caplog.text
    assert (of_files / "evals" / "core.json").read_text() == own


def test_a_changed_lm_shows_on_another_text_too(of_files, lm, caplog):
    change_lm(lm)
    corpus = {"kind": "random_words", "name": "words", "num_documents": 400}
    evaluate(of_files, corpus=corpus, tokens=2048)
    assert f"the LM in {lm}" in caplog.text
    assert names(of_files)[0].startswith("core-words-tokens=2048-changed-")


def test_what_was_only_moved_is_the_same(of_files, lm, tmp_path, caplog):
    """Keys are compared, not paths: the LM that is given is the one of the training."""
    shutil.move(lm, tmp_path / "elsewhere")
    moved = {"kind": "folder", "name": "moved", "path": str(tmp_path / "elsewhere"),
             "dtype": "float32"}  # fmt: skip
    evaluate(of_files, lm=moved)
    assert names(of_files) == ["core"]
    assert "changed" not in caplog.text


def test_runs_without_identities_are_compared_by_their_key(of_files, lm, text, caplog):
    """Runs saved before the two were kept apart."""
    file = of_files / "sae" / "config.json"
    config = json.loads(file.read_text())
    del config["metadata"]["activations"]["identities"], config["checksum"]
    file.write_text(json.dumps(seal(config)))
    evaluate(of_files)
    assert names(of_files) == ["core"]
    change_lm(lm)
    evaluate(of_files)
    assert f"the LM in {lm} or the text in {text}" in caplog.text
    assert len(names(of_files)) == 2


@pytest.mark.parametrize("side", ["lm", "text"])
def test_continuing_on_changed_files_is_an_error(of_files, lm, text, side):
    change_lm(lm) if side == "lm" else change_text(text)
    results = (of_files / "results.json").read_bytes()
    (of_files / "results.json").unlink()  # killed between the last step and the results
    with pytest.raises(StoreError, match="cannot continue.*has changed"):
        train(of_files, "debug=tiny", "lm=folder", f"lm.path={lm}", "corpus=text",
              f"corpus.path={text}")  # fmt: skip
    (of_files / "results.json").write_bytes(results)
    with pytest.raises(StoreError, match="cannot continue.*has changed"):
        train(of_files, "debug=tiny", "lm=folder", f"lm.path={lm}", "corpus=text",
              f"corpus.path={text}", more=["epochs=2"])  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "hub"])
def test_other_kinds_of_text_that_changed(tmp_path, kind, caplog):
    texts = [f"the paragraph {i} of {i * i}, " * 5 for i in range(1500)]
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / "train.jsonl"

    def write(texts):
        file.write_text("\n".join(json.dumps({"text": text}) for text in texts))

    write(texts)
    of_folder = [f"corpus.dataset={tmp_path / 'd'}", "corpus.streaming=false"]
    words = of_folder if kind == "hub" else [f"corpus.path={file}"]
    train(tmp_path / "run", "debug=tiny", f"corpus={kind}", *words)
    evaluate(tmp_path / "run")
    assert names(tmp_path / "run") == ["core"]
    write([text.replace("paragraph", "sentence") for text in texts])
    evaluate(tmp_path / "run")
    assert "the text in" in caplog.text
    assert [name[:13] for name in names(tmp_path / "run")] == ["core", "core-changed-"]


@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_a_folder_of_activations_that_changed(tmp_path, kind, caplog):
    rows = np.random.default_rng(0).normal(size=(4000, 16)).astype("f4")
    (tmp_path / "x").mkdir()

    def save(x):
        if kind == "npy":
            np.save(tmp_path / "x" / "a.npy", x)
        else:
            zarr.create_array(tmp_path / "x" / "a.zarr", data=x, chunks=(500, 16), overwrite=True)

    save(rows)
    words = ["activations=folder", f"activations.path={tmp_path / 'x'}", "trainer.batch_size=128"]
    words += [word for word in WORDS if not word.startswith("tokens")]

    def run(*more):
        from train import compose, train

        return train(compose([*words, *more]), tmp_path / "run")

    run()
    evaluate(tmp_path / "run")
    assert names(tmp_path / "run") == ["core"]
    save(1.5 * rows)
    evaluate(tmp_path / "run")
    assert f"the activations in {tmp_path / 'x'} changed" in caplog.text
    assert [name[:13] for name in names(tmp_path / "run")] == ["core", "core-changed-"]
    with pytest.raises(StoreError, match="cannot continue.*has changed"):
        run("epochs=2")


def test_a_torn_checkpoint_is_one_clear_error(tmp_path):
    from sae.errors import ArtifactError
    from sae.training.checkpoints import read_checkpoint

    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    torch.save({"state_dict": {"a": torch.ones(500)}, "global_step": 3}, file)
    whole = file.read_bytes()
    assert read_checkpoint(tmp_path)["global_step"] == 3
    for size in (0, 1, 100, *range(len(whole) // 8, len(whole), len(whole) // 8), len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"last\.ckpt is damaged"):
            read_checkpoint(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with pytest.raises(ArtifactError, match="git-lfs pointer"):
        read_checkpoint(tmp_path)
