"""Saving and loading: what was saved comes back, and everything else is a clear error."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae as package
from sae.artifacts import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, load, save_sae
from sae.artifacts.native import _checksum
from sae.checksums import seal
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ArtifactError


def make(activation: str = "relu", d_sae: int = 6, dtype: torch.dtype = torch.float32) -> SAE:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, 4, generator=generator), dim=1)
    tensors = (torch.randn(4, d_sae, generator=generator), torch.ones(d_sae), W_dec, torch.ones(4))
    W_enc, b_enc, W_dec, b_dec = (tensor.to(dtype) for tensor in tensors)
    return SAE(
        W_enc, b_enc, W_dec, b_dec,
        SAEConfig("tied", activation, 4, d_sae, 2 if activation == "topk" else None),
        metadata={"lm": {"name": "tiny"}, "point": "resid.4", "ctx": 128},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    save_sae(tmp_path / "run" / "sae", make())
    return tmp_path / "run"


def edit(folder: Path, **changes: object) -> None:
    file = folder / CONFIG_FILE
    content = {**json.loads(file.read_text()), **changes}
    content = {k: v for k, v in content.items() if v != "gone" and k != "checksum"}
    file.write_text(json.dumps(seal(content)))


@pytest.mark.parametrize("activation", ["relu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, activation, dtype):
    saved = make(activation, dtype=dtype)
    loaded = package.load(package.save_sae(tmp_path / "sae", saved))
    assert loaded.config == saved.config
    assert loaded.metadata == saved.metadata
    assert loaded.dtype == dtype
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_run_folder_and_sae_folder_are_the_same(run):
    assert torch.equal(load(run).W_enc, load(str(run / "sae")).W_enc)


def test_files_are_what_the_format_says(run):
    content = json.loads((run / "sae" / CONFIG_FILE).read_text())
    assert sorted(path.name for path in (run / "sae").iterdir()) == ["config.json", WEIGHTS_FILE]
    assert content["format"] == "lightning-sae"
    assert content["format_version"] == FORMAT_VERSION
    assert content["activation"] == "relu"  # a word, not an import path
    assert sorted(load_file(run / "sae" / WEIGHTS_FILE)) == ["W_dec", "W_enc", "b_dec", "b_enc"]


def test_saving_again_replaces_and_leaves_nothing_behind(run):
    save_sae(run / "sae", make(d_sae=9))
    assert load(run).d_sae == 9
    assert [path.name for path in run.iterdir()] == ["sae"]


def test_a_failed_save_keeps_the_old_one(run):
    broken = make(d_sae=9)
    broken.metadata["point"] = object()
    with pytest.raises(TypeError):
        save_sae(run / "sae", broken)
    assert load(run).d_sae == 6
    assert [path.name for path in run.iterdir()] == ["sae"]


def test_nothing_there(tmp_path, run):
    accepted = re.escape("Give a run folder (it has sae/config.json) or an SAE folder")
    with pytest.raises(ArtifactError, match=f"does not exist. {accepted}"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=f"is a file. {accepted}"):
        load(run / "sae" / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match=f"holds run. {accepted}"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is empty"):
        load(tmp_path / "empty")


def test_foreign_config(run):
    (run / "sae" / CONFIG_FILE).write_text('{"model_type": "llama"}')
    with pytest.raises(ArtifactError, match='does not say "format": "lightning-sae"'):
        load(run)


def test_future_version(run):
    edit(run / "sae", format_version=FORMAT_VERSION + 1)
    with pytest.raises(ArtifactError, match="format_version 3; .* reads 1 to 2. Upgrade"):
        load(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": "gone"}, r"missing or unknown entries \['d_sae'\]"),
        ({"threshold": 3}, r"missing or unknown entries \['threshold'\]"),
        ({"d_in": "four"}, "d_in='four' must be of type int"),
        ({"k": True}, "k=True must be of type"),
        ({"metadata": [1]}, "metadata="),
        ({"d_sae": 7}, r"holds no valid SAE: W_enc has shape \(4, 6\)"),
        ({"activation": "os.system"}, "holds no valid SAE: activation='os.system'"),
        ({"activation": "topk"}, "holds no valid SAE: k=None"),
    ],
)
def test_damaged_config(run, changes, message):
    edit(run / "sae", **changes)
    with pytest.raises(ArtifactError, match=message):
        load(run)


def test_config_that_is_no_json(run):
    (run / "sae" / CONFIG_FILE).write_text('{"format": "lightni')
    with pytest.raises(ArtifactError, match="not JSON"):
        load(run)


def test_flipped_byte_and_truncation(run):
    file = run / "sae" / WEIGHTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="checksum differs"):
        load(run)
    file.write_bytes(whole[:-8])
    with pytest.raises(ArtifactError, match="checksum differs"):
        load(run)
    file.write_bytes(b"not safetensors")
    edit(run / "sae", weights_sha256=_checksum(file))
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load(run)


def test_missing_tensor_and_wrong_rows(run):
    file = run / "sae" / WEIGHTS_FILE
    tensors = load_file(file)
    save_file(tensors | {"W_dec": 2 * tensors["W_dec"]}, file)
    edit(run / "sae", weights_sha256=_checksum(file))
    with pytest.raises(ArtifactError, match="holds no valid SAE: Row . of W_dec has length 2"):
        load(run)
    del tensors["b_dec"]
    save_file(tensors, file)
    edit(run / "sae", weights_sha256=_checksum(file))
    with pytest.raises(ArtifactError, match=r"this SAE has \['W_dec', 'W_enc', 'b_dec', 'b_enc'\]"):
        load(run)


def test_moved_folder_loads(run, tmp_path):
    shutil.move(run / "sae", tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").d_sae == 6


def test_importing_the_package_is_cheap():
    code = "import sys, sae; print([m for m in ('torch', 'transformers', 'lightning') if m in sys.modules])"  # noqa: E501
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names():
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        package.lod  # noqa: B018
