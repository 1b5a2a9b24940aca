"""The sentence encoder out of its wheel tells topics and words apart."""

import numpy as np
import pytest

from sae.language.encoder import load_encoder

pytestmark = pytest.mark.real_lm


def test_texts_are_nearest_to_what_they_are_about():
    encoder = load_encoder()
    about = ["text about sports", "text about medicine", "numbers and digits"]
    texts = ["the goalkeeper saved a penalty in the final", "the patient was given antibiotics",
             "rose by 14.5 per cent to 2,300", "a long text " * 400]  # fmt: skip
    vectors = encoder.embed(about + texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    cosines = vectors[3:6] @ vectors[:3].T
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    # bfloat16, and padding that differs: nearly the same
    assert (alone * vectors[3:]).sum(1).min() > 0.999
