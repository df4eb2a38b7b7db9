"""Every completion of a tiny autoregressive policy, so that expectations are finite sums."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["Sequences", "enumerate_sequences", "token_logp"]


class Sequences(NamedTuple):
    """All N completions of at most T tokens over a vocabulary of V.

    Attributes:
      tokens: the completions, 0 after their end.
      mask: 1 up to and including the end token, 0 after it.
      prefix: row of the logit table that each token is drawn from, in 0..prefixes-1.
      prefixes: number of rows of the table.
      vocabulary: V.
    """

    tokens: Int[np.ndarray, "N T"]
    mask: Float[np.ndarray, "N T"]
    prefix: Int[np.ndarray, "N T"]
    prefixes: int
    vocabulary: int


def enumerate_sequences(vocabulary: int, length: int, *, end: int | None = None) -> Sequences:
    """Lists every completion of a policy that stops at `end` or after `length` tokens.

    With length 1 and no end token it is a bandit with `vocabulary` actions.

    Args:
      vocabulary: V, >= 1.
      length: T, the largest number of tokens, >= 1.
      end: the token that ends a completion early; None for completions of equal length.

    Returns:
      The completions. There are V^T of them without an end token, fewer with one.
    """
    rows, numbers = [], {}
    for word in itertools.product(range(vocabulary), repeat=length):
        stop = word.index(end) + 1 if end in word else length
        if any(word[stop:]):
            continue  # the same completion with something else behind its end
        prefix = [numbers.setdefault(word[:t], len(numbers)) for t in range(stop)]
        rows.append((word, [1.0] * stop, prefix))
    pad = lambda values: list(values) + [0] * (length - len(values))  # noqa: E731
    return Sequences(
        tokens=np.array([word for word, _, _ in rows]),
        mask=np.array([pad(mask) for _, mask, _ in rows], dtype=np.float64),
        prefix=np.array([pad(prefix) for _, _, prefix in rows]),
        prefixes=len(numbers),
        vocabulary=vocabulary,
    )


def token_logp(sequences: Sequences, logits: Float[Array, "P V"]) -> Float[Array, "N T"]:
    """Log-probability of every token of every completion under a tabular softmax policy.

    The exponential of its sum over tokens is a distribution over the N completions.

    Args:
      sequences: from `enumerate_sequences`.
      logits: one row for each prefix, [prefixes, V].

    Returns:
      Log-probabilities in nats, 0 where masked.
    """
    logp = jax.nn.log_softmax(logits)[sequences.prefix, sequences.tokens]
    return jnp.where(sequences.mask > 0.0, logp, 0.0)
