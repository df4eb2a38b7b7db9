"""What a policy gains for how far it moves: curves of a score over KL, on the host.

Two ways to tune a policy are compared at equal KL from the reference and by their peaks, with all
settings and checkpoints of a method pooled: a single setting against a tuned one says nothing.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Peak", "area", "at_kl", "best_of_n", "best_of_n_kl", "pareto_front", "peak"]


class Peak(NamedTuple):
    """The best point of a curve: its score, and the KL where it is."""

    kl: float
    score: float


def pareto_front(
    kl: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which points no other point beats: none has a higher score at the same or a smaller KL.

    Args:
      kl: KL from the reference of each point, [n], in nats; all runs of a method pooled.
      scores: win rate or reward of each point, [n].

    Returns:
      True for the points of the front, [n]; of equal points the first. A point that is not
      finite is never one.

    Raises:
      ValueError: shapes that differ; no finite point.
    """
    kl, scores, known = _points(kl, scores)
    front = np.zeros(kl.shape, bool)
    best = -np.inf
    # By KL, and at one KL the highest score first; lexsort is stable.
    for i in np.lexsort((-scores, kl)):
        if known[i] and scores[i] > best:
            front[i], best = True, scores[i]
    return front


def at_kl(
    kl: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], budgets: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """The score that a budget of KL buys: the Pareto front, linear between its points.

    Args:
      kl: KL of each point, [n], in nats.
      scores: score of each point, [n].
      budgets: largest KL allowed, [m].

    Returns:
      Scores, [m], non-decreasing in the budget; NaN below the smallest KL on the front, the
      highest score beyond the largest.

    Raises:
      ValueError: shapes that differ; no finite point.

    References:
      Tang et al., Understanding the performance gap between online and offline alignment
      algorithms, 2024 (arXiv:2405.08448). Gao, Schulman and Hilton, Scaling laws for reward
      model overoptimization, 2022 (arXiv:2210.10760).
    """
    x, y = _front(kl, scores)
    return np.interp(np.asarray(budgets, np.float64), x, y, left=np.nan)


def area(
    kl: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    max_kl: float,
    base: float = 0.5,
) -> float:
    """Mean height of the front between KL 0 and max_kl: one number for a whole curve.

        integral of `at_kl` over 0..max_kl, divided by max_kl

    Args:
      kl: KL of each point, [n], in nats, non-negative.
      scores: score of each point, [n].
      max_kl: end of the range, positive; the same for all methods that are compared.
      base: score of the reference itself, at KL 0: 1/2 for a win rate against it.

    Returns:
      In units of the score; at least `base`.

    Raises:
      ValueError: shapes that differ; no finite point; max_kl not positive.
    """
    if not max_kl > 0.0:
        raise ValueError(f"max_kl is {max_kl}, expected a positive number of nats")
    x, y = _front(np.append(kl, 0.0), np.append(scores, base))
    inside = x < max_kl
    x, y = np.append(x[inside], max_kl), np.append(y[inside], np.interp(max_kl, x, y))
    return float(np.trapezoid(y, x) / max_kl)


def peak(kl: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Peak:
    """The highest score of a curve, and the smallest KL that has it.

    Args:
      kl: KL of each point, [n], in nats.
      scores: score of each point, [n].

    Returns:
      The peak.

    Raises:
      ValueError: shapes that differ; no finite point.
    """
    x, y = _front(kl, scores)
    return Peak(float(x[-1]), float(y[-1]))


def best_of_n(
    scores: Float[np.ndarray, "Q N"], rewards: Float[np.ndarray, "Q N"], n: int
) -> Float[np.ndarray, " Q"]:
    """Expected reward of the best of n samples by another score, from N samples: unbiased.

        sum_i reward_(i) C(i - 1, n - 1) / C(N, n),   samples in ascending order of score

    How well a reward model chooses, without training on it.

    Args:
      scores: of a reward model, which chooses, [Q, N].
      rewards: what the choice is worth, [Q, N]; the same array tells what the model believes.
      n: samples to choose from, in 1..N.

    Returns:
      One expectation a question, [Q]. Samples of equal score share what their places are worth.

    Raises:
      ValueError: shapes that differ; n outside 1..N.

    References:
      Gao, Schulman and Hilton, 2022 (arXiv:2210.10760). Ivison et al., Unpacking DPO and PPO,
      2024 (arXiv:2406.09279).
    """
    scores, rewards = np.asarray(scores, np.float64), np.asarray(rewards, np.float64)
    if scores.ndim != 2 or scores.shape != rewards.shape:
        raise ValueError(
            f"rewards has shape {list(rewards.shape)}, scores {list(scores.shape)}; "
            "expected [Q, N] for both"
        )
    samples = scores.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"n is {n}, expected 1..N = {samples}")
    # cumulative[j]: the chance that all n come from the j lowest samples, C(j, n) / C(N, n).
    lowest, drawn = np.arange(samples + 1), np.arange(n)
    cumulative = np.prod(np.maximum(lowest[:, None] - drawn, 0) / (samples - drawn), axis=1)
    below = np.sum(scores[:, None, :] < scores[:, :, None], axis=-1)
    equal = np.sum(scores[:, None, :] == scores[:, :, None], axis=-1)
    chance = (cumulative[below + equal] - cumulative[below]) / equal
    return np.sum(chance * rewards, axis=1)


def best_of_n_kl(n: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """KL of the best-of-n policy from the one that it samples from: log n - (n - 1) / n.

    Exact where no two samples tie, an upper bound otherwise.

    Args:
      n: samples to choose from, at least 1.

    Returns:
      KL in nats, same shape.

    Raises:
      ValueError: n below 1.

    References:
      Stiennon et al., Learning to summarize from human feedback, 2020 (arXiv:2009.01325). Beirami
      et al., Theoretical guarantees on the best-of-n alignment policy, 2024 (arXiv:2401.01879).
    """
    n = np.asarray(n, np.float64)
    if np.any(n < 1):
        raise ValueError(f"n is {n}, expected at least 1")
    return np.log(n) - (n - 1.0) / n


def _points(kl, scores):
    kl, scores = np.asarray(kl, np.float64), np.asarray(scores, np.float64)
    if kl.ndim != 1 or kl.shape != scores.shape:
        raise ValueError(
            f"scores has shape {list(scores.shape)}, kl {list(kl.shape)}; expected [n] for both"
        )
    known = np.isfinite(kl) & np.isfinite(scores)
    if not known.any():
        raise ValueError(f"none of the {kl.size} points is finite, expected at least one")
    return kl, scores, known


def _front(kl, scores):
    """The points of the front, by KL."""
    kl, scores, _ = _points(kl, scores)
    front = pareto_front(kl, scores)
    order = np.argsort(kl[front])
    return kl[front][order], scores[front][order]
