"""Policies that look one token back: sampled by products, and summed over every sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks

__all__ = ["Bigrams", "every_logp", "sample", "token_logits"]


class Bigrams(NamedTuple):
    """Logits of a policy in which a token depends on its place and on the token before.

    Attributes:
      first: of the first token.
      following: of each later token (last axis) by the one before (middle axis).
    """

    first: Float[Array, "V"]
    following: Float[Array, "T-1 V V"]


def every_logp(policy: Bigrams) -> Float[Array, "V^T"]:
    """Log-probability of all V^T sequences, ordered like `itertools.product`.

    Each token adds an axis; a sum over adjacent tokens, no table of sequences.

    Args:
      policy: the logits.

    Returns:
      Log-probabilities in nats, whose exponentials sum to 1.
    """
    logp = jax.nn.log_softmax(policy.first)
    for following in jax.nn.log_softmax(policy.following):
        logp = logp[..., None] + following
    return logp.ravel()


def token_logits(policy: Bigrams, tokens: Int[Array, "*B T"]) -> Float[Array, "*B T V"]:
    """Logits of each token of given sequences.

    Products with one-hot tokens, without an index: their gradients are cheap under `vmap`.

    Args:
      policy: the logits.
      tokens: sequences of the policy's length, in 0..V-1.

    Returns:
      Logits; those of a token depend on the one before it.

    Raises:
      ValueError: if the sequences have another length.
    """
    length, size = len(policy.following) + 1, policy.first.shape[0]
    if tokens.shape[-1] != length:
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}, expected [..., T] = [..., {length}]"
        )
    before = (tokens[..., :-1, None] == jnp.arange(size)).astype(policy.first.dtype)
    following = jnp.einsum("...tu,tuv->...tv", before, policy.following)
    first = jnp.broadcast_to(policy.first, (*following.shape[:-2], 1, size))
    return jnp.concatenate([first, following], axis=-2)


def sample(policy: Bigrams, uniforms: Float[Array, "B T"]) -> Int[Array, "B T"]:
    """Draws sequences by inverting the cumulative distribution of each token.

    Args:
      policy: the logits.
      uniforms: independent uniform numbers in [0, 1), one a token.

    Returns:
      Sequences of tokens in 0..V-1.

    Raises:
      ValueError: if the uniform numbers are not [B, T].
    """
    length, size = len(policy.following) + 1, policy.first.shape[0]
    _checks.shape("uniforms", uniforms, (None, length), "[B, T], one number a token")

    def invert(probabilities, u):
        below = jnp.cumsum(probabilities, axis=-1)[..., :-1] <= u[:, None]
        return jnp.sum(below, axis=-1, dtype=jnp.int32)

    tokens = [invert(jax.nn.softmax(policy.first), uniforms[:, 0])]
    for following, u in zip(jax.nn.softmax(policy.following), uniforms.T[1:]):
        tokens.append(invert(jax.nn.one_hot(tokens[-1], size) @ following, u))
    return jnp.stack(tokens, axis=1)
