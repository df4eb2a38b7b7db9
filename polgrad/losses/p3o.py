"""Pairwise proximal policy optimisation: policy gradients from reward differences alone.

A reward model trained on comparisons is defined up to a constant for each prompt. These losses
see the differences between the samples of one prompt only, so that the constant cancels. Groups
are the last axis; two samples are the paper's pair, more are all their pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite, importance_ratio, penalty_log_ratio

__all__ = ["p3o_v1", "p3o_v2", "pairwise_policy_gradient"]


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
