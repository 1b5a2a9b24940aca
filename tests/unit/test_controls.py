"""Controls of an SAE: fitted ones, trained ones, and the commands that make those that lack."""

import shlex

import numpy as np
import pytest
import torch
from _features import POINT, make_sae, source

from conf.compose import compose_job, names_of, parse
from conf.schema import check
from sae.activations.datamodule import ActivationDataModule
from sae.artifacts import load, save_sae
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.baselines import BASELINES
from sae.errors import ConfigError
from sae.evals.controls import (
    FROZEN,
    RANDOM_LM,
    fitted_controls,
    given_controls,
    missing_controls,
    other_seeds,
)
from sae.features.by_column import firings_by_column
from sae.features.make import all_firings
from sae.training.baselines import fit_baseline
from sae.training.command import command, config_of

__all__ = ["source"]  # a fixture


def saved(source, folder, seed=0, frozen=False):
    """A run folder with the SAE alone."""
    sae = make_sae(source, seed=seed)
    sae.metadata.update(
        activations=dict(source.describe()), counted=source.counted.to_json(), normalize="spread",
        settings={
            "sae": {"architecture": "topk", "k": 4, "frozen_decoder": frozen, "dict_ratio": 1.5},
            "resample": {"at_tokens": []}, "optimizer": {"name": "adam"}, "seed": seed, "eval": {},
        },
    )  # fmt: skip
    save_sae(folder / "sae", sae)
    return sae


@pytest.mark.slow
def test_bases_are_fitted_as_they_are_and_at_the_saes_l0(source, monkeypatch):
    one = PlacedSAE(make_sae(source), source)
    controls = fitted_controls(one, l0=3.4)
    names = [control.name for control in controls]
    assert names == [
        f"{kind}{form}" for kind in ("neurons", "pca", "ica", "random") for form in ("", " top-k")
    ]
    for control in controls:
        control.placed.prepare("test")
        firings = all_firings(control.placed, "test", num_tokens=10**6)
        l0 = firings.counts.sum() / firings.counted.sum()
        sae = control.placed.sae
        signed = sae.config.activation in ("identity", "abs_topk")
        assert firings.num_latents == sae.d_sae * (1 + signed)
        assert signed == (not control.name.startswith("random"))
        assert control.dense == (control.facts["k"] is None)
        if control.dense:
            assert l0 > 0.3 * sae.d_sae
        else:
            assert l0 == pytest.approx(3, abs=0.01), "round(3.4), each sign a latent"
    assert controls[-1].placed.sae.d_sae == one.sae.d_sae, "as many random directions"

    def refuse(*_):
        raise AssertionError("fitted again")

    for kind in ("pca", "ica", "random"):
        monkeypatch.setattr(BASELINES[kind], "learn", refuse)
    again = fitted_controls(one, l0=3.4)
    for first, second in zip(controls, again, strict=True):
        assert torch.equal(first.placed.sae.W_enc, second.placed.sae.W_enc)


@pytest.mark.slow
def test_dense_firings_are_those_of_the_other_way(source):
    one = PlacedSAE(make_sae(source), source)
    for control in fitted_controls(one, 3.0):
        if control.dense:
            firings = all_firings(control.placed, "test", num_tokens=10**6)
            latents = [0, 5, firings.num_latents - 1]
            rows = control.placed.rows("test")
            found = dict(firings_by_column(control.placed.sae, rows, firings.counted, latents))
            assert list(found) == latents
            for latent in latents:
                (expected,) = firings.read(range(latent, latent + 1))
                np.testing.assert_array_equal(found[latent].row, expected.row)
                np.testing.assert_allclose(found[latent].value, expected.value, atol=1e-4)


def test_controls_are_told_by_what_they_say_of_themselves(source, tmp_path):
    for i, frozen in enumerate((False, True, False)):
        saved(source, tmp_path / str(i), i, frozen)
    one = PlacedSAE(make_sae(source), source, folder=tmp_path / "0")
    given = given_controls(one, [str(tmp_path / str(i)) for i in range(3)])
    assert [control.name for control in given] == [FROZEN, "2"], "never itself"
    one.sae.metadata["activations"] = dict(source.describe())
    assert set(missing_controls(one, given)) == {RANDOM_LM}
    assert set(missing_controls(one, [])) == {FROZEN, RANDOM_LM}


