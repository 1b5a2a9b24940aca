"""The direct path from a point of an LM to its logits: the logit lens of a direction."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.language import sites
from sae.language.lm import LanguageModel
from sae.language.pieces import num_tokens
from sae.types import Point


@torch.no_grad()
def direct_logits(
    lm: LanguageModel, directions: Float[Tensor, "n d"], point: Point
) -> Float[Tensor, "n vocab"]:
    r"""Change of the logits by the direct path alone when a direction is added at a point.

    $W_U (\gamma \odot d)$: blocks above are skipped, the gain $\gamma$ of the final norm is
    applied, its division by the length of the residual stream is not. Differences between tokens
    mean something, the size does not. At sites inside a block the direction first goes through the
    projection back to the residual stream. Source: logit lens, as in SAEDashboard and Neuronpedia,
    which leave the gain out unless it is folded in.

    Args:
        lm: The LM.
        directions: A row each, as wide as activations at the point.
        point: Point where they are added; `has_direct_path` says whether there is one.

    Returns:
        A logit for each id that stands for a token; an LM may have more.
    """
    stream = directions.to(lm.device, lm.dtype)
    if point.site in ("mlp", "attn_z"):
        module = sites.module_at(lm.model, point)
        zero = torch.zeros_like(stream[:1])
        stream = (module(stream) - module(zero)) * sites.factor_of(lm.model)
    unembedding: Any = lm.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    weight = unembedding.weight[: num_tokens(lm.tokenizer)]
    return (_normed(lm, stream) @ weight.T).float()


def has_direct_path(lm: LanguageModel, point: Point) -> bool:
    """True if a direction there is one of the residual stream, or becomes one linearly.

    Inputs of MLPs are none, and neither are hidden neurons and heads where a norm stands between
    their projection and the stream (Gemma 2 and 3, OLMo 2, GLM 4, EXAONE 4).
    """
    modules = lm.family.modules
    out = {"mlp": "mlp_out", "attn_z": "attn_out"}.get(point.site)
    return point.site != "mlp_in" and (out is None or modules[out] == modules[point.site])


def _normed(lm: LanguageModel, stream: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The final norm without its division: the gain, after centring where the norm centres.

    Norms differ in classes, and in what they add to a weight; what they do to ones does not lie.
    """
    norm: Any = lm.model.get_submodule(lm.family.final_norm)
    ones = torch.ones_like(stream[:1])
    alternating = ones.clone()
    alternating[:, ::2] = -1  # of mean 0 and mean square 1, so that all norms leave its size
    bias = norm(torch.zeros_like(ones))
    gain = (norm(alternating) - bias) * alternating
    if torch.allclose(norm(ones), bias, atol=1e-3):
        stream = stream - stream.mean(-1, keepdim=True)
    return stream * gain
