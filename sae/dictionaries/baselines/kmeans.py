"""Centroids, by scikit-learn's MiniBatchKMeans."""

import logging
from typing import Any, ClassVar

import torch

from sae.dictionaries.baselines.base import (
    Baseline,
    Learned,
    Vectors,
    check_sample,
    register,
    unit_rows_and_norms,
)
from sae.dictionaries.sae import SAE, SAEConfig
from sae.settings import setting

log = logging.getLogger(__name__)


@register("kmeans")
class KMeans(Baseline):
    r"""Every vector becomes its nearest centroid: one latent fires, L0 is 1.

    With c the centroids less the mean m of the sample: $\arg\min_j \|x - m - c_j\|^2 = \arg\max_j
    \langle x - m, c_j\rangle - \|c_j\|^2 / 2$, which is a linear encoder; the one that wins fires
    with $\|c_j\|$ (activation `nearest`), so that $\hat x$ is the centroid itself.
    """

    costly: ClassVar[bool] = True

    k: None = setting(None, help="one centroid fires; there is no other k")
    dict_ratio: float = setting(8.0, gt=0, help="centroids per coordinate")
    sample_vectors: int = setting(131_072, ge=1, help="training vectors that they are fitted to")
    max_iter: int = setting(100, ge=1, help="most passes over the sample")
    seed: int = setting(0, ge=0, help="seed of the sample and of the start")

    def latents(self, d_in: int) -> int:
        """`dict_ratio` for each coordinate."""
        return max(1, round(self.dict_ratio * d_in))

    def learn(self, x: Vectors) -> Learned:
        """Cluster the sample."""
        from sklearn.cluster import MiniBatchKMeans

        sample = x.sample(self.sample_vectors, self.seed)
        clusters = self.latents(x.d_in)
        check_sample(self.word, len(sample), clusters)
        log.info("k-means: %d centroids of %d vectors", clusters, len(sample))
        options: dict[str, Any] = {"n_init": 1, "max_iter": self.max_iter}
        kmeans = MiniBatchKMeans(clusters, batch_size=4096, random_state=self.seed, **options)
        kmeans.fit(sample.numpy())
        centroids = torch.as_tensor(kmeans.cluster_centers_).double()
        return Learned(
            {"centroids": centroids, "centre": sample.double().mean(dim=0)},
            {"vectors": len(sample), "iterations": int(kmeans.n_iter_)},
        )

    def assemble(self, learned: Learned) -> SAE:
        """The encoder computes distances, the decoder holds the centroids."""
        m = learned.tensors["centre"]
        c = learned.tensors["centroids"] - m
        return SAE(
            W_enc=c.T.float().contiguous(),
            b_enc=(-c.square().sum(dim=1) / 2 - c @ m).float(),
            W_dec=unit_rows_and_norms(c)[0].float(),
            b_dec=m.float(),
            config=SAEConfig(self.word, "nearest", d_in=len(m), d_sae=len(c)),
        )
