"""Bootstrap of texts: features, prompts, and the texts inside a prompt."""

import numpy as np
from jaxtyping import Float

from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws
from sae.metrics.crossed import nested_draws


class Resamples:
    """Resamples of features, of prompts and of the texts inside a prompt.

    Arms of one shape get the same resamples, so their differences are paired. The first resample
    holds everything once.

    Args:
        shape: Numbers of features, draws and prompts.
        bootstrap: Number of resamples, and their seed.
    """

    def __init__(self, shape: tuple[int, ...], bootstrap: Bootstrap) -> None:
        features, num_draws, prompts = shape
        number, seed = bootstrap.num_resamples, bootstrap.seed
        self._features = draws(features, number, seed)
        self._texts = nested_draws(prompts, num_draws, number, seed + 1)

    def means(
        self, values: Float[np.ndarray, "features draws prompts"]
    ) -> Float[np.ndarray, " resamples"]:
        """Mean of the values that are not NaN in each resample; NaN where there is none.

        Args:
            values: A value for each text.
        """
        known = ~np.isnan(values)
        total, count = (
            np.einsum("rf,rpd,fdp->r", self._features, self._texts, one, optimize=True)
            for one in (np.nan_to_num(values), known.astype(float))
        )
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
