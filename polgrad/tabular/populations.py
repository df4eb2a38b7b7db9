"""MaxMin-RLHF in a table: the exact policy for the worst-off group, and exact clustering."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.reward_models.annotators import annotator_loglikelihood, hard_assignment
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


class AnnotatorMixture(NamedTuple):
    """Reward models of groups of annotators.

    Attributes:
      parameters: of each group's linear reward.
      assignment: the group of each annotator, -1 for one without a pair.
      loglikelihood: penalised log-likelihood after each round; it never falls.
    """

    parameters: Float[Array, "U D"]
    assignment: Int[Array, "H"]
    loglikelihood: Float[Array, "R"]


def fit_annotator_mixture(
    differences: Float[Array, "N D"],
    annotator: Int[Array, "N"],
    initial: Float[Array, "U D"],
    *,
    annotators: int,
    rounds: int = 20,
    steps: int = 200,
    ridge: float = 1e-3,
) -> AnnotatorMixture:
    """Hard expectation-maximisation: annotators to groups, rewards to their annotators' pairs.

    Each round assigns every annotator to the group that explains all of its pairs best, then
    fits each group's linear reward (for one-hot features: a table) to its pairs by Newton steps
    with the curvature's upper bound, which never lower the likelihood.

    Args:
      differences: features of the chosen answer minus those of the rejected one, [N, D].
      annotator: who judged each pair, [N], in 0..H - 1.
      initial: parameters to start from, [U, D]; DIFFERENT ones, as equal ones stay together. Use
        several starts and keep the largest likelihood.
      annotators: H, their number.
      rounds: of assignment and fit, at least 1.
      steps: of each fit.
      ridge: of the penalty ridge / 2 |parameters|^2, > 0; separable pairs have no other optimum.

    Returns:
      `AnnotatorMixture(parameters, assignment, loglikelihood)`. A group that nobody belongs to
      keeps its parameters.

    Raises:
      ValueError: shapes that do not match; numbers out of range.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), algorithm 2. Bohning and Lindsay,
      Monotonicity of quadratic-approximation algorithms, 1988.
    """
    in_range("ridge", ridge, low=0.0, above=True)
    in_range("rounds", rounds, low=1)
    _checks.rank("differences", differences, 2, "[N, D]")
    _checks.shape("initial", initial, (None, jnp.shape(differences)[1]), "[U, D]")
    present = jnp.any(annotator[:, None] == jnp.arange(annotators), axis=0)

    def likelihood(parameters):
        return annotator_loglikelihood(differences @ parameters.T, annotator, annotators=annotators)

    def fit(parameters, member):
        bound = 0.25 * (differences.T * member) @ differences + ridge * jnp.eye(parameters.size)

        def climb(_, theta):
            wrong = member * jax.nn.sigmoid(-differences @ theta)
            return theta + jnp.linalg.solve(bound, wrong @ differences - ridge * theta)

        fitted = jax.lax.fori_loop(0, steps, climb, parameters)
        return jnp.where(jnp.any(member > 0.0), fitted, parameters)

    def improve(parameters, _):
        groups = hard_assignment(likelihood(parameters), valid=present)
        belongs = groups[annotator][None, :] == jnp.arange(len(parameters))[:, None]
        parameters = jax.vmap(fit)(parameters, belongs.astype(parameters.dtype))
        best = jnp.sum(jnp.max(likelihood(parameters), axis=-1))
        return parameters, best - 0.5 * ridge * jnp.sum(jnp.square(parameters))

    parameters, history = jax.lax.scan(improve, jnp.asarray(initial), length=rounds)
    assignment = hard_assignment(likelihood(parameters), valid=present)
    return AnnotatorMixture(parameters, assignment, history)


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
