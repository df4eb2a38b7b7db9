"""Direct preference optimisation, for pairs and for rankings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses._pairs import finite_pair
from polgrad.ratios import finite

__all__ = ["dpo", "implicit_reward", "ipo", "plackett_luce", "preference_margin"]


_ABSENT = -1e30


def dpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, "B"]:
    """DPO: logistic loss on the difference of log-ratios of a chosen and a rejected answer.

    loss = -(1 - s) log sigmoid(z) - s log sigmoid(-z), z = beta (chosen - rejected), with s the
    label smoothing (conservative DPO). Its minimiser under Bradley-Terry labels is the
    KL-regularised optimum, reference exp(reward / beta) / Z. Length-normalised DPO is the same on
    means over tokens in place of sums, with a larger beta.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (0.1 in the paper, 0.5 for summaries).
      label_smoothing: probability that a label is wrong, in [0, 0.5].

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; log 2 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `label_smoothing` is out of range.

    References:
      Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward
      Model, 2023 (arXiv:2305.18290). Mitchell, A note on DPO with noisy preferences, 2023.
    """
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    in_range("label_smoothing", label_smoothing, low=0.0, high=0.5)
    margin = beta * (chosen - rejected)
    # softplus(z) = softplus(-z) + z: one logarithm serves both labels.
    return softplus(-margin) + label_smoothing * margin


def ipo(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """IPO: the difference of log-ratios of two answers, regressed on a constant.

    loss = (chosen - rejected - 1 / (2 beta))^2. Where `dpo` drives the margin of a pair that is
    always labelled one way to infinity, this one stops it at 1 / (2 beta). Its minimiser is
    reference exp(P(y beats data policy) / beta) / Z: it depends on who drew the pairs.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (tau in the paper).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. An infinite log ratio counts +-20 nats, an
      undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences,
      2023 (arXiv:2310.12036).
    """
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return jnp.square(chosen - rejected - 0.5 / beta)


def plackett_luce(
    scores: Float[Array, "B K"], *, valid: Bool[Array, "B K"] | None = None
) -> Float[Array, "B"]:
    """Negative log-likelihood of rankings: DPO for more than two answers.

    loss = -sum_k (s_k - log sum_{j >= k} exp s_j), for answers in ranked order. With two answers
    and scores `implicit_reward` it is `dpo`.

    Args:
      scores: scores of the K answers of a prompt, BEST FIRST, for example implicit rewards.
      valid: which answers exist, [B, K]; None for all.

    Returns:
      Losses, [B], >= 0; 0 for a row with fewer than two answers.

    Raises:
      ValueError: if `scores` is not of rank 2 or `valid` has another shape.

    References:
      Plackett, The analysis of permutations, 1975. Rafailov et al., 2023 (arXiv:2305.18290),
      appendix A.3.
    """
    _checks.rank("scores", scores, 2, "[B, K], answers of a prompt on the last axis")
    scores = finite(scores)
    valid = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid, bool)
    _checks.same_shape("[B, K]", scores=scores, valid=valid)
    return _ranking(scores, valid)


@jax.custom_jvp
def _ranking(scores: Array, valid: Array) -> Array:
    rest = _running(scores, valid, reverse=True)
    return jnp.sum(jnp.where(valid, rest - scores, 0.0), axis=-1)


@_ranking.defjvp
def _slope(primals, tangents):
    """Derivative in s_k: the expected number of selections of answer k in rounds 1..k, minus 1.

    Automatic differentiation of the loop would keep three arrays of its steps.
    """
    (scores, valid), (direction, _) = primals, tangents
    rounds = _running(-_running(scores, valid, reverse=True), valid)
    chosen = jnp.exp(jnp.where(valid, scores + rounds, -jnp.inf))
    slope = jnp.where(valid, chosen - 1.0, 0.0)
    return _ranking(scores, valid), jnp.sum(slope * direction, axis=-1)


def _running(scores: Array, valid: Array, *, reverse: bool = False) -> Array:
    """log of the sum of exponentials of an answer and all before it, or behind it."""

    def step(total, answer):
        score, exists = answer
        larger, smaller = jnp.maximum(total, score), jnp.minimum(total, score)
        total = jnp.where(exists, larger + softplus(smaller - larger), total)
        return total, total

    # Minus infinity would make the gradient of an empty sum NaN. Answer by answer because XLA's
    # running log-sum-exp is a sum over all the others for each of them on a CPU.
    empty = jnp.full(scores.shape[:1], _ABSENT, scores.dtype)
    return jax.lax.scan(step, empty, (scores.T, valid.T), reverse=reverse)[1].T
