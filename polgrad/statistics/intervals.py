"""Statistics of results, on the host: numpy in, numpy out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtrit

__all__ = [
    "Comparison",
    "MainEffect",
    "PowerLaw",
    "bootstrap_interval",
    "compare",
    "fit_power_law",
    "interquartile_mean",
    "main_effects",
    "pass_at_k",
    "probability_of_improvement",
    "seeds_needed",
    "wilson_interval",
]


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


def interquartile_mean(values: Float[np.ndarray, "S *K"]) -> float:
    """Mean of the middle half: floor(n / 4) of the n values are cut at each end.

    Less moved by one odd seed than the mean, less noisy than the median.

    Args:
      values: one a seed, [S], or one a seed and task, [S, K] (all n = S K taken together).

    Returns:
      The mean of what is left.

    Raises:
      ValueError: without a value.

    References:
      Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, 2021
        (arXiv:2108.13264).
    """
    ordered = np.sort(_samples("values", values), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_interval(
    values: Float[np.ndarray, "S *K"],
    *,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over seeds, by the stratified bootstrap.

    Seeds are drawn anew with replacement, for every task by itself, and the interval spans the
    middle of what the statistic then is. With few seeds (about 5) it is too narrow: it covers
    less than its nominal confidence.

    Args:
      values: one a seed, [S], or one a seed and task, [S, K]; tasks are the strata.
      statistic: from an array of that shape to a number.
      confidence: in (0, 1).
      resamples: draws, at least 1.
      seed: of the draws; equal input gives an equal interval.

    Returns:
      (low, high); (-inf, inf) for a single seed, which says nothing of the spread.

    Raises:
      ValueError: without a value; confidence outside (0, 1).

    References:
      Agarwal et al., 2021 (arXiv:2108.13264), section 4.1.
    """
    values = _samples("values", values)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")
    seeds = values.shape[0]
    if seeds == 1:
        return -np.inf, np.inf
    picks = np.random.default_rng(seed).integers(seeds, size=(resamples, *values.shape))
    drawn = np.array([statistic(np.take_along_axis(values, pick, axis=0)) for pick in picks])
    low, high = np.quantile(drawn, (0.5 - confidence / 2, 0.5 + confidence / 2))
    return float(low), float(high)


def probability_of_improvement(
    ours: Float[np.ndarray, " S"], theirs: Float[np.ndarray, " R"]
) -> float:
    """The chance that a run of ours is above a run of theirs, ties counted half.

        sum_ij (1[x_i > y_j] + 1[x_i = y_j] / 2) / (S R):  Mann and Whitney's U over S R

    Args:
      ours: one number a seed.
      theirs: one number a seed.

    Returns:
      In [0, 1]; 1/2 for equal distributions.

    Raises:
      ValueError: if one of them has no value.

    References:
      Agarwal et al., 2021 (arXiv:2108.13264), section 4.2.
    """
    ours, theirs = _samples("ours", ours).ravel(), _samples("theirs", theirs).ravel()
    above = ours[:, None] > theirs
    return float(np.mean(above + 0.5 * (ours[:, None] == theirs)))


def seeds_needed(
    differences: Float[np.ndarray, " S"], *, confidence: float = 0.95, limit: int = 10_000
) -> int | None:
    """How many further seeds would tell a mean difference from 0, were it as it looks now.

    The smallest n >= S with |mean| > t sd / sqrt(n), t the quantile of Student's distribution
    with n - 1 degrees of freedom; mean and standard deviation (divisor S - 1) are those of the
    seeds there are.

    Args:
      differences: paired differences, one a seed.
      confidence: of the two-sided interval, in (0, 1).
      limit: the most to look for.

    Returns:
      n - S, 0 when the seeds suffice; None where more than `limit` would be needed or a single
      seed tells no spread.

    Raises:
      ValueError: without a value; confidence outside (0, 1).
    """
    differences = _samples("differences", differences).ravel()
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")
    have = differences.size
    if have < 2:
        return None
    totals = np.arange(have, have + limit + 1)
    spread = differences.std(ddof=1) * stdtrit(totals - 1, 0.5 + confidence / 2) / np.sqrt(totals)
    enough = np.flatnonzero(abs(differences.mean()) > spread)
    return int(enough[0]) if enough.size else None


class Comparison(NamedTuple):
    """Two arms at common seeds.

    Attributes:
      difference: interquartile mean of the paired differences, ours less theirs.
      low: lower end of its 95% bootstrap interval.
      high: upper end.
      probability_of_improvement: that a run of ours is above one of theirs.
      seeds_needed: further seeds that would decide the sign; None where that is not in reach.
    """

    difference: float
    low: float
    high: float
    probability_of_improvement: float
    seeds_needed: int | None


