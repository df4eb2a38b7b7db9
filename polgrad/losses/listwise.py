"""Preference optimisation as learning to rank: losses of a list of labelled answers.

The scores of the K answers to a prompt are implicit rewards, beta log(policy / reference), or
what a reward model says; the labels, in [0, 1], say how good the answers are. Every loss of the
learning-to-rank literature is then a preference loss, and with two answers the pairwise ones and
ListMLE (`plackett_luce` of the scores sorted by label) are DPO. Where the labels come from, and
what a pair is worth to its list, is in ranking.py.

An answer whose score or label is not finite is left out, as is one that `valid` excludes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses.ranking import answers, lambda_weights

__all__ = [
    "lipo",
    "listwise_softmax",
    "pairwise_hinge",
    "pairwise_logistic",
    "pointwise_sigmoid",
    "pointwise_squared",
]


def pairwise_logistic(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    weights: Float[Array, "... K K"] | None = None,
    normalize: bool = False,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """DPO on all pairs of a list that the labels order.

        loss = sum_{label_i > label_j} weight_ij log(1 + exp(s_j - s_i))

    Args:
      scores: one an answer, [..., K], for example `implicit_reward`; the gradient flows through
        them.
      labels: how good each answer is, [..., K]; stopped. Equal labels make no pair.
      weights: of the pairs, [..., K, K], stopped; 1 by default. With `lambda_weights` it is
        `lipo`.
      normalize: whether to divide by the number of pairs of the list that the labels order.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], >= 0, to be averaged over lists; 0 without gradient where no
      pair is ordered.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Burges et al., Learning to rank using gradient descent, 2005. Liu et al., LiPO, 2024
      (arXiv:2402.01878).
    """
    gaps, factors = _pairs(scores, labels, weights, normalize, valid)
    return jnp.sum(factors * softplus(-gaps), axis=(-2, -1))


def pairwise_hinge(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    margin: float = 1.0,
    weights: Float[Array, "... K K"] | None = None,
    normalize: bool = False,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """SLiC on all pairs of a list that the labels order.

        loss = sum_{label_i > label_j} weight_ij max(0, margin - (s_i - s_j))

    Args:
      scores: one an answer, [..., K]; the gradient flows through them.
      labels: how good each answer is, [..., K]; stopped. Equal labels make no pair.
      margin: beyond which a pair has no gradient, in units of the score, >= 0.
      weights: of the pairs, [..., K, K], stopped; 1 by default.
      normalize: whether to divide by the number of pairs of the list that the labels order.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], >= 0; 0 without gradient where no pair is ordered.

    Raises:
      ValueError: shapes that differ; a scalar; a negative margin.

    References:
      Zhao et al., SLiC-HF, 2023 (arXiv:2305.10425). Liu et al., LiPO, 2024 (arXiv:2402.01878).
    """
    in_range("margin", margin, low=0.0)
    gaps, factors = _pairs(scores, labels, weights, normalize, valid)
    return jnp.sum(factors * jnp.where(gaps < margin, margin - gaps, 0.0), axis=(-2, -1))


def lipo(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    ideal: bool = False,
    top: int | None = None,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """LiPO-lambda: the pairs of a list, weighed by what their order is worth to the whole list.

        loss = sum_{label_i > label_j} Delta_ij log(1 + exp(s_j - s_i))

    Delta_ij is the change of the discounted cumulative gain when the two exchange the places
    that the CURRENT scores give them (`lambda_weights`); it has no gradient. Use it when answers
    come ranked or scored in lists; with two answers it is a multiple of `dpo`.

    Args:
      scores: one an answer, [..., K], for example `implicit_reward` (beta 0.05 in the paper);
        the gradient flows through them. Equal scores are placed in the order of the list, so
        shuffle lists that are sorted by label.
      labels: how good each answer is, [..., K], in [0, 1]; stopped. `win_rate_labels` makes them
        from a pairwise ranker, `rank_labels` from places.
      ideal: whether to divide by the list's largest discounted cumulative gain.
      top: number of places that count; None for all.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], >= 0, to be averaged over lists; 0 without gradient where no
      two answers are ordered.

    Raises:
      ValueError: shapes that differ; a scalar; `top` below 1.

    References:
      Liu et al., LiPO: Listwise Preference Optimization through Learning-to-Rank, 2024
      (arXiv:2402.01878).
    """
    weights = lambda_weights(scores, labels, ideal=ideal, top=top, valid=valid)
    return pairwise_logistic(scores, labels, weights=weights, valid=valid)


def listwise_softmax(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Cross-entropy of the softmax of a list to its labels (ListNet).

        loss = -sum_i (label_i / sum_j label_j) log(exp s_i / sum_j exp s_j)

    Args:
      scores: one an answer, [..., K]; the gradient flows through them.
      labels: how good each answer is, [..., K], >= 0; stopped.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], to be averaged over lists; 0 without gradient where the labels
      do not sum to more than 0.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Cao et al., Learning to rank: from pairwise approach to listwise approach, 2007. Liu et
      al., LiPO, 2024 (arXiv:2402.01878).
    """
    scores, labels, valid = answers(valid, scores=scores, labels=jax.lax.stop_gradient(labels))
    total = jnp.sum(labels, axis=-1, keepdims=True)
    target = labels / jnp.where(total > 0.0, total, jnp.inf)
    # A list that is left out whole keeps its zeros: its sum of exponentials is not empty.
    counted = valid | ~jnp.any(valid, axis=-1, keepdims=True)
    normalizer = jax.nn.logsumexp(scores, axis=-1, keepdims=True, where=counted)
    return jnp.sum(target * (normalizer - scores), axis=-1)


