"""Exact expectations of the parts that go into a loss: KL terms, and advantages of groups."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import _checks
from polgrad.conformance import expectations
from polgrad.tabular.sequences import token_logp

_GROUP = 4


class KLMeasurement(NamedTuple):
    """What a KL term does on one problem, in expectation over samples of the policy.

    Attributes:
      problem: "bandit" (4 actions) or "sequences" (completions of 1 to 3 tokens).
      value: expected value over KL(policy || reference), 1 if unbiased.
      deviation: standard deviation of one sample's value, relative to that KL.
      follows: the known gradient that the expected one equals, or "none of the known".
      cosine: of the angle between the expected gradient and that of KL(policy || reference); 0
        for no gradient at all.
      variance: trace of the covariance of one sample's gradient, relative to that of the score
        function estimator of the same KL.
    """

    problem: str
    value: float
    deviation: float
    follows: str
    cosine: float
    variance: float


class AdvantageMeasurement(NamedTuple):
    """What a group's advantages do to the policy gradient, in expectation over all groups.

    Attributes:
      scale: length of the expected gradient along the policy gradient, over the latter's.
      bias: norm of the component orthogonal to the policy gradient, relative to the parallel one.
      variance: trace of the covariance of a group's gradient at unit scale, relative to
        leave-one-out's.
    """

    scale: float
    bias: float
    variance: float


def measure_kl(term: Callable, *, place: str) -> list[KLMeasurement]:
    """Exact value, gradient and spread of `term(logp, reference_logp)`, [B, T] to [B, T].

    Args:
      term: a term of a loss, or an estimate for the reward.
      place: "loss": its own gradient counts; "reward": it is summed over a completion and paid,
        stopped, so that the score function carries it.

    Returns:
      One measurement for the bandit, one for the sequences.

    Raises:
      ValueError: a place that is neither.
    """
    _checks.choice("place", place, ("loss", "reward"))
    with expectations.exactly():
        return [_measure_kl(term, place, problem) for problem in expectations.problems()]


def _measure_kl(term, place, problem: expectations.Problem) -> KLMeasurement:
    sequences, score = problem.sequences, problem.score
    mask = sequences.mask
    logp = np.asarray(token_logp(sequences, problem.logits))
    reference = np.asarray(token_logp(sequences, problem.logits + 0.5 * problem.noise))
    policy, gap = np.exp(logp.sum(-1)), logp - reference

    def total(logp):
        terms = jnp.where(mask > 0, term(logp, jnp.asarray(reference)), 0.0)
        return jnp.sum(terms), terms

    slope, terms = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(logp))
    each = np.asarray(terms).sum(-1)
    token_gradient = np.asarray(slope) if place == "loss" else each[:, None] * mask
    mean, variance = expectations.moments(score, policy, token_gradient)
    exact, spread = expectations.moments(score, policy, gap.sum(-1, keepdims=True) * mask)
    known = {
        "KL(policy || reference)": exact,
        "the same, later states held fixed": expectations.moments(score, policy, gap * mask)[0],
        "KL(reference || policy)": -np.exp(reference.sum(-1)) @ score.sum(1),
        "the same, states of the policy": expectations.moments(
            score, policy, (1 - np.exp(-gap)) * mask
        )[0],
    }
    length = np.linalg.norm(mean)
    divergence = policy @ gap.sum(-1)
    follows = [
        name for name, g in known.items() if expectations.distance(mean, g) < expectations.EXACT
    ]
    if length < expectations.EXACT * np.linalg.norm(exact):
        follows = ["nothing: its mean is zero"]
    return KLMeasurement(
        problem=problem.name,
        value=float(policy @ each / divergence),
        deviation=float(np.sqrt(policy @ each**2 - (policy @ each) ** 2) / divergence),
        follows=follows[0] if follows else "none of the known",
        cosine=float(mean @ exact / (length * np.linalg.norm(exact))) if length > 1e-12 else 0.0,
        variance=float(variance / spread),
    )


def measure_advantages(function: Callable) -> AdvantageMeasurement:
    """Exact bias and variance of REINFORCE with `function(rewards [1, G]) -> [1, G]`.

    All groups of four actions of a bandit are enumerated, each on its own.

    Args:
      function: rewards of one group to its advantages.

    Returns:
      The measurement; an unbiased baseline has scale 1 and bias 0.
    """
    with expectations.exactly():
        return _measure_advantages(function)


def _measure_advantages(function) -> AdvantageMeasurement:
    problem = expectations.problems()[0]
    policy = np.exp(np.asarray(token_logp(problem.sequences, problem.logits)).sum(-1))
    score = problem.score.sum(1)
    groups = np.array(list(itertools.product(range(len(policy)), repeat=_GROUP)))
    weight = policy[groups].prod(-1)
    exact = (policy * problem.returns) @ score

    def moments(function):
        rewards = jnp.asarray(problem.returns)[groups]
        given = np.asarray(jax.jit(jax.vmap(lambda r: function(r[None])[0]))(rewards))
        each = np.einsum("ng,ngp->np", given, score[groups]) / _GROUP
        mean = weight @ each
        return mean, weight @ np.sum(each**2, -1) - mean @ mean

    mean, variance = moments(function)
    _, least = moments(lambda r: r - (jnp.sum(r, -1, keepdims=True) - r) / (_GROUP - 1))
    scale = mean @ exact / (exact @ exact)
    along = scale * exact
    return AdvantageMeasurement(
        scale=float(scale),
        bias=expectations.distance(mean, along),
        variance=float(variance / scale**2 / least),
    )
