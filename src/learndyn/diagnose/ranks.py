"""Rank correlation: whether two lists of numbers have one order."""

import numpy as np
from jaxtyping import Float


def spearman(a: Float[np.ndarray, " _"], b: Float[np.ndarray, " _"]) -> float:
    """Spearman's correlation, ties at their mean rank; NaN where all of one are equal.

    -1 to 1; 1 is the same order.
    """
    left, right = (_ranks(values) for values in (a, b))
    left, right = left - left.mean(), right - right.mean()
    size = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / size) if size else float("nan")


def _ranks(values: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place.reshape(-1)]
