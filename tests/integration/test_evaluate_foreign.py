"""evaluate.py on SAEs of other libraries' formats, on a tiny random LM and random words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import evaluate as program
from conf.effects import check_evaluation
from sae.artifacts import load
from sae.artifacts.placing import put_in_place
from sae.errors import ConfigError, SiteError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LM, TEXT = "tiny-llama", "random_words"
CORE = {"core": {"resamples": 20}}


def conf(group, name, **changes):
    return yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text()) | changes


PLACE = {"lm": conf("lm", LM), "corpus": conf("corpus", TEXT, seed=99), "tokens": 2048,
         "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from train import compose, train

    folder = tmp_path_factory.mktemp("run")
    words = ["debug=tiny", "epochs=1", "trainer.validations=0", "~callbacks.downstream"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(folder / "cache"))
        train(compose(words), folder / "run")
    return folder / "run"


def values(results):
    return {name: estimate.value for name, estimate in results["core"].metrics.items()}


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "openai"])
def test_it_is_worth_what_it_was_worth_here(run, tmp_path, format):
    """Written for another library, read back and told where it is from: the same numbers."""
    folder = program.export(run, format, tmp_path / "theirs")
    file = folder / "autoencoder.pt" if format == "openai" else folder
    own = program.evaluate(run, CORE, corpus=PLACE["corpus"], tokens=2048, device="cpu")
    place = {} if format == "saelens" else {"layer": 1, "site": "resid", "ctx": 32}
    theirs = program.evaluate(str(file), CORE, **PLACE, **place)
    assert theirs["core"].tokens == own["core"].tokens
    undefined = [name for name, value in values(own).items() if value is None]
    assert undefined == [name for name, value in values(theirs).items() if value is None]
    for name in values(own).keys() - undefined:
        assert values(theirs)[name] == pytest.approx(values(own)[name], rel=1e-4), name
    results = "evals/autoencoder" if format == "openai" else "evals"
    (result,) = (folder / results).glob("*.json")
    assert result.name == f"core-{TEXT}-tokens=2048-resamples=20.json"
    assert json.loads(result.read_text())["provenance"]["point"] == "resid.1"


def test_program_exports_and_evaluates(run, tmp_path):
    arguments = [
        f"run={run}", "export=saelens", f"out={tmp_path / 'out'}", "eval=[core]", "tokens=1024",
        f"corpus={TEXT}", "corpus.seed=99",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *arguments], cwd=tmp_path, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=240,
        env=os.environ | {"SAE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "fvu" in result.stdout
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert names == [
        "cfg.json", f"evals/core-{TEXT}-tokens=1024.json", "sae_weights.safetensors",
    ]  # fmt: skip


def test_what_must_be_said(run, tmp_path):
    folder = program.export(run, "dictionary_learning", tmp_path / "theirs")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"Give lm=…, layer=…, site=… Example: lm=smollm2"):
        program.evaluate(folder, CORE, device="cpu")
    with pytest.raises(ConfigError, match="Give site=… Example"):
        program.evaluate(folder, CORE, **PLACE, layer=1)
    with pytest.raises(SiteError, match="3 layers"):
        program.evaluate(folder, CORE, **PLACE, layer=9, site="resid")
    with pytest.raises(
        ConfigError, match=r"takes vectors of width 32; mlp.1 of lm=tiny-llama have"
    ):
        program.evaluate(folder, CORE, **PLACE, layer=1, site="mlp")


def test_a_module_by_its_path_in_this_lm(run, tmp_path):
    folder = program.export(run, "saelens", tmp_path / "theirs")
    cfg = json.loads((folder / "cfg.json").read_text())

    def placed(hook):
        cfg["metadata"]["hook_name"] = hook
        (folder / "cfg.json").write_text(json.dumps(cfg))
        sae = load(folder)
        put_in_place(sae, lm=PLACE["lm"], corpus=PLACE["corpus"], layer=None, site=None,
                     target=None, ctx=None)  # fmt: skip
        return sae.metadata["activations"]["point"]

    assert placed("model.layers.1.mlp") == "mlp_out.1"
    assert placed("model.layers.1.self_attn") == "attn_out.1"
    with pytest.raises(
        ConfigError, match=r"Give layer=…, site=… .*resid_pre is not a site.*embedd"
    ):
        placed("blocks.0.hook_resid_pre")


def test_a_transcoder_of_another_library(tmp_path):
    import torch

    from sae.artifacts import save
    from sae.dictionaries.sae import SAE, SAEConfig

    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec, W_skip = (torch.randn(*shape, generator=generator)
                            for shape in ((32, 40), (40, 32), (32, 32)))  # fmt: skip
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    config = SAEConfig("l1", "relu", 32, 40, d_out=32)
    sae = SAE(W_enc, torch.zeros(40), W_dec, torch.zeros(32), config, W_skip=0.1 * W_skip)
    folder = save(tmp_path / "theirs", sae, "saelens")
    place = PLACE | {"tokens": 1024, "layer": 1, "site": "mlp_in", "ctx": 32}
    with pytest.raises(ConfigError, match="Give target=…"):
        program.evaluate(folder, CORE, **place)
    with pytest.raises(ConfigError, match="target=mlp_in is what the transcoder reads"):
        program.evaluate(folder, CORE, **place, target="mlp_in")
    with pytest.raises(ConfigError, match="gives vectors of width 32; mlp.1"):
        program.evaluate(folder, CORE, **place, target="mlp")
    evals = CORE | {"downstream": {"num_tokens": 256, "resamples": 20}}
    results = program.evaluate(folder, evals, **place, target="mlp_out")
    assert results["core"].provenance["point"] == "mlp_in.1->mlp_out.1"
    assert values(results)["fvu"] > 1  # random weights
    assert results["downstream"].metrics["ce_sae"].value is not None


def test_a_target_is_for_transcoders(run, tmp_path):
    folder = program.export(run, "openai", tmp_path / "theirs") / "autoencoder.pt"
    with pytest.raises(ConfigError, match="target=mlp_out has no effect: this SAE reconstructs"):
        program.evaluate(folder, CORE, **PLACE, layer=1, site="resid", target="mlp_out")


def test_an_own_sae_has_its_place(run):
    with pytest.raises(ConfigError, match=r"layer=0 ctx=64 has no effect on .*, whose SAE says"):
        program.evaluate(run, CORE, layer=0, ctx=64, device="cpu")


def test_an_lm_of_another_width_is_named(run, tmp_path):
    wide = conf("lm", "tiny-gpt2", d_model=48)
    with pytest.raises(ConfigError, match=r"width 32; the test .* have width 48"):
        program.evaluate(run, CORE, lm=wide, tokens=1024, device="cpu")


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        ({"export": "saelens"}, [], "export=saelens needs a new folder: out="),
        (
            {"export": "saelens", "out": "x"},
            ["lm", "corpus.seed"],
            "lm has no effect on an",
        ),
        ({"out": "x"}, [], "out=x is for one run; run= names 2"),
        ({"eval": {}}, [], "eval is empty"),
        ({"eval": {"frontier": {}}, "together": True}, [], "no effect with eval=.frontier.*Drop"),
        ({"eval": {"compare": {}, "frontier": {}}, "together": True}, [], "eval=.compare,frontier"),
    ],
)
def test_what_has_no_effect(config, names, message):
    config = {"eval": {"core": {}}, "export": None, "out": None, "together": False} | config
    runs = ["a", "b"] if message.startswith("out=") else ["a"]
    several = [name for name in ("compare", "frontier") if name in config["eval"]]
    with pytest.raises(ConfigError, match=message):
        check_evaluation(config, runs, names, several)


def test_where_results_go(tmp_path, monkeypatch):
    from sae.reports import results as names

    monkeypatch.chdir(tmp_path)
    assert names.results_folder("owner/name", "here") == Path("here/evals")
    for hub_id in ("owner/name", "owner/name:3"):
        with pytest.raises(ConfigError, match=f"{hub_id} is on the hub. Say where .* out=<folder>"):
            names.results_folder(hub_id)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "learned_dicts.pt").touch()
    assert names.results_folder("a") == Path("a/evals")
    for run in ("a:3", "a/learned_dicts.pt:3"):  # no result may take the place of another SAE's
        assert names.results_folder(run) == Path("a/evals/learned_dicts/3")
    monkeypatch.setattr(names.os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="a cannot be written to"):
        names.results_folder("a")
