"""Settings of the nodes `logger` and `callbacks`."""

from typing import Literal

from sae.registry import Registry
from sae.settings import Settings, setting


class LoggerSettings(Settings):
    """Loggers of metrics besides `metrics.csv`."""

    where = "logger."

    wandb: Literal["auto", "online", "offline", "disabled"] = setting(
        "auto", help="auto: online when logged in, offline otherwise"
    )
    project: str = setting("lightning-sae", help="W&B project")
    entity: str | None = setting(None, help="W&B user or team; null: the account's own")
    group: str | None = setting(None, help="null: the sweep's folder")
    name: str | None = setting(None, help="null: made from architecture, point and sparsity")


WATCHERS: Registry[type[Settings]] = Registry("callbacks", "word")
"""Settings of the measuring callbacks by their key in the node `callbacks`."""


@WATCHERS.register("dead_features")
class DeadFeaturesSettings(Settings):
    """Nothing to set."""

    where = "callbacks.dead_features."


@WATCHERS.register("reconstruction")
class ReconstructionSettings(Settings):
    """Nothing to set."""

    where = "callbacks.reconstruction."


@WATCHERS.register("downstream")
class DownstreamSettings(Settings):
    """Text that predictions are measured on, and how often."""

    where = "callbacks.downstream."

    num_tokens: int = setting(4096, ge=1, help="held-out tokens read, whole contexts")
    every_n_validations: int = setting(1, ge=1, help="measure at every n-th validation only")
    batch_contexts: int = setting(
        8, ge=1, help="contexts per forward pass; two sets of logits are held"
    )


@WATCHERS.register("features")
class FeaturesSettings(Settings):
    """Latents that are watched while they form."""

    where = "callbacks.features."

    latents: int = setting(12, ge=1, help="watched latents, chosen by the hash of their number")
    contexts: int = setting(2, ge=1, le=20, help="strongest contexts of each at a validation")
