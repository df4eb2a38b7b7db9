"""Softmax bandits in closed form: optima, frontiers and exact policy gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import (
    log_ratio,
)

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


def forward_kl_gradient(
    logits: Float[Array, "... A"], log_target: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Gradient of KL(target || softmax(logits)) in the logits: policy - target.

    Args:
      logits: unnormalised log-probabilities of the policy.
      log_target: unnormalised log-probabilities of the target, same shape.

    Returns:
      The gradient (to descend), same shape; it sums to 0.

    Raises:
      ValueError: shapes that differ.

    References:
      Tajwar et al., Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data,
      2024 (arXiv:2404.14367), section 6.
    """
    _checks.same_shape("[..., A]", logits=logits, log_target=log_target)
    return jax.nn.softmax(accumulate(logits)) - jax.nn.softmax(accumulate(log_target))


def reverse_kl_gradient(
    logits: Float[Array, "... A"], log_target: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Gradient of KL(softmax(logits) || target) in the logits: policy (log ratio - KL).

    Args:
      logits: unnormalised log-probabilities of the policy.
      log_target: unnormalised log-probabilities of the target, same shape.

    Returns:
      The gradient (to descend), same shape; it sums to 0. Log ratios are clamped to +-20 nats.

    Raises:
      ValueError: shapes that differ.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367), section 6.
    """
    _checks.same_shape("[..., A]", logits=logits, log_target=log_target)
    logp = jax.nn.log_softmax(accumulate(logits))
    target = jax.nn.log_softmax(accumulate(log_target))
    policy, ratio = jnp.exp(logp), log_ratio(logp, target)
    return policy * (ratio - jnp.sum(policy * ratio, axis=-1, keepdims=True))


def log_odds_change(
    gradient: Float[Array, "... A"], *, first: int = 0, second: int = 1, step: float = 1.0
) -> Float[Array, "..."]:
    """How much one descent step on tabular logits changes log(policy(first) / policy(second)).

        -step (gradient[first] - gradient[second])

    Args:
      gradient: of a loss in the logits.
      first: an action.
      second: another one.
      step: learning rate.

    Returns:
      The change in nats, exact for any step, without the last axis.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367): the quantity in which the two directions differ.
    """
    gradient = accumulate(gradient)
    return -step * (gradient[..., first] - gradient[..., second])


def implicit_negative_policy(
    behavior: Float[Array, "... A"],
    positive: Float[Array, "... A"],
    success_rate: Float[Array, "..."],
) -> Float[Array, "... A"]:
    """What a model of right answers says of wrong ones: (behavior - p positive) / (1 - p).

    With the true conditional, positive = r behavior / p, it is (1 - r) behavior / (1 - p).

    Args:
      behavior: probabilities of the policy that sampled, [..., A].
      positive: probabilities of the model of right answers, [..., A].
      success_rate: p of the behaviour policy, [...], in [0, 1).

    Returns:
      [..., A], sums to 1; negative where the model gives an answer more than behavior / p, and
      the behaviour policy itself for p = 1.

    References:
      Chen et al., NFT, 2025 (arXiv:2505.18116), equation 4.
    """
    p = accumulate(success_rate)[..., None]
    some = p < 1.0
    left = (accumulate(behavior) - p * accumulate(positive)) / jnp.where(some, 1.0 - p, 1.0)
    return jnp.where(some, left, accumulate(behavior))
