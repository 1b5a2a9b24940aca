"""Everybody who takes part, by key."""

import sys
from contextlib import redirect_stdout

from benchmarks.quality import from_dictionary_learning, from_sae_lens, from_sparsify, ours
from benchmarks.quality.contender import Contender


def contenders() -> dict[str, Contender]:
    """All that can be imported here; ours first."""
    with redirect_stdout(sys.stderr):  # some greet when they are imported
        found = [
            *ours.contenders(), *from_sae_lens.contenders(),
            *from_dictionary_learning.contenders(), *from_sparsify.contenders(),
        ]  # fmt: skip
    return {contender.key: contender for contender in found}


def chosen(patterns: list[str]) -> dict[str, Contender]:
    """The contenders whose key contains one of the patterns; all where there is no pattern."""
    found = {
        key: contender
        for key, contender in contenders().items()
        if any(pattern in key for pattern in patterns)
        or (not patterns and not contender.on_request)
    }
    if not found:
        raise SystemExit(f"No contender matches {patterns}. There are: {', '.join(contenders())}.")
    return found
