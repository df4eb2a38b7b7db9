"""Preference losses without a reference policy: one number a pair, [B].

`simpo` and `alphapo` take mean log-probabilities of tokens, `cpo`, `slic`, `orpo` and `tpo` sums with
imitation of an answer. `cpl` takes two scores of segments of behaviour, which `inputs.segment_score`
makes from log-probabilities.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses.inputs import log_odds
from polgrad.losses.supervised import imitation
from polgrad.ratios import bounded, finite

__all__ = ["alphapo", "cpo", "log_odds", "orpo", "simpo", "slic", "tpo"]


def simpo(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Float[Array, "B"]:
    """SimPO: logistic loss on the difference of AVERAGE log-probabilities, with a margin.

    loss = -log sigmoid(beta (chosen - rejected) - gamma).

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, averages over
        tokens (`masking.masked_mean(token_logp, mask, axis=-1)`), in nats.
      rejected_logp: the same for the other answers of the pairs.
      beta: scale, > 0 (2 to 2.5 in the paper, 10 for some models).
      gamma: the margin, >= 0; 0.3 to 0.8 times beta in the paper.

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. A log-probability of minus infinity counts -20
      nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `gamma` is out of range.

    References:
      Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024
      (arXiv:2405.14734).
    """
    in_range("beta", beta, low=0.0, above=True)
    in_range("gamma", gamma, low=0.0)
    return softplus(gamma - beta * _margin(chosen_logp, rejected_logp))


def alphapo(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    *,
    beta: float = 2.5,
    gamma: float = 0.1,
    alpha: float = 0.25,
) -> Float[Array, "B"]:
    """AlphaPO: SimPO on a bent reward, so that the likelihood of both answers falls less.

    loss = -log sigmoid(beta (g(chosen) - g(rejected)) - gamma), g(x) = (1 - exp(-alpha x)) / alpha

    with g(x) = x, SimPO, in the limit alpha = 0. For alpha > 0 an answer counts the more the less
    likely it is.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, averages over
        tokens (`masking.masked_mean(token_logp, mask, axis=-1)`), in nats.
      rejected_logp: the same for the other answers of the pairs.
      beta: scale, > 0.
      gamma: the margin, >= 0.
      alpha: the bend, in [-4, 4]: beyond, its exponential is out of reach of float32.

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. An average below -20 nats counts -20, with the
      slope that it has there; minus infinity counts -20 and an undefined one 0, without gradient.

    Raises:
      ValueError: if shapes differ, or a number is out of range.

    References:
      Gupta et al., AlphaPO: Reward Shape Matters for LLM Alignment, 2025 (arXiv:2501.03884).
    """
    in_range("beta", beta, low=0.0, above=True)
    in_range("gamma", gamma, low=0.0)
    in_range("alpha", alpha, low=-4.0, high=4.0)
    _margin(chosen_logp, rejected_logp)
    margin = _bent(chosen_logp, alpha) - _bent(rejected_logp, alpha)
    return softplus(gamma - beta * margin)


def _bent(logp: Array, alpha: float) -> Array:
    """(1 - exp(-alpha logp)) / alpha, and logp for alpha = 0."""
    logp = bounded(finite(logp), high=jnp.inf)
    alpha = accumulate(alpha)
    # Both branches of `where` are computed: the unused one must not divide by 0.
    bend = jnp.where(alpha == 0.0, 1.0, alpha)
    return jnp.where(alpha == 0.0, logp, -jnp.expm1(-bend * logp) / bend)


def slic(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    target_logp: Float[Array, "B"],
    *,
    delta: float = 1.0,
    alpha: float = 0.1,
) -> Float[Array, "B"]:
    """SLiC-HF: a hinge on the difference of log-probabilities, plus imitation of a target.

    loss = max(0, delta - chosen + rejected) - alpha target.

    With log-ratios instead, and without the imitation, it is `hinge`.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, SUMS over tokens,
        in nats.
      rejected_logp: the same for the other answers of the pairs.
      target_logp: the same for answers to imitate: of a supervised model in the paper, the
        chosen ones elsewhere.
      delta: the margin that is enough, > 0.
      alpha: weight of the imitation, >= 0.

    Returns:
      Losses, [B], to be averaged over pairs. A log-probability of minus infinity counts -20 nats,
      an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `delta` or `alpha` is out of range.

    References:
      Zhao et al., SLiC-HF: Sequence Likelihood Calibration with Human Feedback, 2023
      (arXiv:2305.10425).
    """
    in_range("delta", delta, low=0.0, above=True)
    in_range("alpha", alpha, low=0.0)
    gap = delta - _margin(chosen_logp, rejected_logp)
    _checks.same_shape("[B]", chosen_logp=chosen_logp, target_logp=target_logp)
    return jnp.where(gap > 0.0, gap, 0.0) + alpha * imitation(target_logp)


def tpo(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    gold_logp: Float[Array, "B"],
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
) -> Float[Array, "B"]:
    """TPO: one step from three answers, preferring one of a pair and imitating a gold one.

    loss = -log sigmoid(beta (chosen - rejected)) - alpha gold.

    `cpo` where the gold answer is the chosen one.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, SUMS over tokens,
        in nats.
      rejected_logp: the same for the other answers of the pairs.
      gold_logp: the same for answers that are better than both.
      beta: scale, > 0.
      alpha: weight of the imitation, >= 0.

    Returns:
      Losses, [B], to be averaged over pairs. A log-probability of minus infinity counts -20 nats,
      an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `alpha` is out of range.

    References:
      Saeidi et al., Triple Preference Optimization, 2024 (arXiv:2405.16681).
    """
    in_range("beta", beta, low=0.0, above=True)
    in_range("alpha", alpha, low=0.0)
    preference = softplus(-beta * _margin(chosen_logp, rejected_logp))
    _checks.same_shape("[B]", chosen_logp=chosen_logp, gold_logp=gold_logp)
    return preference + alpha * imitation(gold_logp)


def cpo(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Float[Array, "B"]:
    """CPO: DPO with a uniform reference, plus imitation of the chosen answer.

    loss = -log sigmoid(beta (chosen - rejected)) - alpha chosen.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, SUMS over tokens,
        in nats.
      rejected_logp: the same for the other answers of the pairs.
      beta: scale, > 0.
      alpha: weight of the imitation, >= 0. Codes average it over all tokens of the batch instead:
        alpha = 0 and `masking.reduce(-token_logp, mask, mode="token")` beside it.

    Returns:
      Losses, [B], to be averaged over pairs. A log-probability of minus infinity counts -20 nats,
      an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `alpha` is out of range.

    References:
      Xu et al., Contrastive Preference Optimization, 2024 (arXiv:2401.08417).
    """
    in_range("beta", beta, low=0.0, above=True)
    in_range("alpha", alpha, low=0.0)
    preference = softplus(-beta * _margin(chosen_logp, rejected_logp))
    return preference + alpha * imitation(chosen_logp)


def orpo(
    chosen_logp: Float[Array, "B"], rejected_logp: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """ORPO: imitation of the chosen answer plus a logistic loss on the ratio of odds.

    loss = -chosen - beta log sigmoid(log_odds(chosen) - log_odds(rejected)).

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, AVERAGES over
        tokens, in nats.
      rejected_logp: the same for the other answers of the pairs.
      beta: weight of the odds, > 0 (lambda in the paper).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. Log-odds stay defined at probabilities 0 and 1
      (`log_odds`).

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Hong et al., ORPO: Monolithic Preference Optimization without Reference Model, 2024
      (arXiv:2403.07691).
    """
    in_range("beta", beta, low=0.0, above=True)
    _margin(chosen_logp, rejected_logp)
    odds = log_odds(chosen_logp) - log_odds(rejected_logp)
    return imitation(chosen_logp) + beta * softplus(-odds)


def _margin(chosen_logp: Array, rejected_logp: Array) -> Array:
    """The difference of two checked log-probabilities, finite."""
    _checks.rank("chosen_logp", chosen_logp, 1, "[B], one value an answer")
    _checks.same_shape("[B]", chosen_logp=chosen_logp, rejected_logp=rejected_logp)
    return finite(chosen_logp) - finite(rejected_logp)


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
