"""Reading the output of a validation step, and the one way to log."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from sae.errors import ConfigError


def field(outputs: Any, name: str) -> Any:
    """Read `name` from what a validation step returned: an object or a mapping.

    Raises:
        ConfigError: If the step returned nothing of that name.

    Example:
        >>> field({"x_hat": 3}, "x_hat")
        3
    """
    if isinstance(outputs, Mapping) and name in outputs:
        return outputs[name]
    if hasattr(outputs, name):
        return getattr(outputs, name)
    raise ConfigError(
        f"validation_step returned {type(outputs).__name__} without {name!r}. Return an object or "
        "a dict with x and x_hat [batch d_in] in the LM's own units, and code (sae.dictionaries)."
    )


def log_values(module: L.LightningModule, values: Mapping[str, float | None]) -> None:
    """Log numbers of a validation, with the tokens seen so far where the module counts them.

    As float64 tensors: Lightning would round Python floats to float32, which cannot even count
    tokens beyond 16.7 million. Undefined numbers (None) are left out.
    """
    numbers = {name: value for name, value in values.items() if value is not None}
    tokens = getattr(module, "tokens_seen", None)
    if tokens is not None:
        numbers["tokens"] = float(tokens)
    for name, value in numbers.items():
        number = torch.tensor(value, dtype=torch.float64, device=module.device)
        module.log(name, number, batch_size=1, sync_dist=True)  # equal on all ranks anyway
