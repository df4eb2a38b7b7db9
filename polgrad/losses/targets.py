"""Targets for `losses.f_dpg`: what to aim at, its normaliser, and the running baseline.

A target is given by a log score, log P(x) = log of an unnormalised density on whole sequences;
`f_dpg` wants log P(x) - log Z. The path of one batch, per context:

    log_score = tilt(reference_logp, rewards, beta=0.1)              # [C, G]
    partition = update_partition(partition, log_score, behavior_logp)  # first update ...
    log_target = normalize(log_score, partition)                     # ... then use
    reward = f_dpg_pseudo_reward(logp, log_target, divergence=divergence)
    loss = f_dpg(..., baseline=baseline_value(baseline))             # the value from before
    baseline = update_baseline(baseline, reward)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "Baseline",
    "Partition",
    "baseline_value",
    "filtered",
    "fit_tilt",
    "init_baseline",
    "init_partition",
    "moment_tilt",
    "normalize",
    "tilt",
    "update_baseline",
    "update_partition",
]


def tilt(
    reference_logp: Float[Array, "..."], rewards: Float[Array, "..."], *, beta: float
) -> Float[Array, "..."]:
    """Log score of the optimum of E[reward] - beta KL(policy || reference).

    log P(x) = log reference(x) + reward(x) / beta. With `reverse_kl` f-DPG is then exactly
    KL-regularised policy gradient: E[reward] - beta KL(policy || reference) = beta log Z -
    beta KL(policy || target).

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      rewards: rewards of the sequences.
      beta: strength of the KL, > 0.

    Returns:
      Log scores, same shape.

    Raises:
      ValueError: if `beta` is not positive.
    """
    in_range("beta", beta, low=0.0, above=True)
    return accumulate(reference_logp) + accumulate(rewards) / beta


def filtered(reference_logp: Float[Array, "..."], keep: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Log score of the reference conditioned on a constraint.

    log P(x) = log reference(x) where the constraint holds, minus infinity elsewhere; Z is the
    rate at which the reference meets it.

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      keep: whether the constraint holds.

    Returns:
      Log scores, same shape.
    """
    return jnp.where(jnp.asarray(keep) != 0, accumulate(reference_logp), -jnp.inf)


def moment_tilt(
    reference_logp: Float[Array, "..."],
    features: Float[Array, "... K"],
    coefficients: Float[Array, "K"],
) -> Float[Array, "..."]:
    """Log score of the distribution closest to the reference with given feature moments.

    log P(x) = log reference(x) + coefficients . features(x).

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      features: K features of each sequence.
      coefficients: from `fit_tilt`.

    Returns:
      Log scores, same shape as `reference_logp`.
    """
    return accumulate(reference_logp) + accumulate(features) @ accumulate(coefficients)


def fit_tilt(
    features: Float[Array, "N K"],
    moments: Float[Array, "K"],
    *,
    learning_rate: float = 0.05,
    iterations: int = 1000,
    tolerance: float = 1e-5,
) -> Float[Array, "K"]:
    """Coefficients for which the tilted reference has the wanted feature moments.

    Gradient descent on self-normalised importance estimates: with w_j = exp(c . phi_j) over
    samples of the reference, m = sum w phi / sum w, repeat c <- c - learning_rate (m - moments).

    Args:
      features: features of N samples of the reference (512 in the paper).
      moments: wanted expectations, inside the convex hull of the features.
      learning_rate: step.
      iterations: largest number of steps.
      tolerance: stops when max |m - moments| is below it.

    Returns:
      Coefficients, [K]. Wanted moments out of reach give large finite coefficients.

    References:
      Khalifa et al., A Distributional Approach to Controlled Text Generation, 2020
      (arXiv:2012.11635). Go et al., 2023 (arXiv:2302.08215).
    """

    features, moments = accumulate(features), accumulate(moments)

    def error(coefficients):
        return jax.nn.softmax(features @ coefficients) @ features - moments

    def unfinished(carry):
        step, _, gap = carry
        return (step < iterations) & (jnp.max(jnp.abs(gap)) >= tolerance)

    def descend(carry):
        step, coefficients, gap = carry
        coefficients = coefficients - learning_rate * gap
        return step + 1, coefficients, error(coefficients)

    start = jnp.zeros(features.shape[-1], features.dtype)
    return jax.lax.while_loop(unfinished, descend, (0, start, error(start)))[1]


class Partition(NamedTuple):
    """Running estimate of a partition function; leading axes are contexts.

    Attributes:
      log_mean: log of the mean of P(x) / behavior(x) over all samples so far; -inf before any.
      count: number of samples so far.
    """

    log_mean: Float[Array, "..."]
    count: Int[Array, "..."]


