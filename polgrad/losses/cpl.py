"""Contrastive preference learning: preferences between segments of behaviour."""

import jax
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
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
