"""Softmax bandits in closed form: optima, frontiers and exact policy gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._scalars import in_range

__all__ = [
    "Frontier",
    "expected_reward",
    "kl_regularized_optimum",
    "kl_regularized_value",
    "policy_gradient",
    "reward_kl_frontier",
]


def expected_reward(
    logits: Float[Array, "... A"], rewards: Float[Array, "... A"]
) -> Float[Array, "..."]:
    """E[reward] under softmax(logits).

    Args:
      logits: unnormalised log-probabilities of the actions.
      rewards: reward of each action.

    Returns:
      The expectation, without the last axis.
    """
    return jnp.sum(jax.nn.softmax(logits) * rewards, axis=-1)


def policy_gradient(
    logits: Float[Array, "... A"], rewards: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Exact gradient of `expected_reward` in the logits: policy (reward - E[reward]).

    Args:
      logits: unnormalised log-probabilities of the actions.
      rewards: reward of each action.

    Returns:
      The gradient (of ascent), same shape as the logits.
    """
    centred = rewards - expected_reward(logits, rewards)[..., None]
    return jax.nn.softmax(logits) * centred


def kl_regularized_optimum(
    log_reference: Float[Array, "... A"], rewards: Float[Array, "... A"], *, beta: float
) -> Float[Array, "... A"]:
    """Log-probabilities of the policy that maximises E[reward] - beta KL(policy || reference).

    policy = reference exp(reward / beta) / Z.

    Args:
      log_reference: normalised log-probabilities of the reference.
      rewards: reward of each action.
      beta: strength of the KL, > 0.

    Returns:
      Normalised log-probabilities, same shape.

    Raises:
      ValueError: if beta is not positive.

    References:
      Rafailov et al., Direct Preference Optimization, 2023 (arXiv:2305.18290), equation 4.
    """
    in_range("beta", beta, low=0.0, above=True)
    return jax.nn.log_softmax(log_reference + rewards / beta)


def kl_regularized_value(
    log_reference: Float[Array, "... A"], rewards: Float[Array, "... A"], *, beta: float
) -> Float[Array, "..."]:
    """The maximum itself: beta log Z = beta log sum reference exp(reward / beta).

    Args:
      log_reference: normalised log-probabilities of the reference.
      rewards: reward of each action.
      beta: strength of the KL, > 0.

    Returns:
      The value, without the last axis.

    Raises:
      ValueError: if beta is not positive.
    """
    in_range("beta", beta, low=0.0, above=True)
    return beta * jax.nn.logsumexp(log_reference + rewards / beta, axis=-1)


class Frontier(NamedTuple):
    """The best expected reward at each KL from the reference."""

    reward: Float[Array, "K ..."]
    kl: Float[Array, "K ..."]


def reward_kl_frontier(
    log_reference: Float[Array, "... A"],
    rewards: Float[Array, "... A"],
    betas: Float[Array, "K"],
) -> Frontier:
    """Expected reward and KL of the regularised optimum for each beta.

    No policy has more reward at the same KL(policy || reference).

    Args:
      log_reference: normalised log-probabilities of the reference.
      rewards: reward of each action.
      betas: strengths of the KL, > 0.

    Returns:
      `Frontier(reward, kl)`, each with the betas as leading axis; the KL in nats.

    Raises:
      ValueError: if a beta is not positive.
    """
    betas = jnp.asarray(betas)
    in_range("betas", betas, low=0.0, above=True)

    def point(beta):
        log_policy = kl_regularized_optimum(log_reference, rewards, beta=beta)
        policy = jnp.exp(log_policy)
        ratio = jnp.where(policy > 0.0, log_policy - log_reference, 0.0)
        return Frontier(jnp.sum(policy * rewards, -1), jnp.sum(policy * ratio, -1))

    return jax.vmap(point)(betas)
