"""Losses of single answers that are labelled desirable or not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate

__all__ = [
    "RewardShift",
    "bco_unpaired",
    "density_weight",
    "init_reward_shift",
    "kto",
    "kto_reference_point",
    "update_reward_shift",
]


class RewardShift(NamedTuple):
    """The mean of all implicit rewards so far, which `bco` and `bco_unpaired` compare with.

    Attributes:
      mean: of beta log-ratio, 0 before any answer.
      count: answers so far.
    """

    mean: Float[Array, ""]
    count: Float[Array, ""]


def init_reward_shift() -> RewardShift:
    """The state before any answer; its mean is 0.

    Returns:
      The state.
    """
    return RewardShift(jnp.zeros(()), jnp.zeros(()))


def update_reward_shift(
    state: RewardShift, rewards: Float[Array, "B"], *, valid: Bool[Array, "B"] | None = None
) -> RewardShift:
    """Adds a batch's implicit rewards to their running mean; before the loss that uses it.

        mean <- (count mean + sum of rewards) / (count + number of rewards)

    A statistic of the batch: compute it on the whole one, before any split.

    Args:
      state: from `init_reward_shift` or the last update.
      rewards: beta log(policy / reference) of all answers (`implicit_reward`), good and bad.
      valid: False for rows that only fill the batch; None for none.

    Returns:
      The next state, without gradient. Rewards that are not finite are left out.

    Raises:
      ValueError: if shapes differ.

    References:
      Jung et al., Binary Classifier Optimization for Large Language Model Alignment, 2024
      (arXiv:2404.04656).
    """
    _checks.rank("rewards", rewards, 1, "[B], one value an answer")
    rewards = jax.lax.stop_gradient(accumulate(rewards))
    known = jnp.isfinite(rewards)
    if valid is not None:
        _checks.same_shape("[B]", rewards=rewards, valid=valid)
        known &= jnp.asarray(valid) != 0
    new = jnp.sum(known.astype(state.count.dtype))
    total = jnp.sum(jnp.where(known, rewards - state.mean, 0.0))
    count = state.count + new
    return RewardShift(state.mean + total / jnp.maximum(count, 1.0), count)
