"""Annotators who disagree: a mixture of reward models, and rewards for the worst-off group.

One reward model of pooled preferences serves the majority. Instead, annotators are assigned to
groups by how likely each group's reward model makes their choices, each model is fitted to its
own annotators (`fit_annotator_mixture` does both in a table), and the policy is trained for
the group that it serves worst. The groups are the last axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import log_sigmoid
from polgrad.ratios import finite
from polgrad.reward_models.bradley_terry import bradley_terry


def annotator_loglikelihood(
    margins: Float[Array, "N U"],
    annotator: Int[Array, "N"],
    *,
    annotators: int,
    valid: Bool[Array, "N"] | None = None,
) -> Float[Array, "H U"]:
    """How likely each group's reward model makes the choices of each annotator.

        L[h, u] = sum over the pairs of annotator h of log sigmoid(margin_u)

    Args:
      margins: chosen score - rejected score under each of U reward models, [N, U]; the gradient
        flows through them.
      annotator: who judged each pair, [N]; pairs of an annotator outside 0..H - 1 are left out.
      annotators: H, their number.
      valid: False for pairs to leave out, [N]; None for none.

    Returns:
      Log-likelihoods, [H, U], <= 0; 0 for an annotator without a pair. An infinite margin counts
      +-20, an undefined one nothing, both without gradient.

    Raises:
      ValueError: shapes that do not match; no annotators.

    References:
      Chakraborty et al., MaxMin-RLHF: Towards Equitable Alignment of Large Language Models with
      Diverse Human Preferences, 2024 (arXiv:2402.08925), algorithm 2.
    """
    if annotators < 1:
        raise ValueError(f"annotators is {annotators}, expected at least 1")
    _checks.rank("margins", margins, 2, "[N, U], a column a group")
    _checks.shape("annotator", annotator, np.shape(margins)[:1], "[N]")
    margins = accumulate(margins)
    counted = ~jnp.isnan(margins)
    if valid is not None:
        _checks.shape("valid", valid, np.shape(margins)[:1], "[N]")
        counted &= (jnp.asarray(valid) != 0)[:, None]
    logs = jnp.where(counted, log_sigmoid(finite(margins)), 0.0)
    # Segments outside of [0, annotators) are dropped.
    return jax.ops.segment_sum(logs, jnp.asarray(annotator), num_segments=annotators)


def hard_assignment(
    loglikelihood: Float[Array, "H U"], *, valid: Bool[Array, "H"] | None = None
) -> Int[Array, "H"]:
    """The group whose reward model explains each annotator best.

    Identical models tie, and everybody goes to the first: start from different ones, for example
    fitted to random halves of the annotators, and keep the best of several starts.

    Args:
      loglikelihood: from `annotator_loglikelihood`, [H, U].
      valid: False for annotators to leave out, such as those without a pair, [H]; None for none.

    Returns:
      Groups in 0..U - 1, [H]; -1 for annotators left out. An undefined likelihood loses.

    Raises:
      ValueError: shapes that do not match.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), algorithm 2.
    """
    _checks.rank("loglikelihood", loglikelihood, 2, "[H, U]")
    logs = accumulate(loglikelihood)
    best = jnp.argmax(jnp.where(jnp.isnan(logs), -jnp.inf, logs), axis=-1)
    if valid is None:
        return best
    _checks.shape("valid", valid, best.shape, "[H]")
    return jnp.where(jnp.asarray(valid) != 0, best, -1)


class SoftAssignment(NamedTuple):
    """Which group each annotator belongs to, and how large the groups are.

    Attributes:
      responsibilities: P(group | choices), rows that sum to 1.
      prior: share of each group, the mean responsibility.
    """

    responsibilities: Float[Array, "H U"]
    prior: Float[Array, "U"]


def soft_assignment(
    loglikelihood: Float[Array, "H U"],
    prior: Float[Array, "U"],
    *,
    valid: Bool[Array, "H"] | None = None,
) -> SoftAssignment:
    """Posterior probability of each group given an annotator's choices (the E-step of EM).

        responsibility[h, u] = prior_u exp(L[h, u]) / sum_v prior_v exp(L[h, v])

    Args:
      loglikelihood: from `annotator_loglikelihood`, [H, U].
      prior: shares of the groups, [U], >= 0.
      valid: False for annotators to leave out, [H]; None for none.

    Returns:
      `SoftAssignment(responsibilities, prior)`, without gradient; responsibilities are 0 for
      annotators left out and uniform where no group is possible. Without any annotator the prior
      stays as it was.

    Raises:
      ValueError: shapes that do not match.

    References:
      Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm,
      1977. Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), its hard form.
    """
    _checks.rank("loglikelihood", loglikelihood, 2, "[H, U]")
    _checks.shape("prior", prior, np.shape(loglikelihood)[1:], "[U]")
    logs, prior = jax.lax.stop_gradient((accumulate(loglikelihood), accumulate(prior)))
    logs = jnp.where(jnp.isnan(logs), -jnp.inf, logs) + jnp.log(prior)
    possible = jnp.any(logs > -jnp.inf, axis=-1, keepdims=True)
    responsibilities = jax.nn.softmax(jnp.where(possible, logs, 0.0), axis=-1)
    count = responsibilities.shape[0]
    if valid is not None:
        _checks.shape("valid", valid, np.shape(logs)[:1], "[H]")
        counted = jnp.asarray(valid) != 0
        responsibilities = jnp.where(counted[:, None], responsibilities, 0.0)
        count = jnp.sum(counted)
    mean = jnp.sum(responsibilities, axis=0) / jnp.maximum(count, 1)
    return SoftAssignment(responsibilities, jnp.where(count > 0, mean, prior))


def mixture_bradley_terry(
    chosen_scores: Float[Array, "... U"],
    rejected_scores: Float[Array, "... U"],
    responsibilities: Float[Array, "... U"],
) -> Float[Array, "..."]:
    """Each group's reward model learns from the pairs of its own annotators (the M-step).

        loss = -sum_u responsibility_u log sigmoid(chosen_u - rejected_u)

    Args:
      chosen_scores: scores of the preferred answers under each of U reward models, [..., U]; the
        gradient flows through both scores.
      rejected_scores: scores of the other answers, [..., U].
      responsibilities: of the groups for the pair's annotator, [..., U]; stopped. One-hot for
        `hard_assignment` (`jax.nn.one_hot` makes -1 a row of zeros).

    Returns:
      Losses, [...], to be averaged over pairs; 0 for a pair that belongs to no group. Scores that
      are not finite are treated as in `bradley_terry`.

    Raises:
      ValueError: shapes that differ.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), algorithm 2.
    """
    return jnp.sum(bradley_terry(chosen_scores, rejected_scores, weights=responsibilities), axis=-1)


def standardize_groups(
    rewards: Float[Array, "... U"],
    reference_mean: Float[Array, "... U"],
    reference_deviation: Float[Array, "... U"],
) -> Float[Array, "... U"]:
    """Rewards on a scale on which groups can be compared: (reward - mean) / deviation.

    Preferences determine a reward up to a function of the prompt, and its scale by how noisy the
    annotators are; the minimum over groups compares both. Without this the worst-off group may
    be the same for ever.

    Args:
      rewards: of each group's model, [..., U].
      reference_mean: mean reward of the reference policy's answers, [..., U], to the same prompt
        if there are enough of them.
      reference_deviation: their standard deviation, [..., U].

    Returns:
      Standardised rewards, [..., U], without gradient; 0 where the deviation is not positive.

    Raises:
      ValueError: if the number of groups differs.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925).
    """
    _same_groups(rewards, reference_mean=reference_mean, reference_deviation=reference_deviation)
    arrays = jax.lax.stop_gradient((rewards, reference_mean, reference_deviation))
    rewards, mean, deviation = (accumulate(x) for x in arrays)
    return (rewards - mean) / jnp.where(deviation > 0.0, deviation, jnp.inf)


def maxmin_weights(
    rewards: Float[Array, "... U"], *, temperature: float = 0.0
) -> Float[Array, "... U"]:
    """Weights of the groups' rewards that serve the worst-off group.

        softmax(-reward / temperature),   all on the smallest reward at temperature 0

    MaxMin-RLHF gives the MEAN rewards of a batch, minus beta KL if they differ in it, and trains
    a step for the group with the smallest. Given the rewards of each sample instead, it takes the
    minimum sample by sample, which is a lower bound of the objective: E min <= min E. temperature =
    infinity weighs all groups equally.

    Args:
      rewards: of each group, [..., U], on comparable scales (`standardize_groups`).
      temperature: in units of the reward, >= 0; 0 in the paper.

    Returns:
      Weights, [..., U], that sum to 1, without gradient; the first of equal groups at temperature
      0. A reward that is not finite has weight 0; so have all if none is finite.

    Raises:
      ValueError: a scalar; a negative temperature.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925), algorithm 1.
    """
    in_range("temperature", temperature, low=0.0)
    if np.ndim(rewards) == 0:
        raise ValueError("rewards has shape [], expected [..., U] with the groups on the last axis")
    rewards = accumulate(jax.lax.stop_gradient(rewards))
    known = jnp.isfinite(rewards)
    worst = jnp.argmin(jnp.where(known, rewards, jnp.inf), axis=-1)
    hard = jax.nn.one_hot(worst, rewards.shape[-1], dtype=rewards.dtype)
    cold = jnp.asarray(temperature) == 0.0
    logits = -jnp.where(known, rewards, 0.0) / jnp.where(cold, 1.0, temperature)
    some = known | ~jnp.any(known, axis=-1, keepdims=True)
    soft = jax.nn.softmax(jnp.where(some, logits, -jnp.inf), axis=-1)
    return jnp.where(known, jnp.where(cold, hard, soft), 0.0)


def exponentiated_weights(
    weights: Float[Array, "... U"], rewards: Float[Array, "... U"], *, step_size: float
) -> Float[Array, "... U"]:
    """Moves the groups' weights towards those that are served worst: weights exp(-step reward).

    The smooth form of `maxmin_weights`: alternating steps for the worst-off group oscillate
    around the point where two are equal, these settle there (`tabular.maxmin_policy`).

    Args:
      weights: of the groups so far, [..., U], >= 0 with a positive sum.
      rewards: their mean rewards under the current policy, [..., U].
      step_size: > 0, in units of 1 / reward.

    Returns:
      Weights, [..., U], that sum to 1, without gradient. A group of weight 0 stays there; a
      reward that is not finite counts 0. If all weights are 0 they become equal.

    Raises:
      ValueError: shapes that differ; a step size that is not positive.

    References:
      Kivinen and Warmuth, Exponentiated gradient versus gradient descent, 1997. Sagawa et al.,
      Distributionally robust neural networks, 2019 (arXiv:1911.08731).
    """
    in_range("step_size", step_size, low=0.0, above=True)
    _checks.same_shape("[..., U]", weights=weights, rewards=rewards)
    weights, rewards = jax.lax.stop_gradient((accumulate(weights), accumulate(rewards)))
    positive = weights > 0.0
    logits = jnp.log(jnp.where(positive, weights, 1.0))
    logits -= step_size * jnp.where(jnp.isfinite(rewards), rewards, 0.0)
    some = jnp.any(positive, axis=-1, keepdims=True)
    return jax.nn.softmax(jnp.where(some, jnp.where(positive, logits, -jnp.inf), 0.0), axis=-1)


def aggregate_groups(
    rewards: Float[Array, "... U"], weights: Float[Array, "... U"] | Float[Array, "U"]
) -> Float[Array, "..."]:
    """One reward out of those of the groups: sum_u weight_u reward_u.

    Args:
      rewards: of each sample under each group's model, [..., U].
      weights: of the groups, [U] for the whole batch or one row a sample, [..., U]: from
        `maxmin_weights` or `exponentiated_weights`.

    Returns:
      Rewards, [...], without gradient. A group of weight 0 adds nothing, whatever its reward.

    Raises:
      ValueError: if the number of groups differs.

    References:
      Chakraborty et al., MaxMin-RLHF, 2024 (arXiv:2402.08925).
    """
    _same_groups(rewards, weights=weights)
    rewards, weights = jax.lax.stop_gradient((accumulate(rewards), accumulate(weights)))
    return jnp.sum(jnp.where(weights > 0.0, weights * rewards, 0.0), axis=-1)


def _same_groups(rewards, **others):
    """Raises ValueError unless the last axes are as long as that of the rewards."""
    groups = np.shape(rewards)[-1:]
    for name, x in others.items():
        if np.shape(x)[-1:] != groups or not groups:
            raise ValueError(
                f"{name} has shape {list(np.shape(x))} and rewards {list(np.shape(rewards))}, "
                "expected [..., U] with as many groups on the last axis"
            )


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
    differences, initial = accumulate(differences), accumulate(initial)
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

    parameters, history = jax.lax.scan(improve, initial, length=rounds)
    assignment = hard_assignment(likelihood(parameters), valid=present)
    return AnnotatorMixture(parameters, assignment, history)
