"""The soft control problem of a tiny autoregressive policy, solved backwards from the leaves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.masking import sequence_sum
from polgrad.tabular.sequences import Sequences

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


class SoftValues(NamedTuple):
    """Optimal values of the reward plus alpha times the policy's entropy.

    Attributes:
      q: of state and action, [S, A].
      v: of the state, alpha log sum_a exp(q / alpha), [S].
      advantages: q - v = alpha log of the optimal policy, [S, A].
    """

    q: Float[Array, "S A"]
    v: Float[Array, "S"]
    advantages: Float[Array, "S A"]


def soft_value_iteration(
    transitions: Float[Array, "S A S"],
    rewards: Float[Array, "S A"],
    *,
    discount: float,
    alpha: float,
    iterations: int = 1000,
) -> SoftValues:
    """Repeats Q = r + discount E[V(s')], V = alpha log sum_a exp(Q / alpha).

    The error shrinks by the discount in each iteration. The optimal policy is exp(advantages /
    alpha); an episode that ends goes to a state that keeps itself, with reward 0 (whose entropy
    then still counts: give it one action's worth, or mask it).

    Args:
      transitions: P(s' | s, a), [S, A, S].
      rewards: [S, A].
      discount: in [0, 1).
      alpha: temperature, > 0.
      iterations: how many.

    Returns:
      The values.

    Raises:
      ValueError: shapes that do not match; numbers out of range.

    References:
      Ziebart, Modeling Purposeful Adaptive Behavior with the Principle of Maximum Causal Entropy,
      2010. Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639).
    """
    in_range("discount", discount, low=0.0, high=1.0, below=True)
    in_range("alpha", alpha, low=0.0, above=True)
    _checks.rank("rewards", rewards, 2, "[S, A]")
    states, actions = jnp.shape(rewards)
    _checks.shape("transitions", transitions, (states, actions, states), "[S, A, S]")
    transitions, rewards = jnp.asarray(transitions), jnp.asarray(rewards)

    def improve(_, v):
        return alpha * jax.nn.logsumexp((rewards + discount * transitions @ v) / alpha, axis=-1)

    v = jax.lax.fori_loop(0, iterations, improve, jnp.zeros(states, rewards.dtype))
    q = rewards + discount * transitions @ v
    v = alpha * jax.nn.logsumexp(q / alpha, axis=-1)
    return SoftValues(q, v, q - v[:, None])


def segment_preference(
    first: Float[Array, "B T"],
    second: Float[Array, "B T"],
    first_mask: Float[Array, "B T"],
    second_mask: Float[Array, "B T"],
    *,
    discount: float = 1.0,
) -> Float[Array, "B"]:
    """P(the first of two segments is preferred): by their regret, or by their reward.

        sigmoid(sum_t discount^t first_t - sum_t discount^t second_t)

    Of optimal advantages it is the regret model (how far from optimal a segment is), of rewards
    the model of partial returns.

    Args:
      first: advantages or rewards of the first segment's steps, [B, T].
      second: the same of the second, [B, T].
      first_mask: 1 where a step of the first counts, [B, T].
      second_mask: the same of the second.
      discount: per step, in [0, 1].

    Returns:
      Probabilities, [B].

    Raises:
      ValueError: shapes that differ; a discount out of range.

    References:
      Knox et al., Models of Human Preference for Learning Reward Functions, 2022
      (arXiv:2206.02231). Hejna et al., 2023 (arXiv:2310.13639).
    """
    in_range("discount", discount, low=0.0, high=1.0)
    _checks.same_shape("[B, T]", first=first, first_mask=first_mask)
    _checks.same_shape("[B, T]", second=second, second_mask=second_mask)
    sums = [
        sequence_sum(jnp.asarray(x) * discount ** jnp.arange(jnp.shape(x)[1]), mask)
        for x, mask in ((first, first_mask), (second, second_mask))
    ]
    return jax.nn.sigmoid(sums[0] - sums[1])