def compare(ours: Float[np.ndarray, " S"], theirs: Float[np.ndarray, " S"]) -> Comparison:
    """Compares two arms seed by seed.

    Common random numbers make paired differences less noisy than the arms themselves.

    Args:
      ours: one number a seed.
      theirs: one number a seed, of the same seeds in the same order.

    Returns:
      The comparison; more counts as better.

    Raises:
      ValueError: if the numbers of seeds differ or are 0.
    """
    ours, theirs = _samples("ours", ours), _samples("theirs", theirs)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(
            f"ours has shape {list(ours.shape)} and theirs {list(theirs.shape)}; expected [S] for both"
        )
    differences = ours - theirs
    return Comparison(
        interquartile_mean(differences),
        *bootstrap_interval(differences),
        probability_of_improvement(ours, theirs),
        seeds_needed(differences),
    )


class MainEffect(NamedTuple):
    """What one level of a factor is worth, all other factors averaged over.

    Attributes:
      factor: its name.
      level: index of the level, compared with level 0.
      difference: mean of (this level - level 0) over matching cells and seeds.
      low: lower end of its 95% bootstrap interval over seeds.
      high: upper end.
    """

    factor: str
    level: int
    difference: float
    low: float
    high: float


def main_effects(
    values: Float[np.ndarray, "*L S"], factors: Sequence[str]
) -> tuple[MainEffect, ...]:
    """Main effects of a factorial ablation: every factor's levels against its first one.

    A difference is taken between cells that share all other levels and the seed, then averaged
    over these cells; so a factor that only some arms have (a reward model's width) is not mixed
    with what else sets those arms apart.

    Args:
      values: one result a cell and seed, [L1, L2, ..., S] with an axis for each factor and the
        seeds last; NaN for a cell that does not exist.
      factors: name of each axis but the last.

    Returns:
      One effect for each factor and each of its levels but the first, in order.

    Raises:
      ValueError: another number of names than factors; a level without a cell that matches one
        of level 0 in every seed.

    References:
      Ivison et al., Unpacking DPO and PPO: Disentangling Best Practices for Learning from
      Preference Feedback, 2024 (arXiv:2406.09279).
    """
    values = _samples("values", values)
    if values.ndim != len(factors) + 1:
        raise ValueError(
            f"values has shape {list(values.shape)} for factors {', '.join(factors)}; "
            "expected an axis for each and one for the seeds"
        )
    effects = []
    for axis, factor in enumerate(factors):
        cells = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1, values.shape[-1])
        for level in range(1, len(cells)):
            gaps = cells[level] - cells[0]
            if np.isnan(gaps).all(axis=0).any():
                raise ValueError(f"level {level} of {factor} has no cell that matches level 0")
            gaps = np.nanmean(gaps, axis=0)
            interval = bootstrap_interval(gaps, statistic=np.mean)
            effects.append(MainEffect(factor, level, float(gaps.mean()), *interval))
    return tuple(effects)


class PowerLaw(NamedTuple):
    """y = coefficient x^exponent.

    Attributes:
      coefficient: y at x = 1.
      exponent: slope in logarithms; negative for a loss that falls with scale.
      r_squared: share of the variance of log y that the law explains, at most 1.
    """

    coefficient: float
    exponent: float
    r_squared: float


def fit_power_law(x: Float[np.ndarray, "M"], y: Float[np.ndarray, "M"]) -> PowerLaw:
    """Fits y = coefficient x^exponent by least squares of the logarithms: scaling laws.

    Args:
      x: sizes, compute or numbers of samples, [M], positive.
      y: losses at them, [M], positive. Subtract an irreducible loss first, if it is known.

    Returns:
      `PowerLaw(coefficient, exponent, r_squared)`; r_squared is 1 for a constant y.

    Raises:
      ValueError: shapes other than [M] for both; fewer than two different sizes; numbers that
        are not positive.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
        (arXiv:2507.05197): 0.9 N^-0.0425 for N parameters.
    """
    x, y = _samples("x", x), _samples("y", y)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"x has shape {list(x.shape)} and y {list(y.shape)}; expected [M] for both"
        )
    if not (np.all(x > 0) and np.all(y > 0)) or np.ptp(x) == 0:
        raise ValueError("x and y must be positive, and x have at least two different values")
    log_x, log_y = np.log(x), np.log(y)
    centred = log_x - log_x.mean()
    exponent = centred @ log_y / (centred @ centred)
    intercept = log_y.mean() - exponent * log_x.mean()
    residual = np.sum(np.square(log_y - intercept - exponent * log_x))
    total = np.sum(np.square(log_y - log_y.mean()))
    r_squared = 1.0 - residual / total if total > 0 else 1.0
    return PowerLaw(float(np.exp(intercept)), float(exponent), float(r_squared))


def _samples(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.size == 0 or values.ndim == 0:
        raise ValueError(f"{name} has shape {list(values.shape)}, expected at least one seed, [S]")
    return values
