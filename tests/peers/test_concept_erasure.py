"""Our LEACE against the authors' package on the same rows."""

import pytest
import torch

from sae.probing import erasers

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("classes", [2, 4])
def test_leace_is_that_of_concept_erasure(classes):
    from concept_erasure import LeaceEraser

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, dtype=torch.float64, generator=generator)
    x = x @ torch.randn(12, 12, dtype=torch.float64, generator=generator) + 3
    z = torch.randint(0, classes, (2000,), generator=generator)
    x += torch.randn(classes, 12, dtype=torch.float64, generator=generator)[z]
    labels = torch.nn.functional.one_hot(z).double()
    # its default shrinks the covariance, which is not the closed form
    theirs = LeaceEraser.fit(x, labels, shrinkage=False, constrain_cov_trace=False)
    assert (erasers.leace(erasers.moments(x, z))(x) - theirs(x)).abs().max() < 1e-8


def test_projection_of_means_is_its_orthogonal_eraser():
    from concept_erasure import LeaceEraser

    x = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    z = torch.arange(500) % 2
    x[:, 0] += z
    moments = erasers.moments(x, z)
    for affine, ours in ((True, erasers.mean_affine), (False, erasers.mean_projection)):
        theirs = LeaceEraser.fit(x, z, method="orth", affine=affine, shrinkage=False)
        assert (ours(moments)(x) - theirs(x)).abs().max() < 1e-8