def pointwise_squared(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Regression of each score on its label: sum_i (label_i - s_i)^2.

    It pins the scores themselves, where the other losses leave a function of the prompt free.

    Args:
      scores: one an answer, [..., K]; the gradient flows through them.
      labels: how good each answer is, [..., K]; stopped.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], >= 0, to be averaged over lists.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Liu et al., LiPO, 2024 (arXiv:2402.01878).
    """
    scores, labels, _ = answers(valid, scores=scores, labels=jax.lax.stop_gradient(labels))
    return jnp.sum(jnp.square(labels - scores), axis=-1)


def pointwise_sigmoid(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Logistic regression of each score on its label.

        loss = -sum_i label_i log sigmoid(s_i) + (1 - label_i) log sigmoid(-s_i)

    Args:
      scores: one an answer, [..., K]; the gradient flows through them.
      labels: probability that the answer is good, [..., K], in [0, 1]; stopped.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Losses of the lists, [...], >= 0, to be averaged over lists.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Liu et al., LiPO, 2024 (arXiv:2402.01878).
    """
    scores, labels, valid = answers(valid, scores=scores, labels=jax.lax.stop_gradient(labels))
    good, bad = softplus(-scores), softplus(scores)
    return jnp.sum(jnp.where(valid, labels * good + (1.0 - labels) * bad, 0.0), axis=-1)


def _pairs(scores, labels, weights, normalize, valid):
    """Gaps s_i - s_j, [..., K, K], and what each counts: 0 unless i is labelled above j."""
    scores, labels, valid = answers(valid, scores=scores, labels=labels)
    ordered = labels[..., :, None] > labels[..., None, :]
    ordered &= valid[..., :, None] & valid[..., None, :]
    factors = ordered.astype(scores.dtype)
    if weights is not None:
        _checks.shape("weights", weights, ordered.shape, "[..., K, K]")
        factors = jnp.where(ordered, accumulate(jax.lax.stop_gradient(weights)), 0.0)
    if normalize:
        factors /= jnp.maximum(jnp.sum(ordered, axis=(-2, -1), keepdims=True), 1)
    return scores[..., :, None] - scores[..., None, :], factors
