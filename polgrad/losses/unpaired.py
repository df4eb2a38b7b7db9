"""Losses of single answers that are labelled desirable or not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.ratios import finite

__all__ = [
    "RewardShift",
    "bco_unpaired",
    "density_weight",
    "init_reward_shift",
    "kto",
    "kto_reference_point",
    "update_reward_shift",
]


def kto(
    logratio: Float[Array, "B"],
    desirable: Bool[Array, "B"],
    reference_point: Float[Array, ""] | float,
    *,
    beta: float = 0.1,
    lambda_desirable: float = 1.0,
    lambda_undesirable: float = 1.0,
) -> Float[Array, "B"]:
    """KTO: single answers, good or bad, valued as gains and losses from a reference point.

    loss = lambda_D (1 - sigmoid(beta (u - z0))) of good answers,
           lambda_U (1 - sigmoid(beta (z0 - u))) of bad ones, u the log-ratio.

    With z0 = 0 it is APO-zero for answers without a partner.

    Args:
      logratio: log(policy / reference) of the answers, sums over tokens, in nats. Stop the
        gradient of the reference when forming it.
      desirable: whether an answer is good.
      reference_point: z0, from `kto_reference_point`; no gradient flows through it.
      beta: strength of the KL to the reference, > 0.
      lambda_desirable: weight of good answers, >= 0.
      lambda_undesirable: weight of bad ones, >= 0. Choose (lambda_D good) / (lambda_U bad) in
        [1, 4/3] for the numbers of each in the data.

    Returns:
      Losses, [B], >= 0, to be averaged over all answers. An infinite log ratio counts +-20 nats,
      an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or a number is out of range.

    References:
      Ethayarajh et al., KTO, 2024 (arXiv:2402.01306). D'Oosterlinck et al., Anchored Preference
      Optimization, 2024 (arXiv:2408.06266).
    """
    _checks.rank("logratio", logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", logratio=logratio, desirable=desirable)
    in_range("beta", beta, low=0.0, above=True)
    in_range("lambda_desirable", lambda_desirable, low=0.0)
    in_range("lambda_undesirable", lambda_undesirable, low=0.0)
    gain = beta * (finite(logratio) - jax.lax.stop_gradient(accumulate(reference_point)))
    good = lambda_desirable * jax.nn.sigmoid(-gain)
    bad = lambda_undesirable * jax.nn.sigmoid(gain)
    return jnp.where(jnp.asarray(desirable) != 0, good, bad)


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


def bco_unpaired(
    logratio: Float[Array, "B"],
    desirable: Bool[Array, "B"],
    reward_shift: Float[Array, ""] | float,
    *,
    beta: float = 0.01,
    weights: Float[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """BCO of single answers: a classifier of good and bad ones, whose logit is the reward.

        loss = -log sigmoid(r - shift) of good answers,
               -weight log sigmoid(shift - r) of bad ones, r = beta log-ratio

    Its sum over the two answers of a pair is `bco`.

    Args:
      logratio: log(policy / reference) of the answers, sums over tokens, in nats. Stop the
        gradient of the reference when forming it.
      desirable: whether an answer is good.
      reward_shift: delta, `RewardShift.mean` after this batch; stopped.
      beta: strength of the KL to the reference, > 0.
      weights: of bad answers, from `density_weight`, [B], >= 0; stopped. None for 1.

    Returns:
      Losses, [B], >= 0, to be averaged over all answers; log 2 at r = shift. An infinite log
      ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Jung et al., Binary Classifier Optimization, 2024 (arXiv:2404.04656).
    """
    _checks.rank("logratio", logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", logratio=logratio, desirable=desirable)
    in_range("beta", beta, low=0.0, above=True)
    gain = beta * finite(logratio) - jax.lax.stop_gradient(accumulate(reward_shift))
    good = jnp.asarray(desirable) != 0
    loss = softplus(jnp.where(good, -gain, gain))
    if weights is None:
        return loss
    _checks.same_shape("[B]", logratio=logratio, weights=weights)
    weights = jax.lax.stop_gradient(accumulate(weights))
    return jnp.where(good, loss, weights * loss)
