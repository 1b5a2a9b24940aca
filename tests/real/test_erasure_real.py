"""The default LM solves both tasks about names, and LEACE takes the answer away from it."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from sae.features.erasing import closed_forms
from sae.features.prompted import Prompted
from sae.metrics.two_way import answers
from sae.tasks.gender import PROMPTED
from sae.tasks.names import single_token_names
from sae.types import Point

pytestmark = pytest.mark.real_lm
POINT = Point("resid", 4)


@pytest.mark.skipif(find_spec("names") is None, reason="the extra `names` is not installed")
@pytest.mark.parametrize("kind", ["gender", "pronoun"])
def test_names(real_lm, kind):
    names = single_token_names(real_lm.tokenizer, 100, test=0.4, seed=0)
    assert [len(side) for side in names] == [120, 80]
    seed = {"seed": 0} if kind == "gender" else {}
    sides = PROMPTED[kind](real_lm.tokenizer, names, train=2, test=1, **seed)
    train, test = (Prompted(real_lm, POINT, None, task) for task in sides)
    labels = torch.tensor([prompt.label for prompt in sides.test.prompts])

    def scores(difference):
        score = torch.where(labels == 1, difference, -difference).double().numpy()
        return answers(score, labels.numpy(), 0.0, np.ones((1, len(labels))))

    assert scores(test.clean().difference)["auc"][0] > 0.95
    fitted = train.clean()
    z = torch.tensor([prompt.label for prompt in sides.train.prompts])[fitted.prompt]
    leace = closed_forms(fitted.x.float(), z)[0].replacement
    assert scores(test.under(leace))["auc"][0] < 0.95
