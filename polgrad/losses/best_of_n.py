"""Likelihood of the better samples of a group: best-of-N, with and without a push on the others.

The supervised side of preference tuning, next to `reinforce` and `dpo`: three switches (fresh
samples or not, samples used again or not, a negative gradient or not) tell most methods apart.
A sample whose log-probability or reward is not finite is left out, as is one that `valid`
excludes. The losses are sums over tokens; log(policy / reference) in place of `logp` shifts their
value and not their gradient.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.losses.ranking import answers

__all__ = ["OrderedPairs", "best_of_n", "ordered_pairs", "reward_weighted"]


class OrderedPairs(NamedTuple):
    """All pairs of a group, the better answer first, for `dpo`, `ipo` and their relatives.

    Attributes:
      chosen_logratio: of the answers with the higher reward, M = G (G - 1) / 2 pairs.
      rejected_logratio: of the others.
      valid: 1 where the rewards differ by enough.
    """

    chosen_logratio: Float[Array, "... M"]
    rejected_logratio: Float[Array, "... M"]
    valid: Float[Array, "... M"]


def ordered_pairs(
    logratio: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    threshold: float = 0.0,
    valid: Bool[Array, "... G"] | None = None,
) -> OrderedPairs:
    """All pairs of the samples of a prompt whose rewards differ by more than a threshold.

    For the pairwise losses on groups; the logistic one of a whole list is `pairwise_logistic`.

    Args:
      logratio: log(policy / reference) of the G samples, sums over tokens, in nats; the gradient
        flows through them.
      rewards: what orders them; no gradient flows through an order.
      threshold: smallest gap that makes a pair, exclusive, >= 0; 0.2 in the paper's offline runs.
      valid: False for samples to leave out; None for none.

    Returns:
      Pairs on the last axis. A pair that is not valid holds zeros, without gradient.

    Raises:
      ValueError: shapes that differ; rank 0 or 1; threshold below 0.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367).
    """
    in_range("threshold", threshold, low=0.0)
    _checks.groups("logratio", logratio)
    logratio, rewards, counted = answers(valid, logratio=logratio, rewards=rewards)
    first, second = jnp.triu_indices(rewards.shape[-1], k=1)
    gap = rewards[..., first] - rewards[..., second]
    made = (jnp.abs(gap) > threshold) & counted[..., first] & counted[..., second]
    swap = gap < 0.0
    chosen = jnp.where(swap, logratio[..., second], logratio[..., first])
    rejected = jnp.where(swap, logratio[..., first], logratio[..., second])
    kept = [jnp.where(made, x, 0.0) for x in (chosen, rejected)]
    return OrderedPairs(*kept, made.astype(rewards.dtype))
