"""Statistics of results, on the host: numpy in, numpy out."""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

__all__ = ["pass_at_k", "wilson_interval"]


def wilson_interval(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval for the probability behind a count of successes.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p +- z sqrt(p (1 - p) / n) it stays within [0, 1] and has a width at p = 0 and p = 1.

    Args:
      successes: in 0..trials.
      trials: non-negative.
      confidence: coverage, in (0, 1).

    Returns:
      (low, high); (0, 1) without a trial.

    Raises:
      ValueError: successes outside 0..trials; confidence outside (0, 1).

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes is {successes}, expected 0..trials = {trials}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")
    if trials == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / trials
    middle = p + z**2 / (2 * trials)
    half = z * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # At p = 0 and 1 the bound is exact in reals and off by an ulp in floats.
    low = 0.0 if successes == 0 else float((middle - half) / scale)
    high = 1.0 if successes == trials else float((middle + half) / scale)
    return low, high


def pass_at_k(correct: Int[np.ndarray, "Q"], n: int, k: int) -> Float[np.ndarray, "Q"]:
    """Unbiased estimate of the chance that one of k samples is correct, from n samples.

        1 - C(n - c, k) / C(n, k)

    Average it over the questions. Unlike 1 - (1 - c / n)^k it is unbiased.

    Args:
      correct: how many of a question's n samples are correct, [Q], in 0..n.
      n: samples a question.
      k: samples allowed, in 1..n.

    Returns:
      One estimate a question, [Q], float64, in [0, 1].

    Raises:
      ValueError: k outside 1..n; a count outside 0..n.

    References:
      Chen et al., Evaluating large language models trained on code, 2021 (arXiv:2107.03374).
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, expected 1..n = {n}")
    correct = np.asarray(correct)
    if np.any((correct < 0) | (correct > n)):
        raise ValueError(f"correct has values outside 0..n = {n}")
    drawn = np.arange(k)
    wrong = np.maximum(n - correct[..., None] - drawn, 0) / (n - drawn)
    return 1.0 - np.prod(wrong, axis=-1)
