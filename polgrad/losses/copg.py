"""Contrastive policy gradient: off-policy policy gradients from scored pairs or groups."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite

__all__ = ["copg", "copg_group"]


def copg(
    first_logratio: Float[Array, "..."],
    second_logratio: Float[Array, "..."],
    first_rewards: Float[Array, "..."],
    second_rewards: Float[Array, "..."],
    *,
    beta: float,
) -> Float[Array, "..."]:
    """CoPG: a policy gradient in which each answer of a pair is the other's baseline.

    loss = beta / 2 D^2 - (first_rewards - second_rewards) D,  D = first_logratio - second_logratio.

    Its gradient is that of -sg[R(first) - R(second)] D with the regularised rewards
    R = reward - beta logratio, and of (beta D - reward difference)^2 / (2 beta), a regression.
    The minimiser is the KL-regularised optimum, reference exp(reward / beta) / Z, whatever drew
    the pairs, as long as the two answers are independent given the prompt and anything the
    reference can say may be drawn. On pairs of the policy itself it is twice the policy gradient.

    Args:
      first_logratio: log(policy / reference) of one answer of each pair, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      second_logratio: the same for the other answers.
      first_rewards: scores, in units in which beta is the price of a nat; no gradient flows
        through them. Which answer comes first does not matter; equal scores are legal.
      second_rewards: the same for the other answers.
      beta: strength of the KL to the reference, > 0 (0.06 in the paper for a learned reward).

    Returns:
      Losses, same shape, to be averaged over pairs; 0 where policy = reference, at least
      -(reward difference)^2 / (2 beta). An infinite log ratio counts +-20 nats, an undefined one
      0, both without gradient; a pair with a reward that is not finite contributes 0.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Flet-Berliac et al., Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in
      a supervised-friendly fashion, 2024 (arXiv:2406.19185).
    """
    _checks.same_shape(
        "one value an answer",
        first_logratio=first_logratio,
        second_logratio=second_logratio,
        first_rewards=first_rewards,
        second_rewards=second_rewards,
    )
    in_range("beta", beta, low=0.0, above=True)
    rewards = accumulate(first_rewards), accumulate(second_rewards)
    scored = jnp.isfinite(rewards[0]) & jnp.isfinite(rewards[1])
    gap = jnp.where(scored, rewards[0], 0.0) - jnp.where(scored, rewards[1], 0.0)
    contrast = jnp.where(scored, finite(first_logratio) - finite(second_logratio), 0.0)
    return 0.5 * beta * jnp.square(contrast) - jax.lax.stop_gradient(gap) * contrast
