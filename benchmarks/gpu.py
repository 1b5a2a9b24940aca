"""All that is to be known about a GPU in one call: benchmarks/gpu.sh runs this.

Each step is a benchmark of this folder in a process and a time limit of its own; the page and the
numbers are written after every step, so that whatever ends the call leaves what was found.

    python -m benchmarks.gpu --out results
    python -m benchmarks.gpu --out results --only harvest tests     some steps alone
    python -m benchmarks.gpu --out results --rehearse               tiny, on a machine without a GPU
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, Cell, Result, Spread, Table, find

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ((768, 24_576), (2048, 65_536), (4096, 131_072))
"""d_in and d_sae: GPT-2 and Pythia-160M, a 1 to 2 B LM, an 8 B LM, each at 32 times its width."""
LMS: Mapping[str, Mapping[str, Any]] = {
    "pythia-160m": {
        "model_type": "gpt_neox", "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50_304,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49_152, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Sizes of LMs; weights are drawn at random, since neither time nor memory depends on them."""
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 257,
}  # fmt: skip
PUBLISHED = (
    "end-to-end: Llamascopium publishes 444 k vectors/s for Pythia-160M, d_in 768, d_sae 6,144, on "
    "hardware and with a batch of its own; it was not run here."
)
LAST_LINES = 15


@dataclass(frozen=True)
class Step:
    """A part of the call.

    Attributes:
        name: For tables, and for `--only`.
        command: What `python -m` is given.
        seconds: It is ended after so long.
        needs: Modules without which it is left out.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    needs: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> Path:
    """Run all steps; returns the page that was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=int, default=470, help="for all steps together")
    parser.add_argument("--only", nargs="*", default=[], help="names of steps")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, by the interpreter")
    given = parser.parse_args(argv)
    if not (given.rehearse or torch.cuda.is_available()):
        parser.error("there is no GPU here that PyTorch can use. Give --rehearse to try the steps.")
    result = Result("gpu", {"seconds": given.seconds, "rehearse": given.rehearse})
    if not given.rehearse:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        result.notes.append(f"{memory:.0f} GiB on the GPU, CUDA {torch.version.cuda}.")
    result.notes.append(PUBLISHED)
    overview = Table("Steps", ["step", "ended", "seconds"])
    result.tables.append(overview)
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        for step in _steps(parts, given.rehearse):
            if given.only and step.name not in given.only:
                continue
            start = time.monotonic()
            limit = step.seconds * (5 if given.rehearse else 1)  # an interpreter is slow
            ended = _run(step, parts, min(limit, end - start), given.rehearse)
            overview.rows.append([step.name, ended, round(time.monotonic() - start, 1)])
            _add(step, parts, result)
            page = result.write(given.out, show=False)
    sys.stdout.write(page.read_text())
    return page


def _steps(parts: Path, rehearse: bool) -> list[Step]:
    """The steps of the command, most important first."""
    device = "--device=cpu" if rehearse else "--device=cuda"
    shapes = ((16, 64),) if rehearse else SHAPES
    words = [f"{d_in}x{d_sae}" for d_in, d_sae in shapes]
    batch, k, rounds = ("8", "4", "1") if rehearse else ("8192", "64", "5")
    size = (device, f"--batch={batch}")
    quick = ("--quick", "--rounds=1") if rehearse else ()
    steps = [
        Step(
            "kernels",
            ("benchmarks.products", *quick, *size, f"--k={k}", "--shapes", *words),
            60,
        )
    ]
    for (d_in, d_sae), word, seconds in zip(shapes, words, (60, 75, 120), strict=False):
        steps.append(
            Step(
                f"step-{word}",
                (
                    "benchmarks.speed", *size, f"--d-in={d_in}", f"--d-sae={d_sae}", f"--k={k}",
                    f"--l0={k}", f"--rounds={rounds}", "--steps=2", "--no-memory",
                    "--only", "tied", "l1", "topk",
                ),
                seconds,
            )
        )  # fmt: skip
    l0 = ("--l0", "4") if rehearse else ()
    crossing = ("benchmarks.scaling", *size, f"--rounds={rounds}", *l0, "--shapes", *words)
    steps.append(Step("crossing", crossing, 75))
    for name in LMS:
        steps.append(Step(f"harvest-{name}", _on_lm("harvest", name, parts, rehearse), 40, HARVEST))
    for sae in ("l1", "topk"):
        end_to_end = _on_lm("loader", "pythia-160m", parts, rehearse)
        k_or_l1 = "k=4" if sae == "topk" and rehearse else "k=64" if sae == "topk" else "l1=1e-3"
        steps.append(Step(f"end-to-end-{sae}", (*end_to_end, f"sae={sae}", k_or_l1), 60, HARVEST))
    for name, paths in (("tests-kernels", KERNEL_TESTS), ("tests", ["tests/unit"])):
        workers = ["-n", "8"] if find("xdist") and name == "tests" else []
        command = ("pytest", "-m", EVERY_TEST, "-vv", "--tb=line", *workers, *paths)
        steps.append(Step(name, command, 400, ("pytest", "hypothesis", "beartype", "hydra")))
    return [step for step in steps if not rehearse or step.name != "tests"]


