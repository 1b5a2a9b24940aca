"""Base of dictionaries that select latents by rank: k, and the loss of dead latents."""

from torch import Tensor

from sae.dictionaries.auxk import auxk_loss
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import Untied
from sae.errors import ConfigError
from sae.settings import setting


def wider(k: int) -> int:
    """Number of candidates that contain the k largest when pre-activations are approximate.

    All but 1 in 10,000 of 32 are among 40 (docs/adr/0023).
    """
    return k + max(1, k // 4)


class Selected(Untied):
    """Keeps the largest pre-activations; no penalty.

    Raises:
        ConfigError: If k exceeds the number of latents.
    """

    class Config(Untied.Config):
        """Settings."""

        k: int = setting(64, ge=1, help="latents that fire per vector")
        auxk: float = setting(
            1.0, ge=0, help="weight of the loss that revives dead latents; 0 turns it off"
        )

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        if config.k > shape.d_sae:
            raise ConfigError(f"k={config.k} must be at most d_sae={shape.d_sae}.")

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """AuxK."""
        if not self.config.auxk or state.dead is None:
            return {}
        return {"auxk": self.config.auxk * auxk_loss(self, found, state.dead)}
