"""Losses of all samples of a prompt: the group is the last axis, [..., G].

* Right answers over wrong ones: `disco` and `disco_b` rank scores, which `sequence_score` makes:

      scores = sequence_score(logp, behavior_logp, mask)        [B], reshaped to [Q, G]
      loss = masking.reduce(disco(scores, rewards), ...) + kl_hinge(mean over tokens of behavior_kl)

* Differences of rewards between samples, so that a term of the prompt cancels: `copg_group`,
  `pairwise_policy_gradient`, `p3o_v1`, `p3o_v2`. Two samples are the papers' pair, more are all pairs.

`best_of_n` and `reward_weighted`, which fit the better samples of a prompt, are in supervised.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import log_sigmoid
from polgrad.losses.pairs_online import copg
from polgrad.masking import masked_mean
from polgrad.ratios import finite, importance_ratio, penalty_log_ratio


def disco(
    scores: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    tau: float = 10.0,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """DisCO: right answers over wrong ones, of which the highest-scored weigh most.

        loss = tau log mean_N exp(s / tau) - mean_P s

    P are the answers with reward exactly 1 and N those with reward exactly 0; any other reward
    is in neither. A gradient step lowers the wrong answers by softmax_N(s / tau) (the robust
    form of the gap between them); tau to infinity is `disco_b`, tau to 0 sees the best-scored
    wrong answer alone.

    Args:
      scores: one an answer, [..., G], from `sequence_score`; the gradient flows through them.
      rewards: 0 or 1, [..., G]. An answer whose score is not finite is in neither class.
      tau: temperature in units of the score, > 0 and finite; 10 for "log_l", 1 for "l_ratio".
      valid: False for answers in neither class, such as empty ones, [..., G]; None for none.

    Returns:
      Losses of the questions [...]; 0 without gradient where P or N is empty. The paper averages
      over all questions, empty or not; a reduction over `advantages.dynamic_sampling_filter`
      averages over the others.

    Raises:
      ValueError: shapes that differ; tau out of range.

    References:
      Li et al., 2025 (arXiv:2505.12366), section 4.
    """
    in_range("tau", tau, low=0.0, high=1e30, above=True)
    scores, positive, negative, both = _classes(scores, rewards, valid)
    # log mean exp around the largest: exact for large tau too, where log sum exp is all rounding.
    largest = jnp.max(jnp.where(negative, scores, -jnp.inf), axis=-1, keepdims=True, initial=-1e30)
    largest = jax.lax.stop_gradient(jnp.where(both[..., None], largest, 0.0))
    excess = jnp.where(negative & both[..., None], (scores - largest) / tau, 0.0)
    mean = largest[..., 0] + tau * jnp.log1p(masked_mean(jnp.expm1(excess), negative, axis=-1))
    return jnp.where(both, mean - masked_mean(scores, positive, axis=-1), 0.0)


def disco_b(
    scores: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    surrogate: str = "identity",
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """DisCO-b: the mean over pairs of a surrogate of the gap between right and wrong answers.

        loss = -mean_{i in P, j in N} l(s_i - s_j)

        "identity"       l(x) = x
        "logistic"       l(x) = log sigmoid(x)
        "hinge"          l(x) = -max(1 - x, 0)
        "squared_hinge"  l(x) = -max(1 - x, 0)^2

    Args:
      scores: one an answer, [..., G], from `sequence_score`; the gradient flows through them.
      rewards: 0 or 1, [..., G]; other values are in neither class.
      surrogate: one of the four above.
      valid: False for answers in neither class, [..., G]; None for none.

    Returns:
      Losses of the questions [...]; 0 without gradient where P or N is empty.

    Raises:
      ValueError: shapes that differ; unknown surrogate.

    References:
      Li et al., 2025 (arXiv:2505.12366), section 4.
    """
    _checks.choice("surrogate", surrogate, tuple(_SURROGATES))
    scores, positive, negative, both = _classes(scores, rewards, valid)
    pairs = positive[..., :, None] & negative[..., None, :]
    gaps = jnp.where(pairs, scores[..., :, None] - scores[..., None, :], 0.0)
    gain = masked_mean(_SURROGATES[surrogate](gaps), pairs, axis=(-2, -1))
    return jnp.where(both, -gain, 0.0)


# Non-decreasing functions of the gap. `where` rather than `maximum`: no half slopes at the kink.
_SURROGATES = {
    "identity": lambda gap: gap,
    "logistic": log_sigmoid,
    "hinge": lambda gap: jnp.where(gap < 1.0, gap - 1.0, 0.0),
    "squared_hinge": lambda gap: -jnp.square(jnp.where(gap < 1.0, gap - 1.0, 0.0)),
}


def _classes(scores, rewards, valid):
    """Scores with 0 outside of both classes, the classes, and which questions have both."""
    _checks.same_shape("[..., G]", scores=scores, rewards=rewards)
    _checks.groups("scores", scores)
    rewards = accumulate(rewards)
    positive, negative = rewards == 1.0, rewards == 0.0
    if valid is not None:
        _checks.same_shape("[..., G]", scores=scores, valid=valid)
        present = jnp.asarray(valid) != 0
        positive, negative = positive & present, negative & present
    scores = accumulate(scores)
    known = jnp.isfinite(scores)
    positive, negative = positive & known, negative & known
    scores = jnp.where(positive | negative, scores, 0.0)
    both = jnp.any(positive, axis=-1) & jnp.any(negative, axis=-1)
    return scores, positive, negative, both


def copg_group(
    logratio: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    beta: float,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """CoPG on all pairs of a group: half of `copg`, averaged over a sample's partners.

    loss_i = 1 / (2 (n - 1)) sum_{j != i} copg(i, j), n valid samples.

    The gradient of a group's sum is that of -sum_i sg[A_i] logratio_i, with A the leave-one-out
    advantage of reward - beta logratio: RLOO with the KL in the reward, but valid off-policy.

    Args:
      logratio: log(policy / reference) of the G samples of a prompt, sums over tokens, in nats.
        Stop the gradient of the reference when forming it.
      rewards: their scores; no gradient flows through them.
      beta: strength of the KL to the reference, > 0.
      valid: True where a reward exists; all by default. Rewards that are not finite are invalid
        in any case.

    Returns:
      Losses, same shape, to be averaged over samples; 0 for invalid samples and for a group with
      one valid sample. Two samples sum to the `copg` of the pair.

    Raises:
      ValueError: if shapes differ, of rank 0 or 1, or `beta` is not positive.

    References:
      Flet-Berliac et al., Contrastive Policy Gradient, 2024 (arXiv:2406.19185); for two samples.
    """
    _checks.groups("logratio", logratio)
    logratio, rewards = jnp.asarray(logratio), jnp.asarray(rewards)
    valid = jnp.ones(rewards.shape, bool) if valid is None else jnp.asarray(valid) != 0
    _checks.same_shape("[..., G]", logratio=logratio, rewards=rewards, valid=valid)
    valid &= jnp.isfinite(rewards)
    rewards = jnp.where(valid, rewards, jnp.nan)
    shape = (*rewards.shape, rewards.shape[-1])
    own = [jnp.broadcast_to(x[..., :, None], shape) for x in (logratio, rewards)]
    others = [jnp.broadcast_to(x[..., None, :], shape) for x in (logratio, rewards)]
    pairs = copg(own[0], others[0], own[1], others[1], beta=beta)
    partners = jnp.sum(valid, axis=-1, keepdims=True) - 1
    return jnp.sum(pairs, axis=-1) / (2.0 * jnp.maximum(partners, 1))


def pairwise_policy_gradient(
    logp: Float[Array, "... G"],
    behavior_logp: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """The policy gradient of reward differences, exact off-policy, without a clip.

        loss_i = mean over partners j of  -1/2 stop(r_i r_j) (R_i - R_j) (logp_i - logp_j)
        r = exp(logp - behavior_logp)

    Averaged over samples its expectation has the gradient of minus the expected reward, whatever
    policy drew the samples; on-policy it is RLOO. For tests and for data that are almost
    on-policy: the product of two sequence ratios varies much.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens, in
        nats, [..., G]. Dividing by the length would break the theorem.
      behavior_logp: the same under the policy that drew them; stopped.
      rewards: rewards, minus the price of the KL if there is one
        (`advantages.regularized_rewards`); stopped.
      valid: True where a sample counts; None for all. A reward that is not finite never counts.

    Returns:
      Losses [..., G], to be averaged over samples; 0 for invalid samples and for a group with one
      valid sample. Log ratios are clamped to +-20 nats; where a log-probability is minus infinity
      there is no gradient through it.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Wu et al., Pairwise Proximal Policy Optimization, 2023 (arXiv:2310.00212), theorem 1.
    """
    pairs = _pairs(logp, behavior_logp, rewards, valid)
    ratio = jax.lax.stop_gradient(pairs.ratio[0] * pairs.ratio[1])
    return _mean(-0.5 * ratio * pairs.gap * pairs.logits, pairs)


def p3o_v1(
    logp: Float[Array, "... G"],
    behavior_logp: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    clip: float = 0.2,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """P3O-V1: each sample's ratio clipped on its own.

        loss_i = mean over partners j of
                 -stop(clip(r_j)) min(a r_i, a clip(r_i)),   a = R_i - R_j
        r = exp(logp - behavior_logp),  clip to [1 - clip, 1 + clip]

    Without the clips its gradient is that of `pairwise_policy_gradient`. On-policy its value is
    0: watch rewards and ratios, not the loss.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens, in
        nats, [..., G].
      behavior_logp: the same under the policy that drew them; stopped.
      rewards: rewards, minus the price of the KL if there is one; stopped.
      clip: half width of the trust region of a ratio, non-negative; infinite for none.
      valid: True where a sample counts; None for all. A reward that is not finite never counts.

    Returns:
      Losses [..., G], to be averaged over samples; 0 for invalid samples, for equal rewards and
      for a group with one valid sample. A sample that the current policy excludes has ratio 0.

    Raises:
      ValueError: shapes that differ; rank 0 or 1; clip below 0.

    References:
      Wu et al., Pairwise Proximal Policy Optimization, 2023 (arXiv:2310.00212).
    """
    in_range("clip", clip, low=0.0)
    pairs = _pairs(logp, behavior_logp, rewards, valid)
    own, partner = pairs.ratio
    above, below = (pairs.gap > 0) & (own > 1.0 + clip), (pairs.gap < 0) & (own < 1.0 - clip)
    kept = jnp.where(above, 1.0 + clip, jnp.where(below, 1.0 - clip, own))
    weight = jax.lax.stop_gradient(jnp.clip(partner, 1.0 - clip, 1.0 + clip))
    return _mean(-weight * pairs.gap * kept, pairs)


def p3o_v2(
    logp: Float[Array, "... G"],
    behavior_logp: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    clip: float = 0.2,
    clip_logits: float | None = None,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """P3O-V2: the trust region lies on the log ratio between the two samples, as in DPO.

        loss_i = mean over partners j of
                 -1/2 stop(clip(r_i r_j)) min(a q, a clip(q, q_b - e, q_b + e)),   a = R_i - R_j
        q = logp_i - logp_j, q_b the same of the behaviour policy, e = clip_logits

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens, in
        nats, [..., G].
      behavior_logp: the same under the policy that drew them; stopped.
      rewards: rewards, minus the price of the KL if there is one; stopped.
      clip: the product of the two ratios is clipped to [1 - clip, 1 + clip], non-negative.
      clip_logits: how far q may move, in nats, non-negative; None for `clip`.
      valid: True where a sample counts; None for all. A reward that is not finite never counts.

    Returns:
      Losses [..., G], to be averaged over samples (both samples of a pair have the same); 0 for
      invalid samples, for equal rewards and for a group with one valid sample.

    Raises:
      ValueError: shapes that differ; rank 0 or 1; a clip below 0.

    References:
      Wu et al., Pairwise Proximal Policy Optimization, 2023 (arXiv:2310.00212).
    """
    width = clip if clip_logits is None else clip_logits
    in_range("clip", clip, low=0.0)
    in_range("clip_logits", width, low=0.0)
    pairs = _pairs(logp, behavior_logp, rewards, valid)
    up, down = (pairs.gap > 0) & (pairs.moved > width), (pairs.gap < 0) & (pairs.moved < -width)
    moved = jnp.where(up, width, jnp.where(down, -width, pairs.moved))
    product = jnp.clip(pairs.ratio[0] * pairs.ratio[1], 1.0 - clip, 1.0 + clip)
    weight = jax.lax.stop_gradient(product)
    return _mean(-0.5 * weight * pairs.gap * (pairs.before + moved), pairs)


class _Pairs(NamedTuple):
    """All pairs [..., G, G]: a sample on the last axis but one, its partner on the last."""

    both: Array
    gap: Array
    ratio: tuple[Array, Array]
    before: Array
    moved: Array

    @property
    def logits(self) -> Array:
        return self.before + self.moved


def _pairs(logp, behavior_logp, rewards, valid) -> _Pairs:
    _checks.groups("logp", logp)
    _checks.same_shape("[..., G]", logp=logp, behavior_logp=behavior_logp, rewards=rewards)
    rewards = accumulate(jax.lax.stop_gradient(rewards))
    present = jnp.isfinite(rewards)
    if valid is not None:
        _checks.same_shape("[..., G]", logp=logp, valid=valid)
        present &= jnp.asarray(valid) != 0
    logp, behavior_logp = (jnp.where(present, accumulate(x), 0.0) for x in (logp, behavior_logp))
    rewards = jnp.where(present, rewards, 0.0)
    # As in DPO, the log ratio of two samples is a margin: it is bounded, and keeps its slope.
    ratio, moved = importance_ratio(logp, behavior_logp), penalty_log_ratio(logp, behavior_logp)
    before = jax.lax.stop_gradient(finite(behavior_logp))
    different = ~jnp.eye(rewards.shape[-1], dtype=bool)
    return _Pairs(
        both=present[..., :, None] & present[..., None, :] & different,
        gap=_difference(rewards),
        ratio=(ratio[..., :, None], ratio[..., None, :]),
        before=_difference(before),
        moved=_difference(moved),
    )


def _difference(x):
    return x[..., :, None] - x[..., None, :]


def _mean(loss, pairs):
    """The mean over the partners of each sample."""
    count = jnp.sum(pairs.both, axis=-1)
    return jnp.sum(jnp.where(pairs.both, loss, 0.0), axis=-1) / jnp.maximum(count, 1)
