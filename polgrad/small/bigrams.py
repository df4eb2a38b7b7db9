"""Policies that look one token back: sampled by products, and summed over every sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks

__all__ = ["Bigrams", "every_logp", "sample", "sequence_logp"]


class Bigrams(NamedTuple):
    """Logits of a policy in which a token depends on its place and on the token before.

    Sequences are one-hot, [B, T, V]: their log-probabilities are products without indices, whose
    gradients are cheap under `vmap` over seeds.

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


def sequence_logp(policy: Bigrams, tokens: Float[Array, "B T V"]) -> Float[Array, "B"]:
    """Log-probability of sequences.

    Args:
      policy: the logits, finite.
      tokens: one-hot sequences of the policy's length.

    Returns:
      Log-probabilities in nats, sums over tokens.

    Raises:
      ValueError: if the tokens are not [B, T, V].
    """
    length, size = len(policy.following) + 1, policy.first.shape[0]
    _checks.shape("tokens", tokens, (None, length, size), "[B, T, V], one-hot")
    before, after = tokens[:, :-1], tokens[:, 1:]
    following = jnp.einsum("btu,tuv->btv", before, jax.nn.log_softmax(policy.following))
    first = tokens[:, 0] @ jax.nn.log_softmax(policy.first)
    return first + jnp.sum(following * after, axis=(1, 2))


def sample(policy: Bigrams, uniforms: Float[Array, "B T"]) -> Float[Array, "B T V"]:
    """Draws sequences by inverting the cumulative distribution of each token.

    Args:
      policy: the logits.
      uniforms: independent uniform numbers in [0, 1), one a token.

    Returns:
      One-hot sequences.

    Raises:
      ValueError: if the uniform numbers are not [B, T].
    """
    length, size = len(policy.following) + 1, policy.first.shape[0]
    _checks.shape("uniforms", uniforms, (None, length), "[B, T], one number a token")

    def invert(probabilities, u):
        below = jnp.cumsum(probabilities, axis=-1)[..., :-1] <= u[:, None]
        return jax.nn.one_hot(jnp.sum(below, axis=-1), size)

    tokens = [invert(jax.nn.softmax(policy.first), uniforms[:, 0])]
    for following, u in zip(jax.nn.softmax(policy.following), uniforms.T[1:]):
        tokens.append(invert(tokens[-1] @ following, u))
    return jnp.stack(tokens, axis=1)
