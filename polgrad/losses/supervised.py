"""Likelihood of given answers: by itself and beside a preference loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad.ratios import finite

__all__ = ["imitation", "implicit_value", "rpo", "rpo_average"]


def imitation(
    logp: Float[Array, "*B"], lengths: Num[Array, "*B"] | None = None
) -> Float[Array, "*B"]:
    """The negative log-likelihood of given answers: supervised fine-tuning.

    loss = -logp, or -logp / lengths. The term that keeps the likelihood of good answers up beside
    a preference loss (`rpo`). For the mean over all tokens of a batch, which long answers
    dominate, use `masking.reduce(-token_logp, mask, mode="token")`.

    Args:
      logp: log-probabilities of the answers (sums over tokens) or of tokens, any shape.
      lengths: numbers of tokens, same shape, to average over each answer; None for sums.

    Returns:
      Losses, same shape. An answer of length 0 is divided by 1. A log-probability of minus
      infinity counts -20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ.
    """
    loss = -finite(logp)
    if lengths is None:
        return loss
    _checks.same_shape("one length an answer", logp=logp, lengths=lengths)
    return loss / jnp.maximum(accumulate(jax.lax.stop_gradient(lengths)), 1.0)
