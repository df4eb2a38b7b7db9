"""Tapered off-policy REINFORCE: importance weights that treat good and bad samples differently."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad.losses.inputs import topr_weights

__all__ = ["baseline_for_fraction", "effective_positive_fraction", "topr", "topr_weights"]


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
