"""Contrastive preference learning: preferences between segments of behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.masking import masked_mean
from polgrad.ratios import finite

__all__ = ["cpl", "cpl_ranked", "segment_score"]


def cpl(
    chosen_score: Float[Array, "B"],
    rejected_score: Float[Array, "B"],
    *,
    lambda_: float = 0.5,
    label_smoothing: Float[Array, "B"] | float = 0.0,
) -> Float[Array, "B"]:
    """CPL: a logistic loss on the scores of two segments, biased towards the data.

    loss = -(1 - s) log sigmoid(chosen - lambda rejected) - s log sigmoid(rejected - lambda chosen)

    With lambda < 1 it falls when both segments become likelier, which keeps the policy on the
    actions of the data; lambda = 1 is unbiased. With scores of log-ratios, lambda = 1 and one
    step it is `dpo`.

    Args:
      chosen_score: `segment_score` of the preferred segments.
      rejected_score: the same of the others.
      lambda_: the bias, in [0, 1].
      label_smoothing: s, the probability that the other segment is preferred, in [0, 1], a number
        or one a pair; stopped. 0.5 for a tie.

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. An infinite score counts +-20, an undefined
      one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `lambda_` or `label_smoothing` is out of range.

    References:
      Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639).
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    in_range("label_smoothing", label_smoothing, low=0.0, high=1.0)
    _checks.rank("chosen_score", chosen_score, 1, "[B], one value a segment")
    _checks.same_shape("[B]", chosen_score=chosen_score, rejected_score=rejected_score)
    if np.ndim(label_smoothing):
        _checks.same_shape("[B]", chosen_score=chosen_score, label_smoothing=label_smoothing)
    chosen, rejected = finite(chosen_score), finite(rejected_score)
    smoothing = jax.lax.stop_gradient(accumulate(label_smoothing))
    right = softplus(lambda_ * rejected - chosen)
    return (1.0 - smoothing) * right + smoothing * softplus(lambda_ * chosen - rejected)


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
