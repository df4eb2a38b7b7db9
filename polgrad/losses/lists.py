"""Losses of a list of answers to one prompt: learning to rank, [..., K].

The scores of the K answers are implicit rewards, beta log(policy / reference), or what a reward model
says; the labels, in [0, 1], say how good the answers are. Every loss of the learning-to-rank
literature is then a preference loss, and with two answers the pairwise ones and ListMLE
(`plackett_luce` of the scores sorted by label) are DPO. Where labels come from, and what a pair is
worth to its list, is in ranking.py. An answer whose score or label is not finite is left out, as is
one that `valid` excludes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses.ranking import answers, lambda_weights
from polgrad.masking import masked_mean
from polgrad.ratios import finite


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


_ABSENT = -1e30


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


def cpl_ranked(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    lambda_: float = 0.5,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """CPL of segments that are ranked among each other: `cpl` of all ordered pairs.

        loss = mean of softplus(lambda S_j - S_i) over all i, j with label_i > label_j

    Args:
      scores: `segment_score` of the segments, [..., K].
      labels: the larger, the better, such as negative regrets, same shape; stopped. Equal labels
        make no pair.
      lambda_: the bias, in [0, 1].
      valid: False for segments to leave out, same shape; None for all.

    Returns:
      Losses, [...], >= 0; 0 without gradient for a list without an ordered pair.

    Raises:
      ValueError: if shapes differ or `lambda_` is out of range.

    References:
      Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639), dense comparisons.
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    _checks.same_shape("[..., K]", scores=scores, labels=labels)
    scores, labels = finite(scores), accumulate(labels)
    ordered = labels[..., :, None] > labels[..., None, :]
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        present = jnp.asarray(valid) != 0
        ordered &= present[..., :, None] & present[..., None, :]
    losses = softplus(lambda_ * scores[..., None, :] - scores[..., :, None])
    return masked_mean(losses, ordered, axis=(-2, -1))
