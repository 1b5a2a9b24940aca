"""How long stages take: operations over the measured rate, times what was measured beside them.

Calibrated on 2 cores (AMD EPYC with AVX512-bf16); docs/planning.md has the measurements.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sae.planning.machine import Machine, Product

LM = 1.35
"""Time of an LM pass over that of its matrix products."""
DENSE = 1.3
"""Time of a dense training step over that of its five products."""
SPARSE = 3.3
"""Time of a sparse training step over that of its one dense product, the encode."""
ENCODE = 1.3
"""Time of evaluating reconstructions over that of encode and decode."""
CONVERT_SECONDS = 1e-7
"""Of converting a GGUF file, for each of the LM's parameters."""
CONVERT_BYTES = 6
"""Of memory while converting, likewise: float32 and bfloat16."""
TOKENS_A_SECOND = 400_000
"""Tokenised."""

DENSE_VECTORS = 1_000_000
"""With l1 the code thins out slowly: until so many vectors were seen, steps count as dense."""
SETTLED_L0 = 100
"""Latents that fire after that, with l1; about what l1=1e-3 gives on the default LM."""


class Work(NamedTuple):
    """Operations, the product that stands for their speed, and a factor of this page."""

    flops: int | float
    product: Product
    factor: float

    def seconds(self, machine: Machine) -> float:
        """Time on this machine."""
        return self.factor * self.flops / machine.rate(self.product)


def sparse_k(config: Mapping[str, Any]) -> int | None:
    """Latents that fire, where the code is sparse from the first step; None with l1, or forced."""
    return None if config["trainer"]["kernels"] == "dense" else config["sae"].get("k")


def dense_vectors(config: Mapping[str, Any], vectors: int) -> int:
    """How many of a run's vectors are trained with a dense code: none where k is set."""
    if config["trainer"]["kernels"] == "dense":
        return vectors
    return 0 if sparse_k(config) is not None else min(vectors, DENSE_VECTORS)
