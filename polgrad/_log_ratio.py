"""Importance ratios that are defined, with defined gradients, for every pair of log-probabilities."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad._dtypes import accumulate

__all__ = ["LIMIT", "finite", "impossible", "importance_ratio", "log_ratio"]

# exp(20) = 4.9e8 still squares and sums in float32; beyond it a ratio carries no information.
LIMIT = 20.0


def log_ratio(logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes logp - behavior_logp, finite everywhere.

        x = clip(logp - behavior_logp, -20, 20), computed in float32 or wider

    A log-probability of minus infinity is an event that the policy excludes:

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
      Log ratios in [-20, 20], float32 or wider.
    """
    current, behavior, live = _live(logp, behavior_logp)
    # Both operands are replaced before the subtraction: -inf - -inf is NaN, and a NaN that a later
    # `where` hides still stops a run under jax_debug_nans.
    difference = jnp.where(live, current, 0.0) - jnp.where(live, behavior, 0.0)
    inside = jnp.abs(jax.lax.stop_gradient(difference)) <= LIMIT
    # jnp.clip would pass half of the gradient exactly at the limit.
    bounded = jnp.where(inside, difference, jax.lax.stop_gradient(jnp.sign(difference)) * LIMIT)
    edge = LIMIT * ((behavior == -jnp.inf).astype(bounded.dtype) - (current == -jnp.inf))
    return jnp.where(live, bounded, edge)


def finite(ratios: Float[Array, "..."]) -> Float[Array, "..."]:
    """Ready-made log ratios: infinite ones become +-20 and undefined ones 0, without gradient."""
    return jnp.nan_to_num(accumulate(ratios), nan=0.0, posinf=LIMIT, neginf=-LIMIT)


def impossible(logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]) -> Bool[Array, "..."]:
    """True where the current policy excludes what the behaviour policy can do: the ratio is 0."""
    return (jnp.asarray(logp) == -jnp.inf) & (jnp.asarray(behavior_logp) != -jnp.inf)


def importance_ratio(
    logp: Float[Array, "..."], behavior_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes exp(`log_ratio`), exactly 0 where the current policy excludes the sample.

    Args:
      logp: log-probabilities under the current policy, in nats, any shape.
      behavior_logp: log-probabilities under the sampling policy, same shape; stopped.

    Returns:
      Ratios in {0} and [exp(-20), exp(20)], same shape, float32 or wider.
    """
    return jnp.where(impossible(logp, behavior_logp), 0.0, jnp.exp(log_ratio(logp, behavior_logp)))


def _live(logp, behavior_logp):
    current = accumulate(logp)
    behavior = accumulate(jax.lax.stop_gradient(behavior_logp))
    live = (current != -jnp.inf) & (behavior != -jnp.inf)
    return current, behavior, live
