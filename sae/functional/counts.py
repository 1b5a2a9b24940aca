"""Purity of firings: entropies and information of counts, in bits.

Arrays of counts have what was counted (tokens, labels, groups of rows) on their first axis and
anything on the others, such as deciles or latents.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped


def entropy(counts: Int[np.ndarray, "kinds ..."]) -> Float[np.ndarray, "..."]:
    r"""$-\sum_i p_i \log_2 p_i$ of counted shares; NaN where nothing was counted.

    The plug-in estimate: too small where few rows were counted, so compare equal numbers of rows.

    Example:
        >>> entropy(np.array([[2, 4], [2, 0]])).tolist()
        [1.0, 0.0]
    """
    return entropy_of_sums(np.asarray(counts.sum(0)), np.asarray(_n_log_n(counts).sum(0)))


def entropy_of_sums(
    total: Shaped[np.ndarray, "..."], n_log_n: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    r"""The entropy of counts n from their sum N: $\log_2 N - \sum n \log_2 n / N$.

    Args:
        total: Sum of the counts.
        n_log_n: Sum of n log2 n.
    """
    some = np.maximum(total, 1)
    return np.where(total > 0, np.maximum(np.log2(some) - n_log_n / some, 0), np.nan)


def purity(
    largest: Int[np.ndarray, "..."], total: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Share of the most frequent kind; NaN where nothing was counted.

    Args:
        largest: Its count.
        total: Sum of the counts.

    Example:
        >>> purity(np.array([3, 0]), np.array([4, 0])).tolist()
        [0.75, nan]
    """
    return np.where(total > 0, largest / np.maximum(total, 1), np.nan)


def label_similarity(
    first: Int[np.ndarray, "kinds ..."], second: Int[np.ndarray, "kinds ..."]
) -> Float[np.ndarray, "..."]:
    r"""$1 - JS$ of two counted distributions, base 2: 1 where equal, 0 where they share nothing.

    NaN where either is empty.

    Source: Lin 1991, Jensen-Shannon divergence with equal weights.

    Example:
        >>> label_similarity(np.array([2, 2, 0]), np.array([0, 0, 5])).item()
        0.0
        >>> label_similarity(np.array([1, 2]), np.array([2, 4])).item()
        1.0
    """
    one, other = (counts / np.maximum(counts.sum(0), 1) for counts in (first, second))
    divergence = _entropy((one + other) / 2) - (_entropy(one) + _entropy(other)) / 2
    both = (first.sum(0) > 0) & (second.sum(0) > 0)
    return np.where(both, 1 - np.clip(divergence, 0, 1), np.nan)


def firing_bits(
    fired: Int[np.ndarray, "groups ..."], total: Int[np.ndarray, "groups ..."]
) -> Float[np.ndarray, "..."]:
    r"""Bits that say on which rows a latent fires, once the group of each row is known.

    $\sum_g n_g H(k_g / n_g)$ with k of the n rows of a group firing. Divided by the number of
    rows it is H(fires | group). Groups in which it never fires add nothing, and may be left out.

    The information of labels about firing beyond the tokens is the difference of two of these:
    $N \cdot I(fires; label | token)$ = bits given the token - bits given token and label.

    Args:
        fired: Rows of each group on which it fires.
        total: Rows of each group.

    Example:
        >>> firing_bits(np.array([1, 4]), np.array([2, 4])).item()
        2.0
    """
    bits = _n_log_n(total) - _n_log_n(fired) - _n_log_n(total - fired)
    return np.asarray(bits.sum(0))


def _entropy(shares: np.ndarray) -> np.ndarray:
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logarithms).sum(0))


def _n_log_n(counts: np.ndarray) -> np.ndarray:
    return counts * np.log2(np.maximum(counts, 1))