HARVEST = ("transformers", "zarr", "hydra")
EVERY_TEST = "not real_lm and not peers and not browser and not chaos"
KERNEL_TESTS = ["tests/unit/test_triton.py"]


def _on_lm(benchmark: str, name: str, parts: Path, rehearse: bool) -> tuple[str, ...]:
    """A benchmark that takes overrides of train.py, on an LM of these sizes with random weights."""
    layer = LMS[name]["num_hidden_layers"] // 2
    overrides = [
        "lm=folder", f"lm.path={parts / name}", f"lm.name={name}-shape", "lm.random_weights=true",
        "corpus=random_words", f"layer={1 if rehearse else layer}", "dict_ratio=8", "epochs=4",
    ]  # fmt: skip
    if rehearse:
        overrides += [
            "tokens=2048", "activations.ctx=32", "activations.val_tokens=256",
            "activations.test_tokens=256", "trainer.batch_size=64", "trainer.precision=32-true",
        ]  # fmt: skip
        options = ["--rounds=2", "--segment=4" if benchmark == "loader" else "--tokens=512"]
    else:
        overrides += [
            "lm.dtype=bfloat16", "corpus.num_documents=4000", "tokens=1048576",
            "activations.val_tokens=8192", "activations.test_tokens=8192",
            "activations.batch_contexts=256", "trainer.batch_size=4096",
        ]  # fmt: skip
        options = ["--rounds=5", "--segment=50" if benchmark == "loader" else "--tokens=262144"]
    return (f"benchmarks.{benchmark}", *options, *overrides)


def _write_lm(folder: Path, sizes: Mapping[str, Any], rehearse: bool) -> None:
    """Configuration and tokenizer of an LM: all that is needed where its weights are drawn."""
    from transformers import AutoConfig

    from sae.language.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(**{**sizes, **(TINY if rehearse else {})})
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _run(step: Step, parts: Path, seconds: float, rehearse: bool) -> str:
    """Run a step and say how it ended; what it says is kept in `<name>.log`."""
    missing = [name for name in step.needs if find(name) is None]
    if missing:
        return f"left out: {', '.join(missing)} is not installed"
    if seconds < 5:
        return "left out: no time was left"
    if step.needs == HARVEST:
        for name, sizes in LMS.items():
            if not (parts / name).exists():
                _write_lm(parts / name, sizes, rehearse)
    module, *options = step.command
    if module != "pytest":
        options = [f"--out={parts}", f"--name={step.name}", *options]
    through = ["benchmarks.rehearsal"] if rehearse and module != "pytest" else []
    command = [sys.executable, "-m", *through, module, *options]
    environment = os.environ | {"SAE_CACHE": str(parts / "cache"), "PYTHONUNBUFFERED": "1"}
    with (parts / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return "well" if code == 0 else f"with exit code {code}"


def _add(step: Step, parts: Path, result: Result) -> None:
    """Take over what a step wrote, and the end of its log where it did not end well."""
    log = parts / f"{step.name}.log"
    said = log.read_text(errors="replace") if log.exists() else ""
    if step.command[0] == "pytest" and said:
        result.tables.append(_tests(step.name, said))
    for path in parts.glob(f"*-{step.name}.json"):
        found = json.loads(path.read_text())
        for table in found["tables"]:
            rows = [[_cell(cell) for cell in row] for row in table["rows"]]
            title = f"{step.name}: {table['title']}"
            result.tables.append(Table(title, table["columns"], rows))
        result.notes += [note for note in found["notes"] if note not in result.notes]
        result.raw[step.name] = found["raw"] | {"settings": found["settings"]}
    overview = result.tables[0].rows[-1]
    if overview[1] != "well" and said:
        result.raw.setdefault(step.name, {})["log"] = said.splitlines()[-LAST_LINES:]


def _cell(cell: Any) -> Cell | Spread:
    return Spread(*cell) if isinstance(cell, list) else cell


def _tests(name: str, log: str) -> Table:
    """How many tests passed, and which did not, as far as the run came."""
    outcomes = re.findall(r"(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", log)
    outcomes += [(b, a) for a, b in re.findall(r"\] (PASSED|FAILED|ERROR|SKIPPED) (\S+::.*)", log)]
    table = Table(f"{name}: tests", ["outcome", "tests"])
    for outcome in ("PASSED", "SKIPPED", "FAILED", "ERROR"):
        names = [test for test, ended in outcomes if ended == outcome]
        table.rows.append([outcome.lower(), len(names)])
        if outcome in ("FAILED", "ERROR"):
            table.rows += [[f"{outcome.lower()}: {test}", None] for test in names]
    return table


if __name__ == "__main__":
    main()
