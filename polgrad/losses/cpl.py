"""Contrastive preference learning: preferences between segments of behaviour."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._log_ratio import finite
from polgrad._scalars import in_range
from polgrad.masking import sequence_sum

__all__ = ["cpl", "segment_score"]


def segment_score(
    logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    alpha: float = 0.1,
    discount: float = 1.0,
) -> Float[Array, "B"]:
    """The discounted advantage of a segment that its log-probabilities imply.

    S = alpha sum_t discount^t log policy(a_t | s_t): under maximum entropy the optimal advantage
    IS alpha log policy. Log-ratios to a reference in place of `logp` give CPL-KL.

    Args:
      logp: log-probabilities of the actions, or log-ratios, in nats, [B, T].
      mask: 1 where a step counts, [B, T].
      alpha: temperature, > 0; about one over a few steps, because steps add up.
      discount: per step, in [0, 1].

    Returns:
      Scores, [B]; 0 for a segment without a valid step. An infinite log-probability counts +-20
      nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `alpha` or `discount` is out of range.

    References:
      Hejna et al., Contrastive Preference Learning: Learning from Human Feedback without RL, 2023
      (arXiv:2310.13639).
    """
    in_range("alpha", alpha, low=0.0, above=True)
    in_range("discount", discount, low=0.0, high=1.0)
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    logp = finite(logp)
    steps = jnp.arange(logp.shape[1], dtype=logp.dtype)
    return alpha * sequence_sum(discount**steps * logp, mask)


def cpl(
    chosen_score: Float[Array, "B"], rejected_score: Float[Array, "B"], *, lambda_: float = 0.5
) -> Float[Array, "B"]:
    """CPL: a logistic loss on the scores of two segments, biased towards the data.

    loss = -log sigmoid(chosen - lambda rejected). With lambda < 1 it falls when both segments
    become likelier, which keeps the policy on the actions of the data; lambda = 1 is unbiased.

    Args:
      chosen_score: `segment_score` of the preferred segments.
      rejected_score: the same of the others.
      lambda_: the bias, in [0, 1].

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. An infinite score counts +-20, an undefined
      one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `lambda_` is out of range.

    References:
      Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639).
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    _checks.rank("chosen_score", chosen_score, 1, "[B], one value a segment")
    _checks.same_shape("[B]", chosen_score=chosen_score, rejected_score=rejected_score)
    return jax.nn.softplus(lambda_ * finite(rejected_score) - finite(chosen_score))
