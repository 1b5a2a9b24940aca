"""Bootstrap of a study of steering: features, prompts, texts, and the KL that is chosen."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sae.features.steered import FEATURE
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws
from sae.metrics.crossed import nested_draws

Chosen = Int[np.ndarray, "resamples features"]


class Resamples:
    """Resamples of features, of prompts and of the texts inside a prompt, the same for all arms.

    Every resample chooses the target KL anew, from its own texts of the choosing prompts: another
    seed might have chosen another one. The first resample holds everything once.

    Args:
        studies: By feature, as `study_feature` gives them.
        bootstrap: How many resamples there are, and their seed.
    """

    def __init__(self, studies: Mapping[int, Mapping[str, Any]], bootstrap: Bootstrap) -> None:
        one = next(iter(studies.values()))
        self.level = bootstrap.level
        number, seed = bootstrap.num_resamples, bootstrap.seed
        self._features = draws(len(studies), number, seed) / len(studies)
        self._choosing, self._reporting = (
            _texts(np.shape(of_arm["score"])[1:], number, seed + 1 + i)
            for i, of_arm in enumerate((one["choose"], one["report"][FEATURE]))
        )
        self.at = np.concatenate([self.chosen(study) for study in studies.values()], 1)

    def chosen(self, study: Mapping[str, Any]) -> Chosen:
        """Number of the target with the best score on the choosing prompts in each resample.

        Args:
            study: Of one feature, or of the arms that all share.
        """
        scores = np.asarray(study["choose"]["score"])
        return np.einsum("rdp,tdp->rt", self._choosing, scores).argmax(1)[:, None]

    def means(
        self, values: Float[np.ndarray, "features targets draws prompts"], at: Chosen
    ) -> Float[np.ndarray, " resamples"]:
        """Mean over features, prompts and draws in each resample.

        Args:
            values: On the reporting prompts.
            at: Number of the target that counts.
        """
        of_target = np.einsum("rdp,ftdp->rft", self._reporting, values)
        of_feature = np.take_along_axis(of_target, at[..., None], 2)[..., 0]
        return (self._features * of_feature).sum(1)

    def means_of_known(
        self, values: Float[np.ndarray, "features draws prompts"]
    ) -> Float[np.ndarray, " resamples"]:
        """Mean of the values that are not NaN in each resample; NaN where there is none.

        Args:
            values: On the reporting prompts, at the target that each feature chose.
        """
        known = ~np.isnan(values)
        total, count = (
            np.einsum("rf,rdp,fdp->r", self._features, self._reporting, of, optimize=True)
            for of in (np.nan_to_num(values), known.astype(float))
        )
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _texts(
    shape: tuple[int, ...], number: int, seed: int
) -> Float[np.ndarray, "resamples draws prompts"]:
    num_draws, prompts = shape
    weights = nested_draws(prompts, num_draws, number, seed) / (prompts * num_draws)
    return weights.transpose(0, 2, 1)
