"""Settings that dictionaries with a sparsity penalty share."""

from sae.settings import Settings, Span, setting


class PenaltyConfig(Settings):
    """Settings of every penalty, whatever its form."""

    target_l0: float | None = setting(
        None, gt=0, help="L0 that the penalty's coefficient is steered to; null: not steered"
    )
    sparsity_warmup_tokens: Span = setting(
        "5%", help="linear rise of the penalty; tokens, or a share of the run"
    )


class L1Config(PenaltyConfig):
    """Settings of a penalty on the sum of f."""

    l1: float = setting(1e-3, ge=0, help="coefficient of the penalty")


class StartConfig(Settings):
    """Settings of encoder biases that start away from 0."""

    start_bias: float | None = setting(
        None, help="encoder biases at the start; null: by how far activations spread"
    )
