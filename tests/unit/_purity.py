"""Firings on a labelled text, and information counted slowly, for tests of purity."""

import math
from collections import Counter

import numpy as np

from sae.features.firings import Firings
from sae.features.purity import purities


def firings(text, fires, value=None):
    row = np.flatnonzero(fires & text.counted)
    value = np.ones(len(row)) if value is None else value[row]
    return Firings(row, value.astype(np.float32))


def one(text, fires, value=None):
    return purities(text, [("7", firings(text, fires, value))])


def slow_information(fires, label, token):
    """I(fires; label | token) in bits, term by term."""
    total, n = 0.0, len(fires)
    joint = Counter(zip(token, fires, label, strict=True))
    by_token, by_fired, by_label = Counter(token), Counter(), Counter()
    for (t, f, y), count in joint.items():
        by_fired[t, f] += count
        by_label[t, y] += count
    for (t, f, y), count in joint.items():
        expected = by_fired[t, f] * by_label[t, y] / by_token[t]
        total += count / n * math.log2(count / expected)
    return total
