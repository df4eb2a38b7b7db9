"""Contrastive policy gradient: off-policy policy gradients from scored pairs or groups."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


def copg_group(
    logratio: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    beta: float,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """CoPG on all pairs of a group: half of `copg`, averaged over a sample's partners.

    loss_i = 1 / (2 (n - 1)) sum_{j != i} copg(i, j), n valid samples.

    The gradient of a group's sum is that of -sum_i sg[A_i] logratio_i, with A the leave-one-out
    advantage of reward - beta logratio: RLOO with the KL in the reward, but valid off-policy.

    Args:
      logratio: log(policy / reference) of the G samples of a prompt, sums over tokens, in nats.
        Stop the gradient of the reference when forming it.
      rewards: their scores; no gradient flows through them.
      beta: strength of the KL to the reference, > 0.
      valid: True where a reward exists; all by default. Rewards that are not finite are invalid
        in any case.

    Returns:
      Losses, same shape, to be averaged over samples; 0 for invalid samples and for a group with
      one valid sample. Two samples sum to the `copg` of the pair.

    Raises:
      ValueError: if shapes differ, of rank 0 or 1, or `beta` is not positive.

    References:
      Flet-Berliac et al., Contrastive Policy Gradient, 2024 (arXiv:2406.19185); for two samples.
    """
    _checks.groups("logratio", logratio)
    logratio, rewards = jnp.asarray(logratio), jnp.asarray(rewards)
    valid = jnp.ones(rewards.shape, bool) if valid is None else jnp.asarray(valid) != 0
    _checks.same_shape("[..., G]", logratio=logratio, rewards=rewards, valid=valid)
    valid &= jnp.isfinite(rewards)
    rewards = jnp.where(valid, rewards, jnp.nan)
    shape = (*rewards.shape, rewards.shape[-1])
    own = [jnp.broadcast_to(x[..., :, None], shape) for x in (logratio, rewards)]
    others = [jnp.broadcast_to(x[..., None, :], shape) for x in (logratio, rewards)]
    pairs = copg(own[0], others[0], own[1], others[1], beta=beta)
    partners = jnp.sum(valid, axis=-1, keepdims=True) - 1
    return jnp.sum(pairs, axis=-1) / (2.0 * jnp.maximum(partners, 1))
