"""Log ratios of two policies with a defined value and gradient for every pair of log-probabilities.

Two kinds of term are made of logp - behavior_logp, and they need different gradients far away:

  importance ratios   `log_ratio`, `importance_ratio`: clamped to +-20 nats, no gradient beyond.
                      A weight of exp(20) carries no information.
  penalties           `penalty_log_ratio`: the value is clamped to +-20 nats, the gradient is not.
                      The gradient of a KL term must not vanish far from the reference.

Use `log_ratio` in a new surrogate and `penalty_log_ratio` in a new penalty.

`truncated_importance_weights` and `normalized_weights` correct for a sampler that computes in another
precision or at other weights than the trainer: stopped weights that multiply the policy's loss, never
its KL penalty. Where the surrogate's own ratio is already taken against the sampler, do not multiply a
second time. Masks for the same purpose are `selection.rejection_mask` and
`selection.off_policy_sequence_mask`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.masking import masked_mean, sequence_sum

__all__ = [
    "LIMIT",
    "bounded",
    "finite",
    "importance_ratio",
    "impossible",
    "log_ratio",
    "normalized_weights",
    "penalty_log_ratio",
    "truncated_importance_weights",
]


LIMIT = 20.0
"""Largest log ratio, in nats: exp(20) = 4.9e8 still squares and sums in float32."""


def log_ratio(logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """The log of an importance ratio, clamped without gradient beyond the clamp.

        x = clip(logp - behavior_logp, -20, 20), computed in float32 or wider

    For surrogates. A penalty needs `penalty_log_ratio`. Minus infinity means that a policy never
    makes the token:

    | logp   | behavior_logp | log ratio | gradient |
    |--------|---------------|-----------|----------|
    | finite | finite        | clipped   | 1 within +-20, else 0 |
    | -inf   | finite        | -20 (`importance_ratio` is exactly 0) | 0 |
    | finite | -inf          | +20       | 0        |
    | -inf   | -inf          | 0         | 0        |

    Args:
      logp: log-probabilities under the current policy, in nats, any shape; the only argument
        that a gradient flows through.
      behavior_logp: log-probabilities under the policy that sampled (or any other to compare
        with), broadcastable to `logp`; stopped.

    Returns:
      Log ratios in [-20, 20], same shape, float32 or wider.
    """
    difference, edge, live = _parts(logp, behavior_logp)
    inside = jnp.abs(jax.lax.stop_gradient(difference)) <= LIMIT
    # jnp.clip would pass half of the gradient exactly at the limit.
    clipped = jnp.where(inside, difference, jax.lax.stop_gradient(jnp.sign(difference)) * LIMIT)
    return jnp.where(live, clipped, edge)


def penalty_log_ratio(
    logp: Float[Array, "..."], reference_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The log ratio of a penalty: its value is clamped, and its gradient is always 1.

        value     clip(logp - reference_logp, -20, 20), computed in float32 or wider
        gradient  that of logp, also beyond +-20 nats

    A penalty f of this log ratio x is bounded, and beyond 20 nats it keeps the slope f'(+-20) that
    it has there, as Huber's loss does. With `log_ratio` its gradient would be 0 as soon as the
    policy is 20 nats away, for a sum over 400 tokens after 0.05 nats of drift a token.

    Args:
      logp: log-probabilities under the current policy, in nats, any shape; the only argument
        that a gradient flows through.
      reference_logp: log-probabilities under the policy to stay near, broadcastable to `logp`;
        stopped.

    Returns:
      Log ratios in [-20, 20], same shape, float32 or wider. Where a log-probability is minus
      infinity they are those of `log_ratio`, without gradient.
    """
    difference, edge, live = _parts(logp, reference_logp)
    return jnp.where(live, bounded(difference), edge)


def bounded(
    x: Float[Array, "..."],
    *,
    low: Float[Array, ""] | float = -LIMIT,
    high: Float[Array, ""] | float = LIMIT,
) -> Float[Array, "..."]:
    """Clips the value and keeps the gradient: clip(x, low, high) with derivative 1 everywhere.

    For a penalty or a margin inside an exponential: the value must not overflow, and the gradient
    must not vanish. `jnp.clip` has derivative 0 outside of the interval.

    Args:
      x: numbers, any shape; infinite ones have no gradient.
      low: smallest value.
      high: largest value.

    Returns:
      Numbers in [low, high], same shape, float32 or wider.
    """
    x = accumulate(x)
    safe = jnp.where(jnp.isinf(x), 0.0, x)  # inf - inf is NaN
    # safe - stop(safe) is exactly 0; x + stop(clip(x) - x) would lose digits of a large x.
    return jax.lax.stop_gradient(jnp.clip(x, low, high)) + (safe - jax.lax.stop_gradient(safe))


def finite(ratios: Float[Array, "..."]) -> Float[Array, "..."]:
    """Makes ready-made log ratios finite: infinite ones become +-20 and undefined ones 0.

    Finite log ratios stay as they are, however large: the margin of `losses.dpo` is free.

    Args:
      ratios: differences of log-probabilities, or log-probabilities, in nats, any shape.

    Returns:
      Finite numbers, same shape, float32 or wider; no gradient where one was replaced.
    """
    return jnp.nan_to_num(accumulate(ratios), nan=0.0, posinf=LIMIT, neginf=-LIMIT)


