"""Unlikelihood: pushes probability away from given tokens."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad.ratios import LIMIT, bounded

__all__ = ["unlikelihood"]


def unlikelihood(logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """The negative log-likelihood of not choosing a token.

    loss = -log(1 - exp(logp)).

    On the rejected answers of preference pairs, beside the likelihood of the chosen ones, it is
    a baseline for `dpo`. Its slope in logp, p / (1 - p), grows with the token's probability p: a
    token that the policy hardly uses is left alone.

    Args:
      logp: log-probabilities of tokens to avoid under the current policy, in nats, <= 0.

    Returns:
      Losses, same shape, >= 0, float32 or wider. A token of probability 0 contributes 0 without
      gradient. A token of probability above 1 - exp(-20) counts 20 nats and has the slope exp(20),
      that of a token of probability 1 - exp(-20).

    References:
      Welleck et al., Neural Text Generation with Unlikelihood Training, 2019 (arXiv:1908.04319).
      Rafailov et al., Direct Preference Optimization, 2023 (arXiv:2305.18290), as a baseline.
    """
    logp = accumulate(logp)
    # -exp(-20) is where 1 - exp(logp) = exp(-20); nearer to 0 the loss has no more precision.
    return -_log1mexp(bounded(logp, low=-jnp.inf, high=-math.exp(-LIMIT)))


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) for x < 0, without cancellation."""
    near = x > -math.log(2.0)
    small = jnp.where(near, x, -1.0)
    large = jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
