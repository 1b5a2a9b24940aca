"""Every LM family for tests; most of them only among the slow ones."""

import pytest

from sae.language.sites import FAMILIES

FAST = ("gpt_neox", "gpt2", "llama", "gemma2", "mixtral")
"""The three kinds of the design, norms after each part, experts."""
EVERY = [word if word in FAST else pytest.param(word, marks=pytest.mark.slow) for word in FAMILIES]