def impossible(logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Tells where the importance ratio is exactly 0: only the current policy excludes the sample.

    Args:
      logp: log-probabilities under the current policy, in nats, any shape.
      behavior_logp: log-probabilities under the sampling policy, broadcastable to `logp`.

    Returns:
      True where `logp` is minus infinity and `behavior_logp` is not, same shape.
    """
    return (jnp.asarray(logp) == -jnp.inf) & (jnp.asarray(behavior_logp) != -jnp.inf)


def importance_ratio(
    logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes exp(`log_ratio`), exactly 0 where the current policy excludes the sample.

    Args:
      logp: log-probabilities under the current policy, in nats, any shape.
      behavior_logp: log-probabilities under the sampling policy, broadcastable to `logp`;
        stopped.

    Returns:
      Ratios in {0} and [exp(-20), exp(20)], same shape, float32 or wider.
    """
    return jnp.where(impossible(logp, behavior_logp), 0.0, jnp.exp(log_ratio(logp, behavior_logp)))


def _parts(logp, behavior_logp):
    """The difference where both are finite (else 0), its value elsewhere, and where they are."""
    current = accumulate(logp)
    behavior = accumulate(jax.lax.stop_gradient(behavior_logp))
    live = (current != -jnp.inf) & (behavior != -jnp.inf)
    # Both operands are replaced before the subtraction: -inf - -inf is NaN, and a NaN that a later
    # `where` hides still stops a run under jax_debug_nans.
    difference = jnp.where(live, current, 0.0) - jnp.where(live, behavior, 0.0)
    edge = LIMIT * ((behavior == -jnp.inf).astype(difference.dtype) - (current == -jnp.inf))
    return difference, edge, live


def truncated_importance_weights(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    level: str = "token",
    mode: str = "truncate",
    floor: float = 0.0,
    cap: float = 2.0,
) -> Float[Array, "B T"]:
    """Importance weights of trainer over sampler, bounded.

        level "token":     w[b, t] = exp(logp - behavior_logp)
        level "sequence":  w[b, t] = exp(sum over valid tokens of (logp - behavior_logp))
        mode "truncate":   clip(w, floor, cap)                (TIS)
        mode "mask":       w where floor <= w <= cap, else 0  (IcePop, MIS)

    Args:
      logp: log-probabilities under the trainer's policy at sampling time, in nats, [B, T].
      behavior_logp: what the sampler reported for the same tokens, [B, T].
      mask: 1 where a token counts, [B, T].
      level: "token" or "sequence".
      mode: "truncate" or "mask".
      floor: smallest weight, in [0, cap].
      cap: largest weight, non-negative.

    Returns:
      Weights [B, T], stopped, float32 or wider; 0 where masked. The sum of a sequence is clamped
      to +-20 nats.

    Raises:
      ValueError: shapes that differ; unknown level or mode; cap below 0; floor outside [0, cap].

    References:
      Yao et al., Your efficient RL framework secretly brings you off-policy RL training, 2025.
      Ling Team, Every step evolves (IcePop), 2025 (arXiv:2510.18855).
    """
    _checks.choice("level", level, ("token", "sequence"))
    _checks.choice("mode", mode, ("truncate", "mask"))
    in_range("cap", cap, low=0.0)
    in_range("floor", floor, low=0.0, high=cap, high_name="cap")
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    logp, behavior_logp = jax.lax.stop_gradient((logp, behavior_logp))
    valid = jnp.asarray(mask) != 0
    if level == "token":
        ratio = importance_ratio(logp, behavior_logp)
    else:
        total = sequence_sum(log_ratio(logp, behavior_logp), valid)
        excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
        ratio = jnp.where(excluded, 0.0, importance_ratio(total, jnp.zeros_like(total)))[:, None]
    if mode == "truncate":
        weights = jnp.clip(ratio, floor, cap)
    else:
        weights = jnp.where((ratio >= floor) & (ratio <= cap), ratio, 0.0)
    return jnp.where(valid, weights, 0.0)


def normalized_weights(
    weights: Float[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Scales importance weights to a mean of 1 over the whole batch.

        w / mean over valid entries of w

    Self-normalisation trades a bias that vanishes with the batch for a smaller variance, and
    keeps the size of the step when most weights are small.

    Args:
      weights: of tokens [B, T] or sequences [B], non-negative. Call it on the whole batch.
      mask: 1 where an entry counts, same shape.

    Returns:
      Same shape, stopped, float32 or wider; 0 where masked, and everywhere if no weight is
      positive.

    Raises:
      ValueError: if the shapes differ.

    References:
      Kahn and Marshall, Methods of reducing sample size in Monte Carlo computations, 1953.
    """
    weights = accumulate(jax.lax.stop_gradient(weights))
    mean = masked_mean(weights, mask)
    return jnp.where(jnp.asarray(mask) != 0, weights, 0.0) / jnp.where(mean > 0, mean, 1.0)
