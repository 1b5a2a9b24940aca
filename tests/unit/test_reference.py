"""conf/schema.json and the reference page say what the classes of settings say."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from conf.compose import compose_job, names_of, parse
from conf.help import FILE
from conf.options import options
from conf.reference import PAGE, page, schema
from conf.schema import check

ROOT = Path(__file__).parents[2]
REMEDY = "Run python -m conf.reference."


def test_the_files_are_those_that_the_classes_give():
    assert json.loads(FILE.read_text("utf-8")) == schema(), REMEDY
    assert PAGE.read_text("utf-8") == page(), REMEDY


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [[f"sae={name}"] for name in options("sae")]
    + [["activations=superposition"], ["debug=tiny"], ["experiment=e2e"], ["lm=gpt2"],
       ["corpus=hub", "corpus.dataset=a/b"], ["eval=[core,tpp,scr,absorption,sparse_probing]"]],
    ids=" ".join,
)  # fmt: skip
def test_a_checked_configuration_fits_the_schema(words):
    config = check(compose_job("train", words), names_of(parse(words)))
    jsonschema.validate(config, schema())
    config["sae"]["no_such_key"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema())


def shown(*words):
    code = (
        f"import sys, runpy; sys.argv = ['train.py', *{list(words)}]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules, 'slow import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cfg_shows_every_default_and_every_override():
    """The text that `--cfg job` prints is the configuration that a run would have."""
    import yaml

    words = ["sae=topk", "sae.k=5", "layer=2", "lm.dtype=float32", "trainer.precision=32-true",
             "run_dir=a", "sweep_dir=b"]  # fmt: skip
    config = check(compose_job("train", words), names_of(parse(words)))
    told = yaml.safe_load(shown("--cfg", "job", *words))
    nodes = [name for name, node in config.items() if isinstance(node, dict)]
    assert {name: told[name] for name in nodes} == {name: config[name] for name in nodes}


def test_help_names_every_key_with_its_default():
    from conf.settings import TrainSettings

    lines = [line.split() for line in shown("--help").splitlines()]
    told = {line[0]: line[-1] for line in lines if line}
    config = check(compose_job("train", []))
    for name, field in TrainSettings.model_fields.items():
        if field.is_required() or isinstance(config[name], dict) or name == "e2e":
            continue
        default = {"k": 64, "harvest_only": "false", "plan": "false"}.get(name, config[name])
        assert told[name] == f"({'null' if default is None else default})", name
