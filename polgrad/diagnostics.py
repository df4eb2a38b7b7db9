"""What to watch during training. Separate from the losses: XLA removes the shared work.

All are stopped: a diagnostic that enters a loss by mistake changes no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks, divergences
from polgrad._dtypes import accumulate
from polgrad._scalars import clip_widths
from polgrad.masking import masked_mean, reduce
from polgrad.ratios import importance_ratio

__all__ = [
    "EntropyLaw",
    "RatioStatistics",
    "clip_fraction",
    "effective_sample_size",
    "entropy_change",
    "explained_variance",
    "fit_entropy_law",
    "kl",
    "mean_entropy",
    "ndcg",
    "pair_accuracy",
    "ratio",
]


class RatioStatistics(NamedTuple):
    """Importance ratios over the valid tokens of a batch."""

    mean: Float[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]


def ratio(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
) -> RatioStatistics:
    """Mean, smallest and largest importance ratio exp(logp - behavior_logp).

    For samples of the behaviour policy the mean is 1 in expectation, whatever the policy.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      Three scalars, stopped; all 1 if nothing is valid.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    valid = jnp.asarray(mask) != 0
    ratios = jax.lax.stop_gradient(importance_ratio(logp, behavior_logp))
    some = jnp.any(valid)
    return RatioStatistics(
        mean=jnp.where(some, masked_mean(ratios, valid), 1.0),
        smallest=jnp.where(some, jnp.min(ratios, initial=jnp.inf, where=valid), 1.0),
        largest=jnp.where(some, jnp.max(ratios, initial=0.0, where=valid), 1.0),
    )


def clip_fraction(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, ""]:
    """Share of the valid tokens whose gradient `losses.ppo_clip` cuts off.

    Counts A > 0 with ratio > 1 + clip_high, and A < 0 with ratio < 1 - clip_low; a ratio outside
    the range on the other side keeps its gradient and is not counted.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      advantages: [B, T] or [B, 1].
      mask: 1 where a token counts, [B, T].
      clip_low: how far the ratio may fall below 1, in [0, 1], as in the loss.
      clip_high: how far it may rise above 1, non-negative, as in the loss.

    Returns:
      A scalar in [0, 1], stopped; 0 if nothing is valid.

    Raises:
      ValueError: shapes that do not match; a clip out of range.
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    clip_widths(clip_low, clip_high)
    ratios = jax.lax.stop_gradient(importance_ratio(logp, behavior_logp))
    advantages = jnp.asarray(advantages)
    above = (advantages > 0) & (ratios > 1.0 + clip_high)
    below = (advantages < 0) & (ratios < 1.0 - clip_low)
    return masked_mean(above | below, mask)


def kl(
    logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    kind: str = "k3",
) -> Float[Array, ""]:
    """Mean over the valid tokens of `divergences.kl_estimate`, in nats a token.

    Args:
      logp: log-probabilities under the policy that sampled, in nats, [B, T].
      reference_logp: the same tokens under the reference, [B, T].
      mask: 1 where a token counts, [B, T].
      kind: "k1", "k2" or "k3".

    Returns:
      A scalar, stopped; 0 if nothing is valid.

    Raises:
      ValueError: shapes that differ; unknown kind.
    """
    _checks.same_shape("[B, T]", logp=logp, reference_logp=reference_logp, mask=mask)
    return masked_mean(divergences.kl_estimate(logp, reference_logp, kind=kind), mask)


def mean_entropy(
    entropy: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Token entropies averaged over each sequence, then over the sequences.

    Args:
      entropy: full-vocabulary entropy at each token, in nats, [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      A scalar in nats a token, stopped; rows without a valid token do not count; 0 if none does.

    Raises:
      ValueError: shapes that differ.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 2.
    """
    return reduce(jax.lax.stop_gradient(entropy), mask, mode="sequence")


