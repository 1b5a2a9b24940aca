"""AuxK: a loss by which dead latents learn what the live ones miss (arXiv 2406.04093, A.2)."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.dictionaries.products import selected_code
from sae.dictionaries.step import Encoding
from sae.dictionaries.untied import Untied
from sae.kernels import select_topk


def auxk_loss(
    dictionary: Untied, found: Encoding, dead: Bool[Tensor, " d_sae"]
) -> Float[Tensor, ""]:
    r"""Mean of $(e - \hat e)^2$, with e what is missed and ê its fit by dead latents.

    The d_in / 2 largest pre-activations of the dead latents (all of them, if there are fewer), as
    far as they are positive, reconstruct e = target - x_hat by their atoms, without b_dec. e is a
    constant: no gradient reaches the latents that are alive. Only dead rows are multiplied, so the
    cost is that of the dead share.

    The paper's code gives it the weight 1/32 after dividing it by the mean of e^2. Undivided, as in
    sae-lens, ranks of DDP add up; the default weight is 1.
    """
    latents = dead.nonzero().flatten()
    if len(latents) == 0:  # 0, not nothing: Lightning would log the last value that there was
        return found.x_hat.new_zeros(())
    error = (found.target - found.x_hat).detach()
    centred, rows, _ = dictionary.encoder_terms(found.x)
    k = min(len(latents), max(1, dictionary.d_in // 2))
    code = selected_code(
        centred, rows[latents], dictionary.b_enc[latents], dictionary.kernels,
        select=lambda pre: select_topk(pre, k),
    )  # fmt: skip
    fit = code.atoms_sum(dictionary.W_dec[latents]).to(error.dtype)
    return mse_loss(fit, error)
