"""SAEs on the hub, which a folder plays here, and as SAEBench wants them."""

import json
import shutil

import _foreign as foreign
import pytest
import torch
from _foreign import D_IN, D_SAE, TOLERANCE, X, made_of, ours

import sae as package
from sae.artifacts import load, to_saebench
from sae.errors import ArtifactError, SourceError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    import sae.language.quiet

    root, calls = tmp_path / "hub", []

    def snapshot_download(repo_id, allow_patterns, ignore_patterns, local_files_only=False):
        calls.append((repo_id, allow_patterns, ignore_patterns))
        if not (root / repo_id).is_dir():
            raise OSError(f"{repo_id} not found")
        return str(root / repo_id)

    def create_repo(repo_id, private, exist_ok):
        if repo_id == "no/rights":
            raise OSError("403 Forbidden")
        calls.append(("create", repo_id, private))
        return f"https://hub/{repo_id}"

    def upload_folder(repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(sae.language.quiet, "require_hub", lambda what, instead: None)
    return calls


@pytest.mark.parametrize("format", ["native", "saelens"])
def test_push_and_load(hub, format):
    sae = ours()
    assert package.push_to_hub(sae, "me/mine", format).endswith("me/mine")
    torch.testing.assert_close(load("me/mine")(X), sae(X), **TOLERANCE)
    assert hub == [
        ("create", "me/mine", False),
        ("me/mine", ["*.json", "*.safetensors", "*.pt", "*.npz"], ["*/*"]),
    ]


@pytest.mark.parametrize("format", ["native", "saelens"])
def test_private_paths_stay_here(hub, tmp_path, format):
    sae = ours()
    lm = {"kind": "folder", "name": "mine", "path": "/home/jane/secret/my-lm", "revision": "a/b"}
    text = {"kind": "text", "name": "C:\\Users\\jane\\book.txt", "path": "~/private/book.txt"}
    sae.metadata["activations"] = {
        "kind": "lm", "lm": lm, "corpus": text, "point": "resid.1", "ctx": 32, "seen": ["/srv/x/y"]
    }  # fmt: skip
    package.push_to_hub(sae, "me/mine", format)
    files = (tmp_path / "hub" / "me" / "mine").iterdir()
    content = b"".join(path.read_bytes() for path in files).decode(errors="replace")
    assert not any(word in content for word in ("jane", "secret", "private", "/srv"))
    if format == "native":
        made_of = load("me/mine").metadata["activations"]
        assert made_of["lm"] == lm | {"path": "my-lm"}
        assert made_of["corpus"] == text | {"name": "book.txt", "path": "book.txt"}
    assert sae.metadata["activations"]["lm"]["path"] == "/home/jane/secret/my-lm"  # here, as it was


def test_a_subfolder_of_a_repository(hub, tmp_path):
    path = foreign.sparsify()(tmp_path / "hub" / "eleuther" / "sae")
    torch.testing.assert_close(load("eleuther/sae/layers.4")(X), load(path)(X))
    repo, allowed, ignored = hub[-1]
    assert (repo, ignored) == ("eleuther/sae", ["layers.4/*/*"])
    assert "layers.4/*.safetensors" in allowed
    with pytest.raises(ArtifactError, match="eleuther/sae is on the hub, but has no layers.5"):
        load("eleuther/sae/layers.5")
    with pytest.raises(
        ArtifactError, match="no folder me/other here, and me/other cannot be read .*: me/other n"
    ):
        load("me/other")
    with pytest.raises(ArtifactError, match="refuses no/rights: 403 Forbidden"):
        package.push_to_hub(ours(), "no/rights")


def test_without_the_hub_an_earlier_copy_does(hub, tmp_path, monkeypatch):
    import sae.language.quiet

    def unreachable(what, instead):
        raise SourceError(f"{what} is on the hub, which cannot be reached. {instead}")

    package.push_to_hub(ours(), "me/mine")
    monkeypatch.setattr(sae.language.quiet, "require_hub", unreachable)
    assert load("me/mine").d_sae == D_SAE
    with pytest.raises(
        SourceError, match="cannot be reached. If a local folder is meant: there is"
    ):
        load("me/other")


def test_a_misspelt_path_is_no_hub_id(hub, tmp_path):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ArtifactError, match="No saved SAE at outputs/mien: it does not exist"):
        load("outputs/mien")
    assert hub == []


def test_saebench_wrapper():
    sae = ours("jumprelu", activations=made_of())
    wrapped = to_saebench(sae)
    f = wrapped.encode(X.reshape(4, 10, D_IN))
    assert f.shape == (4, 10, D_SAE)
    torch.testing.assert_close(wrapped(X), sae(X))
    torch.testing.assert_close(wrapped.decode(f).reshape(-1, D_IN), sae(X))
    assert isinstance(wrapped.W_dec, torch.nn.Parameter)
    assert (wrapped.W_dec.shape, wrapped.W_enc.shape) == ((D_SAE, D_IN), (D_IN, D_SAE))
    assert (wrapped.b_enc.shape, wrapped.b_dec.shape) == ((D_SAE,), (D_IN,))
    assert wrapped.check_decoder_norms()
    cfg = wrapped.cfg.to_dict()
    assert cfg["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert (cfg["hook_layer"], cfg["hook_name"]) == (4, "blocks.4.hook_resid_post")
    assert (cfg["d_in"], cfg["d_sae"], cfg["context_size"]) == (D_IN, D_SAE, 128)
    json.dumps(cfg)
    moved = wrapped.to(device="cpu", dtype=torch.bfloat16)
    assert (moved.dtype, moved.cfg.dtype, moved.device.type) == (torch.bfloat16, "bfloat16", "cpu")
    assert moved.check_decoder_norms()


def test_saebench_wants_a_place():
    with pytest.raises(ArtifactError, match="SAEBench needs model_name=None"):
        to_saebench(ours())
    with pytest.raises(ArtifactError, match="hook_name='nowhere'"):
        to_saebench(ours(), "gpt2", "nowhere")
    assert to_saebench(ours(), "gpt2", "blocks.3.hook_mlp_out").cfg.hook_layer == 3
