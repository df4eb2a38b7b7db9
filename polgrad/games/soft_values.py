"""Maximum-entropy optimal values of tiny Markov decision processes, and preferences by regret."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.masking import sequence_sum

__all__ = ["SoftValues", "segment_preference", "soft_value_iteration"]


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
    """P(the first of two segments is preferred): by regret, or by what they pay.

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
