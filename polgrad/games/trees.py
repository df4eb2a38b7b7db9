"""The soft control problem of a tiny autoregressive policy, solved backwards from the leaves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.games.sequences import Sequences

__all__ = ["SoftTree", "soft_tree_values"]


class SoftTree(NamedTuple):
    """The solution of a KL-regularised tree; rows are the prefixes of `Sequences`.

    Attributes:
      values: V of each prefix; `values[0]` is that of the root.
      q: value of each next token.
      log_policy: the optimal policy, reference exp((q - V) / beta), as log-probabilities.
    """

    values: Float[Array, "P"]
    q: Float[Array, "P V"]
    log_policy: Float[Array, "P V"]


def soft_tree_values(
    sequences: Sequences,
    rewards: Float[Array, "P V"],
    reference_logits: Float[Array, "P V"],
    *,
    beta: float,
) -> SoftTree:
    """Soft value backup: maximises E[sum of token rewards] - beta KL(policy || reference).

        Q(s, a) = r(s, a) + V(s a),   V(s) = beta log sum_a reference(a | s) exp(Q(s, a) / beta)
        policy(a | s) = reference(a | s) exp((Q(s, a) - V(s)) / beta),   V = 0 behind the end

    Along every completion beta log(policy / reference) sums to the completion's reward less the
    value of the root: a policy and its reference are a token reward.

    Args:
      sequences: from `enumerate_sequences`; concrete.
      rewards: reward of each token after each prefix, [prefixes, V].
      reference_logits: unnormalised log-probabilities of the reference, [prefixes, V].
      beta: strength of the KL, > 0.

    Returns:
      Values, action values (without beta log reference) and the optimal policy.

    Raises:
      ValueError: shapes that do not match; beta not positive.

    References:
      Ziebart, Modeling purposeful adaptive behavior with the principle of maximum causal entropy,
      2010. Rafailov et al., From r to Q*, 2024 (arXiv:2404.12358). Zhong et al., DPO Meets PPO,
      2024 (arXiv:2404.18922).
    """
    shape = (sequences.prefixes, sequences.vocabulary)
    _checks.shape("rewards", rewards, shape, "[prefixes, V]")
    _checks.shape("reference_logits", reference_logits, shape, "[prefixes, V]")
    in_range("beta", beta, low=0.0, above=True)
    child, depth = _tree(sequences)
    reference = jax.nn.log_softmax(jnp.asarray(reference_logits))
    # One more row than prefixes: the value behind the end of a completion stays 0.
    values = jnp.zeros(sequences.prefixes + 1, reference.dtype)
    for level in range(depth.max(initial=0), -1, -1):
        rows = np.flatnonzero(depth == level)
        q = rewards[rows] + values[child[rows]]
        values = values.at[rows].set(beta * jax.nn.logsumexp(reference[rows] + q / beta, axis=-1))
    q = rewards + values[child]
    values = values[:-1]
    return SoftTree(values, q, reference + (q - values[:, None]) / beta)


def _tree(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Row of the prefix behind each token, `prefixes` at an end, [P, V]; length of each prefix."""
    child = np.full((sequences.prefixes, sequences.vocabulary), sequences.prefixes)
    depth = np.zeros(sequences.prefixes, int)
    for tokens, mask, rows in zip(sequences.tokens, sequences.mask, sequences.prefix):
        for t in range(int(mask.sum()) - 1):
            child[rows[t], tokens[t]] = rows[t + 1]
            depth[rows[t + 1]] = t + 1
    return child, depth
