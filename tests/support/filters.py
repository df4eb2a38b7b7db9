"""Weights of ranks, written once more in numpy."""

import numpy as np

KINDS = ("none", "best", "best_random", "best_worst")


def by_rank(kind, n):
    """Weights of the ranks, in numpy."""
    best, worst = np.eye(n)[0], np.eye(n)[-1]
    if n == 1 or kind == "best":
        return best
    rest = (1 - best) / (n - 1)
    return {
        "none": np.full(n, 1 / n),
        "best_random": (best + rest) / 2,
        "best_worst": (best + worst) / 2,
    }[kind]
