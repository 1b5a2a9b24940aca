"""Continuing a run: what the command line may change, and what it says about the rest."""

import pytest

from conf.commandline import check_command_line
from conf.compose import compose_job, names_of, parse
from conf.resume import continued, save_config
from conf.schema import check
from sae.errors import ArtifactError, ConfigError


def composed(*overrides):
    return check(compose_job("train", overrides), names_of(parse(overrides)))


def test_a_new_folder_takes_the_configuration_as_it_is(tmp_path):
    config = composed("layer=3")
    assert continued(tmp_path, config, ["layer"]) == config


def test_the_saved_configuration_decides(tmp_path):
    save_config(tmp_path, composed("layer=3", "l1=5e-3"))
    assert continued(tmp_path, composed(), [])["layer"] == 3
    assert continued(tmp_path, composed("layer=3"), ["layer"])["l1"] == 5e-3


@pytest.mark.parametrize(
    ("override", "given", "both"),
    [
        ("layer=4", "layer", "layer=3, but layer=4"),
        ("sae=topk", "sae", "sae.architecture=tied, but sae.architecture=topk"),
        (
            "trainer.batch_size=8",
            "trainer.batch_size",
            r"trainer.batch_size=\d+, but trainer.batch_size=8 ",
        ),
        ("optimizer.lr=5", "optimizer.lr", "optimizer.lr=0.001, but optimizer.lr=5.0"),
    ],
)
def test_contradictions_show_both_values(tmp_path, override, given, both):
    save_config(tmp_path, composed("layer=3"))
    with pytest.raises(ConfigError, match=both):
        continued(tmp_path, composed(override), [given])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "words", "message"),
    [
        ([], ["experiment=paper"], "lm.kind=wheel, but lm.kind=hub.* Drop experiment=paper"),
        ([], ["debug=tiny"], "lm.kind=wheel, but lm.kind=random"),
        (["debug=tiny"], ["debug=tiny", "layer=2"], "layer=1, but layer=2 .* Drop layer,"),
        (["debug=tiny"], ["debug=tiny", "epochs=8"], None),
        ([], ["sweep=l1"], None),
        ([], ["launcher=joblib"], None),
        (["sae=topk", "k=64"], ["k=64"], None),
        (["sae=topk", "k=64"], ["k=32"], "k=64, but k=32"),
        (["sae=topk"], ["l1=0.5"], "l1=0.5 has no effect with sae=topk"),
        (["sae=topk"], ["sae=tied"], "sae.architecture=topk, but sae.architecture=tied"),
        ([], ["k=64"], "k=64 has no effect with sae=tied"),
        ([], ["~callbacks.downstream"], "callbacks.downstream=.*4096.*=null was given"),
    ],
)
def test_the_command_line_is_compared_with_the_saved_run(tmp_path, saved, words, message):
    save_config(tmp_path, composed(*saved))
    command = [f"run_dir={tmp_path}", *(w for w in words if not w.startswith("sweep"))]
    given = names_of(parse([*command, *words]))
    if message is None:
        check_command_line("train", command)
        continued(tmp_path, check(compose_job("train", command), given), given)
    else:
        with pytest.raises(ConfigError, match=message):
            check_command_line("train", command)


@pytest.mark.slow
def test_auto_continues_with_the_recorded_dtypes(tmp_path):
    """Another machine may find other ones; given by name, the precision may change."""
    save_config(tmp_path, composed("trainer.precision=bf16-mixed", "lm.dtype=bfloat16"))
    for word in ("trainer=default", "trainer.precision=auto", "lm.dtype=auto"):
        config = continued(tmp_path, composed(word), names_of(parse([word])))
        assert config["trainer"]["precision"] == "bf16-mixed"
        assert config["lm"]["dtype"] == "bfloat16"
    everything = composed("trainer.precision=auto", "lm.dtype=auto")
    assert continued(tmp_path, everything)["lm"]["dtype"] == "bfloat16"
    word = "trainer.precision=32-true"
    config = continued(tmp_path, composed(word), names_of(parse([word])))
    assert config["trainer"]["precision"] == "32-true"
    with pytest.raises(ConfigError, match="with lm.dtype=bfloat16, but lm.dtype=float32 was"):
        continued(tmp_path, composed("lm.dtype=float32"), ["lm.dtype"])
    words = ["trainer=default", "trainer.batch_size=8"]
    with pytest.raises(ConfigError, match=r"trainer.batch_size=\d+, but trainer.batch_size=8 "):
        continued(tmp_path, composed(*words), names_of(parse(words)))


def test_without_given_keys_everything_must_agree(tmp_path):
    save_config(tmp_path, composed("layer=3", "trainer.precision=32-true"))
    again = continued(tmp_path, composed("layer=3", "epochs=9"))
    assert (again["epochs"], again["layer"]) == (9, 3)
    with pytest.raises(ConfigError, match="with layer=3, but layer=4 was given"):
        continued(tmp_path, composed())


@pytest.mark.parametrize(
    "key", ["resample.sample_tokens", "activations.ctx", "epochs", "callbacks"]
)
def test_a_key_that_an_old_configuration_lacks_is_named(tmp_path, key):
    config = composed()
    node, _, last = key.rpartition(".")
    del (config[node] if node else config)[last]
    save_config(tmp_path, config)
    with pytest.raises(ArtifactError, match=f"lacks {key}: another version"):
        continued(tmp_path, composed(), [])


def test_length_loggers_and_hardware_may_change(tmp_path):
    save_config(tmp_path, composed("layer=3"))
    overrides = ["epochs=9", "logger.wandb=disabled", "trainer.accelerator=cpu"]
    config = continued(tmp_path, composed(*overrides), names_of(parse(overrides)))
    assert (config["epochs"], config["layer"]) == (9, 3)
    assert config["logger"]["wandb"] == "disabled"
    assert config["trainer"]["accelerator"] == "cpu"
    with pytest.raises(ConfigError, match="not for less"):
        continued(tmp_path, composed("epochs=1"), ["epochs"])