def test_runs_at_other_points_are_left_out_and_other_texts_refused(
    source, tmp_path, tiny_source, random_corpus
):
    from sae.activations.sources import LMActivations
    from sae.types import Point

    def other(name, where=POINT, **fields):
        made = LMActivations(tiny_source("gpt2"), random_corpus(), where, **{
            "tokens": 2048, "val_tokens": 256, "test_tokens": 2048, "ctx": 16, "dtype": "float32",
        } | fields)  # fmt: skip
        made.prepare()
        saved(made, tmp_path / name)
        return str(tmp_path / name)

    one = PlacedSAE(make_sae(source), source)
    assert given_controls(one, [other("point", Point("resid", 2))]) == []
    with pytest.raises(ConfigError, match="ctx has other test contexts"):
        given_controls(one, [other("ctx", ctx=32)])


def composed(*words):
    return check(compose_job("train", words), names_of(parse(words)))


@pytest.mark.parametrize(
    "words",
    [
        "debug=tiny sae=topk k=8 seed=3 epochs=2 optimizer.lr=2e-3 sae.auxk=0.5",
        "lm=tiny-gpt2 corpus=random_words layer=2 site=mlp tokens=4096 sae=jumprelu target_l0=8 "
        "resample=none activations.max_norm=null trainer.batch_size=128",
        "debug=tiny l1=2e-3",
    ],
)
def test_commands_of_controls_change_one_thing(words):
    config = composed(*words.split())
    made = {**config, "sae": dict(config["sae"])}
    frozen = "frozen_decoder" in config["sae"]
    changes = {"sae.frozen_decoder": True, "resample": "none"} if frozen else {"seed": 5}
    again = composed(*shlex.split(command(made, run_dir="x y", **changes))[2:])
    assert again["run_dir"] == "x y"
    if frozen:
        assert again["sae"] == {**config["sae"], "frozen_decoder": True}
        assert again["resample"]["at_tokens"] == []
    else:
        assert again["sae"] == config["sae"]
        assert again["resample"] == config["resample"]
    for name in ("lm", "corpus", "activations", "optimizer"):
        assert again[name] == config[name], name
    assert again["epochs"] == config["epochs"]
    for name in ("batch_size", "precision", "gradient_clip"):
        assert again["trainer"][name] == config["trainer"][name]


def test_a_tied_decoder_cannot_be_frozen_and_l1_stands_in(source, tmp_path):
    sae = saved(source, tmp_path / "0")
    sae.metadata["settings"]["sae"] = {"architecture": "tied", "dict_ratio": 8.0, "l1": 2e-3}
    line = missing_controls(PlacedSAE(sae, source, folder=tmp_path / "0"), [])[FROZEN]
    words = shlex.split(line)
    assert {"sae=l1", "l1=0.002", "sae.frozen_decoder=true", "resample=none"} <= set(words)
    assert f"run_dir={tmp_path / '0'}-frozen-decoder" in words


def test_what_a_saved_sae_knows_is_enough_for_a_command(source, tmp_path):
    sae = saved(source, tmp_path / "0", seed=4)
    config = config_of(sae.metadata)
    assert config["activations"]["tokens"] == 16_384
    line = missing_controls(PlacedSAE(sae, source), [])[RANDOM_LM]
    assert {"layer=1", "tokens=16384", "k=4", "seed=4", "lm.random_weights=true"} <= set(
        shlex.split(line)
    )


def test_a_sweep_with_all_members_gives_each_list_its_own(source, tmp_path):
    source.prepare(splits=["test"])
    for i, options in enumerate([{}, {"seed": 1}, {"seed": 2}, {"frozen": True}]):
        saved(source, tmp_path / str(i), **options)
    pca, _ = fit_baseline({"sae": {"architecture": "pca", "k": 4}}, ActivationDataModule(source))
    pca.metadata.update(activations=dict(source.describe()), counted=source.counted.to_json(),
                        settings={"sae": {"architecture": "pca", "k": 4}, "seed": 0})  # fmt: skip
    save_sae(tmp_path / "4" / "sae", pca)
    (tmp_path / "multirun.yaml").touch()
    for i in range(5):
        (tmp_path / str(i) / "results.json").write_text("{}")
    one = PlacedSAE(load(tmp_path / "0"), source, folder=tmp_path / "0")
    seeds, controls = other_seeds(one, [str(tmp_path)]), given_controls(one, [str(tmp_path)])
    assert [seed.sae.metadata["settings"]["seed"] for seed in seeds] == [1, 2]
    assert [control.name for control in controls] == [FROZEN]
