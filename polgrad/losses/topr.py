"""Tapered off-policy REINFORCE: importance weights that treat good and bad samples differently."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad.losses.inputs import topr_weights

__all__ = ["baseline_for_fraction", "effective_positive_fraction", "topr", "topr_weights"]


def topr(
    logp: Float[Array, "B"],
    behavior_logp: Float[Array, "B"],
    rewards: Float[Array, "B"],
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "B"]:
    """TOPR: REINFORCE on logged sequences with asymmetrically truncated importance weights.

    loss = -sg[weight] reward logp, weight as in `topr_weights`. By default a good sample keeps
    weight 1 however rare it has become, and the push away from a bad one fades as the policy
    leaves it, so the objective is bounded and needs neither KL nor critic. On-policy it is
    REINFORCE; with positive rewards only it is supervised learning.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens.
      behavior_logp: the same under the policy that drew them, same temperature.
      rewards: rewards, +1 / -1 in the paper; any real numbers, minus a baseline if there is one
        (see `baseline_for_fraction`).
      positive: (low, high) limits of the ratio for positive rewards.
      negative: (low, high) limits of the ratio for negative rewards.

    Returns:
      Losses, [B], to be averaged over sequences. Reward 0 or NaN, an empty sequence (logp = 0)
      or logp = -inf contribute 0.

    Raises:
      ValueError: if shapes differ or a pair of limits is not 0 <= low <= high.

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    weights = topr_weights(logp, behavior_logp, rewards, positive=positive, negative=negative)
    logp, rewards = accumulate(logp), accumulate(rewards)
    known = jnp.isfinite(rewards)
    coefficient = jax.lax.stop_gradient(weights * jnp.where(known, rewards, 0.0))
    return -coefficient * jnp.where(jnp.isneginf(logp), 0.0, logp)


def effective_positive_fraction(
    fraction: Float[Array, "..."] | float, baseline: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Share of positives that a baseline makes a +-1 data set look like.

    Replacing R = +-1 by R - c weighs positives by 1 - c and negatives by 1 + c, as if the share
    p of positives were p (1 - c) / (1 + c (1 - 2 p)).

    Args:
      fraction: p, the share of positive samples, in [0, 1].
      baseline: c, in [-1, 1].

    Returns:
      The effective share, in [0, 1]; p itself where the weights of all samples vanish (c = 1
      without negatives, c = -1 without positives).

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    p, c = accumulate(fraction), accumulate(baseline)
    positive, negative = p * (1.0 - c), (1.0 - p) * (1.0 + c)
    total = positive + negative
    return jnp.where(total > 0.0, positive / jnp.where(total > 0.0, total, 1.0), p)


def baseline_for_fraction(
    fraction: Float[Array, "..."] | float, target: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """The baseline whose effective share of positives is `target`.

    c = (p - target) / (p + target - 2 p target), the inverse of `effective_positive_fraction`.
    The paper finds 0.1 to 0.2 best whatever p is.

    Args:
      fraction: p, the share of positive samples, in [0, 1].
      target: the wanted effective share, in [0, 1].

    Returns:
      c in [-1, 1]; 0 where every share is the same (both 0 or both 1).

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    p, q = accumulate(fraction), accumulate(target)
    total = p + q - 2.0 * p * q
    return (p - q) / jnp.where(total > 0.0, total, jnp.inf)
