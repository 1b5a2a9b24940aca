"""Hidden files, git-lfs pointers, dangling links and folders named like files, wherever read."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.errors import ArtifactError, SourceError, StoreError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"


def corpus_of(kind, path):
    from sae.language import corpus_from_config

    return corpus_from_config({"kind": kind, "name": "x", "path": str(path)})


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_hidden_text_is_not_read(tmp_path, suffix):
    def content(text):
        return text if suffix == "txt" else json.dumps({"text": text})

    (tmp_path / f"a.{suffix}").write_text(content("seen"))
    corpus = corpus_of("text" if suffix == "txt" else "jsonl", tmp_path)
    before = corpus.identity()
    for folder in (".ipynb_checkpoints", ".git", "__MACOSX", "sub/.cache", "#sub#"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"a.{suffix}").write_text(content("hidden"))
    for name in (f"._a.{suffix}", f".a.{suffix}", f"~$a.{suffix}"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for name in (f"a.{suffix}~", f".a.{suffix}.swp", "Thumbs.db", ".DS_Store", f"#a.{suffix}#"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    os.symlink("user@machine.123", tmp_path / f".#a.{suffix}")  # how Emacs locks
    assert list(corpus.documents()) == ["seen"]
    assert corpus.identity() == before
    (tmp_path / f"#1.{suffix}").write_text(content("a name like another"))
    assert sorted(corpus.documents()) == ["a name like another", "seen"]


def test_a_hidden_folder_may_hold_the_whole_text(tmp_path):
    """Only what lies hidden inside the folder that was given is passed over."""
    folder = tmp_path / ".data"
    folder.mkdir()
    (folder / "a.txt").write_text("seen")
    assert list(corpus_of("text", folder).documents()) == ["seen"]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_entries_that_are_no_files(tmp_path, kind):
    suffix = "txt" if kind == "text" else "jsonl"
    (tmp_path / f"folder.{suffix}").mkdir()
    inner = tmp_path / f"folder.{suffix}" / f"a.{suffix}"
    inner.write_text('{"text": "seen"}', encoding="utf-8-sig")  # a byte order mark
    (text,) = corpus_of(kind, tmp_path).documents()
    assert text == ("seen" if kind == "jsonl" else '{"text": "seen"}')
    (tmp_path / f"b.{suffix}").symlink_to("/nowhere")
    with pytest.raises(SourceError, match=f"b.{suffix} is a link to /nowhere"):
        corpus_of(kind, tmp_path).identity()
    (tmp_path / f"b.{suffix}").unlink()
    (tmp_path / f"b.{suffix}").write_text(POINTER)
    with pytest.raises(SourceError, match="git-lfs pointer to a file of 1,234 bytes"):
        list(corpus_of(kind, tmp_path).documents())


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "a.safetensors"])
def test_activation_files_that_are_none(tmp_path, name):
    from sae.activations.folder import FolderActivations

    (tmp_path / name).write_text(POINTER)
    with pytest.raises(StoreError, match="git-lfs pointer"):
        FolderActivations(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/nowhere")
    with pytest.raises(StoreError, match="is a link to /nowhere"):
        FolderActivations(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        FolderActivations(tmp_path)


def test_hidden_activations_are_not_read(tmp_path):
    from sae.activations.folder import FolderActivations

    np.save(tmp_path / "a.npy", np.ones((40, 3), "f4"))
    for name in ("._a.npy", ".a.npy", ".~a.npy", "~$a.npy"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert sum(FolderActivations(tmp_path).num_rows.values()) == 40


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_pointers_in_the_folder_of_an_sae(tmp_path, name):
    import sae

    tensors = {"W_enc": torch.eye(3), "W_dec": torch.eye(3), "b_dec": torch.zeros(3)}
    save_file(tensors | {"b_enc": torch.zeros(3)}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 3}))
    assert sae.load(tmp_path).d_in == 3
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ArtifactError, match=f"{name} is a git-lfs pointer"):
        sae.load(tmp_path)


@pytest.mark.parametrize("name", ["ae.pt", "autoencoder.pt", "learned_dicts.pt"])
def test_pointers_in_place_of_pt_files(tmp_path, name):
    import sae

    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ArtifactError, match="git-lfs pointer"):
        sae.load(tmp_path / name, format={"ae.pt": "dictionary_learning", "learned_dicts.pt":
                                          "authors"}.get(name, "openai"))  # fmt: skip


def test_a_hidden_copy_is_no_second_autoencoder(tmp_path):
    import sae

    state = {
        "pre_bias": torch.zeros(3), "latent_bias": torch.zeros(4),
        "encoder.weight": torch.ones(4, 3), "decoder.weight": torch.ones(3, 4),
    }  # fmt: skip
    torch.save(state, tmp_path / "autoencoder.pt")
    (tmp_path / "._autoencoder.pt").write_bytes(b"\0\5\x16\7")
    assert sae.load(tmp_path).d_sae == 4


def test_a_pointer_in_place_of_labelled_texts(tmp_path):
    from sae.tasks.labelled import read_csv

    (tmp_path / "a.csv").write_text(POINTER)
    with pytest.raises(SourceError, match="git-lfs pointer"):
        read_csv(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_files_of_a_local_data_set_that_are_none(tmp_path, streaming, suffix):
    """A missing part would be passed over, and the rest read as the whole."""
    from sae.language import corpus_from_config

    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    corpus = corpus_from_config(
        {"kind": "hub", "name": "x", "dataset": str(tmp_path), "streaming": streaming}
    )
    file = tmp_path / f"b.{suffix}"
    file.write_text(POINTER)
    for ask in (corpus.identity, lambda: list(corpus.documents())):
        with pytest.raises(SourceError, match=f"b.{suffix} is a git-lfs pointer"):
            ask()
    file.unlink()
    file.symlink_to("/nowhere")
    for ask in (corpus.identity, lambda: list(corpus.documents())):
        with pytest.raises(SourceError, match=f"b.{suffix} is a link to /nowhere"):
            ask()


@pytest.mark.parametrize("part", ["zarr.json", "c/0/0"])
def test_pointers_inside_a_zarr_array(tmp_path, part):
    import zarr

    from sae.activations.folder import FolderActivations

    zarr.create_array(tmp_path / "a.zarr", data=np.ones((40, 3), "f4"), chunks=(40, 3))
    (tmp_path / "a.zarr" / part).write_text(POINTER)
    with pytest.raises(StoreError, match="git-lfs pointer"):
        FolderActivations(tmp_path)


@pytest.mark.parametrize("entry", ["link", "folder"])
def test_a_zarr_array_that_is_not_there(tmp_path, entry):
    """Its rows would be missing without a word."""
    from sae.activations.folder import FolderActivations

    np.save(tmp_path / "a.npy", np.ones((40, 3), "f4"))
    file = tmp_path / "b.zarr"
    file.symlink_to("/nowhere") if entry == "link" else file.mkdir()
    with pytest.raises(StoreError, match=r"b\.zarr is a (link to /nowhere|folder)"):
        FolderActivations(tmp_path)


MARKED = {
    "saelens": "cfg.json", "sparsify": "cfg.json", "dictionary_learning": "config.json",
    "native": "config.json",
}  # fmt: skip


@pytest.mark.parametrize("word", MARKED)
def test_a_byte_order_mark_in_the_json_of_an_sae(tmp_path, word):
    import sae

    model = sae.SAE(
        W_enc=torch.eye(3), b_enc=torch.zeros(3), W_dec=torch.eye(3), b_dec=torch.ones(3),
        config=sae.SAEConfig("topk", "topk", d_in=3, d_sae=3, k=2),
    )  # fmt: skip
    folder = sae.save(tmp_path / "sae", model, word)
    file = folder / MARKED[word]
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert sae.load(folder).config.k == 2
    file.unlink()
    file.symlink_to("/nowhere")
    from sae.errors import ArtifactError

    with pytest.raises(ArtifactError):
        sae.load(folder, word)


def test_a_byte_order_mark_in_the_files_of_a_run(tmp_path):
    from conf.resume import saved_config
    from sae.artifacts.runs import read_json
    from sae.reports.files import read_yaml

    (tmp_path / "config.yaml").write_text("sae: {}\n", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "config.yaml") == {"sae": {}}
    with pytest.raises(ArtifactError, match=r"config\.yaml: sae\.architecture"):  # it was read
        saved_config(tmp_path)
    (tmp_path / "results.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "results.json") == {"a": 1}


def test_marks_between_joined_files(tmp_path):
    """`cat a b` of two files from Windows."""
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n')
    (tmp_path / "a.txt").write_text("\ufeffone\n\n\ufefftwo\n")
    assert list(corpus_of("jsonl", tmp_path / "a.jsonl").documents()) == ["a", "b"]
    assert list(corpus_of("text", tmp_path / "a.txt").documents()) == ["one\n", "two\n"]


def test_a_local_data_set_is_known_by_its_content(tmp_path):
    from sae.language import corpus_from_config

    def corpus(**fields):
        return corpus_from_config(
            {"kind": "hub", "name": "x", "dataset": str(tmp_path), "streaming": False} | fields
        )

    rows = [{"text": "a", "ids": [1]}, {"text": None, "ids": [2]}, {"text": "b", "ids": [3]}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(corpus().documents()) == ["a", "b"]  # a row without text is an empty document
    with pytest.raises(SourceError, match="ids is list, not text.*corpus.text_field"):
        list(corpus(text_field="ids").documents())
    before = corpus().identity()
    (tmp_path / ".hidden").write_text("x")
    assert corpus().identity() == before
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]))
    assert corpus().identity() != before
