"""Training steps of other libraries, each by its own code, from the same weights.

A peer that is not installed is named as such. Each is timed in the steady state of a run: past
warm-ups, with the counters and thresholds that it keeps in every step.
"""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import find, has_bf16
from benchmarks.contenders import Contender, Maker
from benchmarks.problem import L1, LR, Problem

LIBRARIES = ("sae-lens", "dictionary_learning", "sparsify")
STEPS = 10**9
"""Length of the run that a peer's schedules are told."""


def peers(problem: Problem, architecture: str, device: str) -> dict[str, Maker]:
    """By name, the contenders of every peer that has the architecture.

    `l1`: sae-lens and dictionary_learning; `topk`: these and sparsify; `batch_topk`: the first two.
    Where the hardware has it, each runs once as it ships (float32) and once under bf16 autocast.
    """
    steps: dict[str, Callable[[Problem, str, str, bool], Contender | None]] = {
        "sae-lens": _sae_lens,
        "dictionary_learning": _dictionary_learning,
        "sparsify": _sparsify,
    }

    def made(library: str, bf16: bool) -> list[Contender] | str:
        what = "not installed"
        try:
            with redirect_stdout(sys.stderr):  # some greet when they are imported
                contender = steps[library](problem, architecture, device, bf16)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, RuntimeError, OSError) as error:  # what broken installations raise
            contender, what = None, f"cannot be imported: {str(error).splitlines()[0]}"
        return [contender] if contender else f"{library} {architecture}: {what}"

    return {
        _name(library, architecture, bf16): partial(made, library, bf16)
        for library in LIBRARIES
        if library != "sparsify" or architecture == "topk"
        for bf16 in ((False, True) if has_bf16(device) else (False,))
    }


def _name(library: str, architecture: str, bf16: bool) -> str:
    return f"{library} {architecture}{' bf16' if bf16 else ''}"


def _sae_lens(problem: Problem, architecture: str, device: str, bf16: bool) -> Contender | None:
    if find("sae_lens") is None:
        return None
    saes: Any = find("sae_lens.saes")
    training: Any = find("sae_lens.training.sae_trainer")
    config: Any = find("sae_lens.config")
    shape = {"d_in": problem.d_in, "d_sae": problem.d_sae, "device": device}
    if architecture == "l1":
        # its penalty is on a loss that is summed over d_in
        coefficient = L1 * problem.d_in
        sae = saes.StandardTrainingSAE(
            saes.StandardTrainingSAEConfig(**shape, l1_coefficient=coefficient)
        )
    elif architecture == "topk":
        sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(**shape, k=round(problem.l0)))
    else:
        sae = saes.BatchTopKTrainingSAE(
            saes.BatchTopKTrainingSAEConfig(**shape, k=float(round(problem.l0)))
        )
    with torch.no_grad():
        sae.W_enc.copy_(problem.W.T)
        sae.W_dec.copy_(problem.W)
        sae.b_enc.fill_(problem.bias if architecture == "l1" else 0.0)
    trainer = training.SAETrainer(
        config.SAETrainerConfig(
            total_training_samples=STEPS * problem.batch,
            train_batch_size_samples=problem.batch,
            lr=LR,
            lr_end=LR,
            device=device,
            autocast=bf16,
        ),
        sae,
        iter(()),
    )

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return Contender(_name("sae-lens", architecture, bf16), "sae-lens", step, sae.encode, bf16)


def _dictionary_learning(
    problem: Problem, architecture: str, device: str, bf16: bool
) -> Contender | None:
    if find("nnsight") is None:  # its buffer of LM activations imports it; its training does not
        sys.modules["nnsight"] = stub = ModuleType("nnsight")
        stub.LanguageModel = object  # pyright: ignore[reportAttributeAccessIssue]
    trainers: Any = find("dictionary_learning.trainers")
    if trainers is None:
        return None
    shape = {
        "steps": STEPS, "activation_dim": problem.d_in, "dict_size": problem.d_sae, "layer": 0,
        "lm_name": "", "lr": LR, "warmup_steps": 0, "device": device,
    }  # fmt: skip
    if architecture == "l1":
        trainer = trainers.StandardTrainer(
            **shape, l1_penalty=L1 * problem.d_in, sparsity_warmup_steps=None
        )
    else:
        word = {"topk": "TopKTrainer", "batch_topk": "BatchTopKTrainer"}[architecture]
        trainer = getattr(trainers, word)(**shape, k=round(problem.l0), threshold_start_step=0)
    ae = trainer.ae
    with torch.no_grad():
        ae.encoder.weight.copy_(problem.W)
        ae.decoder.weight.copy_(problem.W.T)
        ae.encoder.bias.fill_(problem.bias if architecture == "l1" else 0.0)
    autocast = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16)
    steps = iter(range(1, STEPS))  # at step 0 it computes a geometric median

    def step(x: Tensor) -> None:
        with autocast:  # as its `trainSAE` does
            trainer.update(next(steps), x)

    def encode(x: Tensor) -> Tensor:
        return ae.encode(x) if architecture == "l1" else ae.encode(x, use_threshold=False)

    name = _name("dictionary_learning", architecture, bf16)
    return Contender(name, "dictionary_learning", step, encode, bf16)


def _sparsify(problem: Problem, architecture: str, device: str, bf16: bool) -> Contender | None:
    if not device.startswith("cuda"):  # its Triton kernels are for GPUs, whatever is installed
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    if find("sparsify") is None:
        return None
    coders: Any = find("sparsify.sparse_coder")
    config: Any = find("sparsify.config")
    coder = coders.SparseCoder(
        problem.d_in,
        config.SparseCoderConfig(num_latents=problem.d_sae, k=round(problem.l0)),
        device=device,
        dtype=torch.float32,
    )
    with torch.no_grad():
        coder.encoder.weight.copy_(problem.W)
        coder.W_dec.copy_(problem.W)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)  # its optimizer="adam"
    since_fired = torch.zeros(problem.d_sae, dtype=torch.long, device=device)

    def step(x: Tensor) -> None:
        """The work of its `Trainer.fit`, hook and loop, which need an LM to run."""
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
            out = coder(x=x, y=x, dead_mask=None, total_variance=total_variance)
        did_fire = torch.zeros(problem.d_sae, dtype=torch.bool, device=device)
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(len(x))
        since_fired[did_fire] = 0

    def encode(x: Tensor) -> Tensor:
        values, indices, pre = coder.encode(x)
        return torch.zeros_like(pre).scatter(1, indices, values.to(pre.dtype))

    return Contender(_name("sparsify", architecture, bf16), "sparsify", step, encode, bf16)