def init_partition(shape: tuple[int, ...] = ()) -> Partition:
    """The state before any sample: Z = 0 from 0 samples.

    Args:
      shape: of the contexts, () for one target without context.

    Returns:
      The state.
    """
    return Partition(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))


def update_partition(
    partition: Partition,
    log_score: Float[Array, "... G"],
    behavior_logp: Float[Array, "... G"],
    *,
    valid: Bool[Array, "... G"] | None = None,
) -> Partition:
    """Adds samples to the running mean of P / behavior, whose expectation is Z.

    Update with the current batch first, then use the result for it. The mean is kept as a
    logarithm: P / behavior overflows float32 for reward / beta above 88.

    Args:
      partition: the state, one entry a context.
      log_score: log P of the samples; minus infinity where the target excludes one.
      behavior_logp: log-probabilities under the policy that drew them, at that time.
      valid: which samples count; all by default.

    Returns:
      The new state. Without a valid sample it is the old one. A score that is NaN and a sample
      that its own policy excludes are not valid.
    """
    log_score, behavior_logp = accumulate(log_score), accumulate(behavior_logp)
    valid = jnp.ones(log_score.shape, bool) if valid is None else jnp.asarray(valid) != 0
    valid &= ~jnp.isnan(log_score) & ~jnp.isneginf(behavior_logp)
    log_weights = jnp.where(jnp.isneginf(log_score) | ~valid, -jnp.inf, log_score - behavior_logp)
    count = partition.count + jnp.sum(valid, axis=-1, dtype=partition.count.dtype)
    old = partition.log_mean + jnp.log(partition.count)
    total = jnp.logaddexp(old, jax.nn.logsumexp(log_weights, axis=-1))
    log_mean = jnp.where(count > 0, total - jnp.log(jnp.maximum(count, 1)), -jnp.inf)
    return jax.lax.stop_gradient(Partition(log_mean.astype(partition.log_mean.dtype), count))


def normalize(log_score: Float[Array, "... G"], partition: Partition) -> Float[Array, "... G"]:
    """log P - log Z: the `log_target` that `f_dpg` wants.

    Args:
      log_score: log P of the samples.
      partition: the state, already updated with these samples.

    Returns:
      Normalised log-probabilities, same shape; plus infinity throughout a context whose Z is
      still 0, which `f_dpg` skips.
    """
    log_score, log_mean = accumulate(log_score), partition.log_mean[..., None]
    known = ~jnp.isneginf(log_mean)
    return jnp.where(known, log_score - jnp.where(known, log_mean, 0.0), jnp.inf)


class Baseline(NamedTuple):
    """Mean of the last W pseudo-rewards, kept as a ring buffer.

    Attributes:
      values: the last W pseudo-rewards, in no particular order.
      count: number of pseudo-rewards so far.
    """

    values: Float[Array, "W"]
    count: Int[Array, ""]


def init_baseline(window: int = 1024) -> Baseline:
    """The state before any pseudo-reward.

    Args:
      window: W, how many pseudo-rewards the mean covers, >= 1.

    Returns:
      The state, whose value is 0.

    Raises:
      ValueError: if `window` is not positive.
    """
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1")
    return Baseline(jnp.zeros(window), jnp.zeros((), jnp.int32))


def baseline_value(baseline: Baseline) -> Float[Array, ""]:
    """The mean of the window, 0 before any pseudo-reward.

    Use it before `update_baseline` with the current batch: a baseline that has seen the samples
    it is subtracted from biases the gradient.

    Args:
      baseline: the state.

    Returns:
      The baseline, a scalar.
    """
    filled = jnp.minimum(baseline.count, baseline.values.shape[0])
    return jnp.sum(baseline.values) / jnp.maximum(filled, 1)


def update_baseline(baseline: Baseline, rewards: Float[Array, "B"]) -> Baseline:
    """Adds the pseudo-rewards of a batch, not importance weighted, and forgets the oldest.

    Args:
      baseline: the state.
      rewards: pseudo-rewards of the batch, any shape.

    Returns:
      The new state; a pseudo-reward that is not finite counts as the old mean.
    """
    window = baseline.values.shape[0]
    rewards = jnp.ravel(accumulate(rewards))
    rewards = jnp.where(jnp.isfinite(rewards), rewards, baseline_value(baseline))
    recent = rewards[-window:].astype(baseline.values.dtype)
    # Of a batch longer than the window only the last W survive, at the places they would have.
    start = baseline.count + rewards.size - recent.size
    places = (start + jnp.arange(recent.size)) % window
    values = baseline.values.at[places].set(recent)
    return jax.lax.stop_gradient(Baseline(values, baseline.count + rewards.size))