def pair_accuracy(
    chosen_scores: Float[Array, "..."], rejected_scores: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Whether a score orders each pair as its label does; a tie counts half.

    For the margins of an untrained policy, which are all 0, count margin > 0 instead.

    Args:
      chosen_scores: scores of the preferred answers, any shape.
      rejected_scores: scores of the other answers, same shape.

    Returns:
      1, 1/2 or 0, same shape, stopped, to be averaged over pairs; 1/2 where a score is not a
      number.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("...", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    chosen, rejected = accumulate(chosen_scores), accumulate(rejected_scores)
    right, wrong = (chosen > rejected), (chosen < rejected)
    return 0.5 * (1.0 + right.astype(chosen.dtype) - wrong)


def ndcg(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    top: int | None = None,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Normalised discounted cumulative gain: how well scores rank a list of labelled answers.

        sum_i (2^label_i - 1) / log(1 + place_i) over its largest value

    Answers of equal score share the places that they fill, so that the order of the list does not
    matter: an untrained model has the value of a random ranking.

    Args:
      scores: one an answer, [..., K].
      labels: how good each is, [..., K], in [0, 1].
      top: places beyond it count nothing, at least 1; None for all.
      valid: False for answers to leave out, same shape; scores and labels that are not finite are
        left out in any case.

    Returns:
      [...], in [0, 1], stopped; 0 for a list without a label above 0.

    Raises:
      ValueError: shapes that differ; a scalar; `top` below 1.

    References:
      Jarvelin and Kekalainen, Cumulated gain-based evaluation of IR techniques, 2002. McSherry
      and Najork, Computing information retrieval performance measures efficiently in the
      presence of tied scores, 2008.
    """
    if jnp.ndim(scores) == 0:
        raise ValueError("scores has shape [], expected [..., K] with the list on the last axis")
    if top is not None and top < 1:
        raise ValueError(f"top is {top}, expected None or at least 1")
    _checks.same_shape("[..., K]", scores=scores, labels=labels)
    scores, labels = jax.lax.stop_gradient((accumulate(scores), accumulate(labels)))
    known = jnp.isfinite(scores) & jnp.isfinite(labels)
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        known &= jnp.asarray(valid) != 0
    places = jnp.arange(1, scores.shape[-1] + 1)
    shares = jnp.where(places <= (top or len(places)), 1.0 / jnp.log1p(places), 0.0)
    gains = jnp.where(known, jnp.exp2(jnp.where(known, labels, 0.0)) - 1.0, 0.0)

    def cumulative(order):
        mine, theirs = order[..., :, None], order[..., None, :]
        ahead = jnp.sum((theirs > mine) & known[..., None, :], axis=-1)[..., None]
        tied = jnp.sum((theirs == mine) & known[..., None, :], axis=-1)[..., None]
        filled = (places > ahead) & (places <= ahead + tied)
        return jnp.sum(
            gains * masked_mean(jnp.broadcast_to(shares, filled.shape), filled, axis=-1), axis=-1
        )

    best = cumulative(labels)
    return jnp.where(best > 0, cumulative(scores) / jnp.where(best > 0, best, 1.0), 0.0)


def effective_sample_size(
    log_weights: Float[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."]
) -> Float[Array, ""]:
    """How many equally weighted samples the importance weights are worth.

        (sum w)^2 / sum w^2,   w = exp(log_weights)

    Args:
      log_weights: log importance weights up to a common constant, any shape; minus infinity is
        weight 0.
      mask: 1 where a sample counts, same shape.

    Returns:
      A scalar between 1 and the number of valid samples, stopped; 0 if no weight is positive.

    Raises:
      ValueError: shapes that differ.

    References:
      Kish, Survey sampling, 1965.
    """
    _checks.same_shape("one mask entry a weight", log_weights=log_weights, mask=mask)
    valid = jnp.asarray(mask) != 0
    logs = accumulate(jax.lax.stop_gradient(log_weights))
    logs = jnp.where(valid, logs, -jnp.inf)
    largest = jnp.max(logs, initial=-jnp.inf)
    # The constant cancels; without it exp(100) would overflow in the square.
    w = jnp.exp(logs - jnp.where(jnp.isfinite(largest), largest, 0.0))
    squares = jnp.sum(jnp.square(w))
    return jnp.square(jnp.sum(w)) / jnp.where(squares > 0, squares, 1.0)


def explained_variance(
    values: Float[Array, "..."],
    targets: Float[Array, "..."],
    mask: Num[Array, "..."] | Bool[Array, "..."],
) -> Float[Array, ""]:
    """How much of the targets' variance a critic explains: 1 - Var(target - V) / Var(target).

    Args:
      values: predictions, any shape.
      targets: returns, same shape.
      mask: 1 where an entry counts, same shape.

    Returns:
      A scalar, at most 1, stopped; 0 where the targets do not vary.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("one a state", values=values, targets=targets, mask=mask)
    values, targets = jax.lax.stop_gradient((accumulate(values), accumulate(targets)))

    def variance(x):
        return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)

    total = variance(targets)
    unexplained = variance(targets - values) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, 1.0 - unexplained, 0.0)


def entropy_change(
    logits: Float[Array, "... A"], logit_change: Float[Array, "... A"]
) -> Float[Array, "..."]:
    """First-order change of a softmax policy's entropy when its logits change.

        dH = -Cov_{a ~ pi}(log pi(a), dz_a)

    With a policy-gradient step dz = eta pi A, with a natural one dz = eta A: likely good actions
    lower the entropy, rare good ones raise it.

    Args:
      logits: [..., A]; minus infinity excludes an action.
      logit_change: [..., A].

    Returns:
      [...], in nats, stopped.

    Raises:
      ValueError: shapes that differ.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), lemma 1.
    """
    _checks.same_shape("[..., A]", logits=logits, logit_change=logit_change)
    logits, change = jax.lax.stop_gradient((accumulate(logits), accumulate(logit_change)))
    logp = jax.nn.log_softmax(logits)
    possible = logp > -jnp.inf
    probability = jnp.where(possible, jnp.exp(logp), 0.0)
    logp = jnp.where(possible, logp, 0.0)
    change = jnp.where(possible, change, 0.0)
    centred = change - jnp.sum(probability * change, axis=-1, keepdims=True)
    return -jnp.sum(probability * logp * centred, axis=-1)


class EntropyLaw(NamedTuple):
    """performance = -a exp(entropy) + b; `rmse` is the residual, `ceiling` the value at H = 0."""

    a: float
    b: float
    rmse: float

    @property
    def ceiling(self) -> float:
        """Performance predicted for a policy without entropy: b - a."""
        return self.b - self.a


def fit_entropy_law(
    entropy: Float[np.ndarray, "M"], performance: Float[np.ndarray, "M"]
) -> EntropyLaw:
    """Fits the exchange of entropy for performance: R = -a exp(H) + b, by least squares.

    Args:
      entropy: policy entropy at M moments of a run, in nats, [M].
      performance: validation performance at the same moments, [M].

    Returns:
      (a, b, rmse).

    Raises:
      ValueError: shapes that differ; fewer than three points; an entropy that does not vary.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 1.
    """
    x, y = np.exp(np.asarray(entropy, np.float64)), np.asarray(performance, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"performance has shape {list(y.shape)}, entropy {list(x.shape)}, expected [M] for both"
        )
    if x.size < 3 or np.ptp(x) == 0:
        raise ValueError(
            f"entropy has {x.size} points with {np.unique(x).size} values, expected at least "
            "three points that are not all equal"
        )
    slope, b = np.polynomial.Polynomial.fit(x, y, 1).convert().coef[::-1]
    rmse = np.sqrt(np.mean(np.square(slope * x + b - y)))
    return EntropyLaw(a=float(-slope), b=float(b), rmse=float(rmse))
