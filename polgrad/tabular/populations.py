"""MaxMin-RLHF in a table: the exact policy for the worst-off group, and exact clustering."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.tabular.bandits import kl_regularized_optimum, kl_regularized_value


class MaxMin(NamedTuple):
    """The policy that serves the worst-off group best.

    Attributes:
      log_policy: its log-probabilities.
      weights: of the groups' rewards; it is the regularised optimum of their weighted sum.
      value: its objective, the smallest expected reward minus beta KL.
      gap: the dual value minus this one, >= 0: how far from exact it can be.
    """

    log_policy: Float[Array, "*X A"]
    weights: Float[Array, "U"]
    value: Float[Array, ""]
    gap: Float[Array, ""]


def maxmin_dual(
    weights: Float[Array, "U"],
    log_reference: Float[Array, "*X A"],
    rewards: Float[Array, "*X A U"],
    *,
    beta: float,
) -> Float[Array, ""]:
    """The dual of MaxMin-RLHF: best regularised value of a weighted sum of the groups' rewards.

        g(w) = mean over prompts of beta log sum_a reference exp(sum_u w_u reward_u / beta)

    Convex in w; its gradient are the groups' expected rewards under the optimal policy for w, so
    at the minimum over the simplex all groups of positive weight are served equally.

    Args:
      weights: of the groups, >= 0, summing to 1.
      log_reference: normalised log-probabilities of the answers to each prompt.
      rewards: of each answer for each group (last axis).
      beta: strength of the KL, > 0.

    Returns:
      A scalar, an upper bound of the MaxMin value for all weights.

    Raises:
      ValueError: if beta is not positive.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925).
    """
    return jnp.mean(kl_regularized_value(log_reference, rewards @ weights, beta=beta))


def maxmin_policy(
    log_reference: Float[Array, "*X A"],
    rewards: Float[Array, "*X A U"],
    *,
    beta: float,
    iterations: int = 10_000,
) -> MaxMin:
    """The exact policy that maximises min_u E[reward_u] - beta KL(policy || reference).

    Expectations and KL are means over the prompts, which count equally. By duality it is the
    regularised optimum of a weighted sum of the rewards; exponentiated gradient steps on
    `maxmin_dual` find the weights, and never overshoot.

    Args:
      log_reference: normalised log-probabilities of the answers to each prompt.
      rewards: of each answer for each group (last axis), on comparable scales.
      beta: strength of the KL, > 0. The smaller, the more iterations it takes.
      iterations: steps.

    Returns:
      `MaxMin(log_policy, weights, value, gap)`; for one group the regularised optimum itself.

    Raises:
      ValueError: shapes that do not match; `beta` not positive.

    References:
      Chakraborty et al., MaxMin-RLHF: Towards Equitable Alignment of Large Language Models with
      Diverse Human Preferences, 2024 (arXiv:2402.08925).
    """
    in_range("beta", beta, low=0.0, above=True)
    _checks.shape("rewards", rewards, (*jnp.shape(log_reference), None), "[X, A, U]")
    spread = jnp.max(jnp.max(rewards, axis=-2) - jnp.min(rewards, axis=-2))
    # The dual is smooth in the 1-norm with constant spread^2 / (4 beta): the variance of a
    # variable in an interval.
    step = 4.0 * beta / jnp.where(spread > 0.0, jnp.square(spread), 1.0)

    def dual(weights):
        return maxmin_dual(weights, log_reference, rewards, beta=beta)

    def descend(_, logits):
        return jax.nn.log_softmax(logits - step * jax.grad(dual)(jax.nn.softmax(logits)))

    start = jnp.zeros(rewards.shape[-1], rewards.dtype)
    weights = jax.nn.softmax(jax.lax.fori_loop(0, iterations, descend, start))
    log_policy = kl_regularized_optimum(log_reference, rewards @ weights, beta=beta)
    policy = jnp.exp(log_policy)
    ratio = jnp.where(policy > 0.0, log_policy - log_reference, 0.0)
    expected = jnp.sum(policy[..., None] * rewards, axis=-2).reshape(-1, weights.size)
    value = jnp.min(jnp.mean(expected, axis=0)) - beta * jnp.mean(jnp.sum(policy * ratio, axis=-1))
    return MaxMin(log_policy, weights, value, dual(weights) - value)


def preference_diversity(
    preference: Float[Array, "N N"], other: Float[Array, "N N"]
) -> Float[Array, ""]:
    """How far two groups disagree: mean total variation of their choices over all pairs.

    Args:
      preference: P(i beats j) for one group.
      other: the same for another.

    Returns:
      A scalar in [0, 1]; the diagonal, where nothing is chosen, does not count.

    Raises:
      ValueError: shapes that differ.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), definition 1.
    """
    _checks.same_shape("[N, N]", preference=preference, other=other)
    size = jnp.shape(preference)[0]
    apart = jnp.where(jnp.eye(size, dtype=bool), 0.0, jnp.abs(preference - other))
    return jnp.sum(apart) / max(size * (size - 1), 1)
