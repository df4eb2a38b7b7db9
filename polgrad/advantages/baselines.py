"""Further baselines of outcome rewards: weighted by length, of several rewards, of best-of-k.

As in groups.py the group is the last axis, a reward that is not finite counts as invalid, and
invalid samples enter no statistic and have advantage 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks, running
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.advantages.groups import group_relative

__all__ = [
    "batch_baseline",
    "gdpo",
    "gpg",
    "moving_average_baseline",
    "opo",
    "pass_at_k",
]


def opo(
    rewards: Float[Array, "... G"],
    lengths: Num[Array, "... G"],
    *,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """The reward minus the group's mean reward weighted by length (OPO).

        A_i = R_i - sum_j n_j R_j / sum_j n_j,   n completion lengths

    The baseline of least variance weighs a reward by the squared norm of its gradient, which for
    a sum over tokens grows about like the length. For strictly on-policy training.

    Args:
      rewards: one a sample, [..., G].
      lengths: completion lengths in tokens, non-negative, same shape.
      valid: True where a reward exists, same shape; None for all.

    Returns:
      Advantages [..., G], float32 or wider; 0 for invalid samples, for a group with one valid
      sample or without any token, and exactly 0 where all rewards of a group are equal.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Hao et al., On-policy RL with optimal reward baseline, 2025 (arXiv:2505.23585).
    """
    _checks.same_shape("[..., G]", rewards=rewards, lengths=lengths)
    centred = group_relative(rewards, scale="none", valid=valid)
    present = _present(rewards, valid)
    weights = jnp.where(present, accumulate(lengths), 0.0)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0)
    shift = jnp.sum(weights * centred, axis=-1, keepdims=True) / total
    return jnp.where(present & jnp.any(weights > 0, axis=-1, keepdims=True), centred - shift, 0.0)


def gpg(
    rewards: Float[Array, "... G"],
    *,
    scale: float = 1.0,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """Centred rewards, scaled up for the groups that teach nothing (GPG).

        A_i = alpha (R_i - mean R) / scale,   alpha = samples / samples in groups with a spread

    A group whose rewards are all equal has no gradient and dilutes the mean of the batch; alpha
    rescales so that the gradient does not shrink when many groups are uniform. For `reinforce`
    losses; call it on the whole batch.

    Args:
      rewards: one a sample, [..., G]; all leading axes are the batch.
      scale: a constant divisor, positive.
      valid: True where a reward exists, same shape; None for all.

    Returns:
      Advantages [..., G], float32 or wider; 0 for invalid samples and in groups without a spread.

    Raises:
      ValueError: scale not positive; shapes that differ; rank 0 or 1.

    References:
      Chu et al., GPG: A simple and strong reinforcement learning baseline for model reasoning,
        2025 (arXiv:2504.02546). A widespread port counts the samples of reward other than 0
        instead, which depends on where the rewards' zero is.
    """
    in_range("scale", scale, low=0.0, above=True)
    centred = group_relative(rewards, scale="none", valid=valid)
    present = _present(rewards, valid)
    spread = jnp.any(centred != 0, axis=-1, keepdims=True)
    useful = jnp.sum(present & spread)
    alpha = jnp.sum(present) / jnp.maximum(useful, 1)
    return alpha.astype(centred.dtype) * centred / scale


def pass_at_k(
    rewards: Float[Array, "... G"],
    *,
    scale: str = "group",
    epsilon: float = 1e-6,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """What each sample adds to the best reward of its group: the gradient of best-of-k.

        A_i = max_j R_j - max_{j != i} R_j,   for scale "group" over (std(R) + epsilon)

    Only the best of a group has one, by its lead over the second. With scale "none" REINFORCE on
    it is unbiased for the expected maximum of G samples (for rewards 0 or 1: pass@G), with a
    leave-one-out baseline.

    Args:
      rewards: one a sample, [..., G], G = k.
      scale: "group", "none" or "batch", as in `group_relative`.
      epsilon: added to the standard deviation, non-negative.
      valid: True where a reward exists, same shape; None for all.

    Returns:
      Advantages [..., G], float32 or wider, non-negative; 0 where two samples share the best
      reward, for invalid samples and for a group with one valid sample.

    Raises:
      ValueError: unknown scale; shapes that differ; rank 0 or 1.

    References:
      Tang et al., Optimizing language models for inference time objectives using reinforcement
        learning, 2025 (arXiv:2503.19595).
    """
    x = group_relative(rewards, scale=scale, epsilon=epsilon, valid=valid)
    present = _present(rewards, valid)
    best = jnp.max(x, axis=-1, keepdims=True, where=present, initial=-jnp.inf)
    leads = present & (x == best)
    second = jnp.max(x, axis=-1, keepdims=True, where=present & ~leads, initial=-jnp.inf)
    alone = (jnp.sum(leads, axis=-1, keepdims=True) == 1) & jnp.isfinite(second)
    return jnp.where(leads & alone, x - jnp.where(alone, second, 0.0), 0.0)


def gdpo(
    rewards: Float[Array, "K ... G"],
    weights: Float[Array, "K"],
    *,
    epsilon: float = 1e-4,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """Several rewards, each normalised in its group, then summed and normalised over the batch.

        A = normalise over the batch(sum_k weight_k group_relative(R_k))

    If the rewards are summed first, different combinations of rewards can get equal advantages, and
    the reward with the largest variance dominates. Call it on the whole batch.

    Args:
      rewards: K rewards a sample, [K, ..., G].
      weights: of the rewards, [K].
      epsilon: added to each standard deviation, non-negative.
      valid: True where a sample counts, [..., G]; None for all.

    Returns:
      Advantages [..., G], float32 or wider. A reward that is not finite is left out of its
      group's statistics and adds nothing to its sample; a sample without any finite reward is
      invalid and has advantage 0.

    Raises:
      ValueError: shapes that do not match; fewer than three axes.

    References:
      Liu et al., GDPO: Group reward-decoupled normalization policy optimization, 2026
        (arXiv:2601.05242).
    """
    rewards = accumulate(rewards)
    if rewards.ndim < 3:
        raise ValueError(
            f"rewards has shape {list(rewards.shape)}, expected [K, ..., G], at least rank 3 "
            "(write "
            "rewards.reshape(K, -1, G) for groups of G samples one after the other)"
        )
    _checks.shape("weights", weights, (rewards.shape[0],), "[K]")
    present = jnp.isfinite(rewards)
    if valid is not None:
        _checks.shape("valid", valid, rewards.shape[1:], "[..., G]")
        present &= jnp.asarray(valid) != 0
    each = group_relative(rewards, epsilon=epsilon, valid=present)
    total = jnp.tensordot(accumulate(weights), each, axes=1)
    # The whole batch as one group.
    whole = group_relative(
        total.reshape(1, -1), epsilon=epsilon, valid=jnp.any(present, axis=0).reshape(1, -1)
    )
    return whole.reshape(total.shape)


def batch_baseline(
    rewards: Float[Array, "..."], *, valid: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """The reward minus the mean reward of the batch: REINFORCE's plainest baseline.

    Args:
      rewards: one a sample, any shape; call it on the whole batch.
      valid: True where a reward exists, same shape; None for all.

    Returns:
      Advantages, same shape, float32 or wider; 0 for invalid samples and for a batch with one
      valid sample.

    Raises:
      ValueError: if the shapes differ.

    References:
      Williams, Simple statistical gradient-following algorithms, 1992.
    """
    present = _present(rewards, valid)
    flat = jnp.reshape(jnp.asarray(rewards), (1, -1))
    centred = group_relative(flat, scale="none", valid=present.reshape(1, -1))
    return centred.reshape(np.shape(rewards))


def moving_average_baseline(
    state: running.ExponentialState,
    rewards: Float[Array, "..."],
    *,
    decay: float = 0.95,
    valid: Bool[Array, "..."] | None = None,
) -> tuple[running.ExponentialState, Float[Array, "..."]]:
    """The reward minus a moving average of the rewards of earlier batches.

        A = R - total / weight
        total <- decay total + (1 - decay) mean R,   weight <- decay weight + (1 - decay)

    The baseline has not seen the samples it is subtracted from, so that REINFORCE stays unbiased
    even with one sample a batch; the division by the weight removes the bias of the initial 0.

    Args:
      state: from `running.exponential().init()` or the last call.
      rewards: one a sample, any shape.
      decay: weight of the past, in [0, 1); 0 keeps the last batch alone.
      valid: True where a reward exists, same shape; None for all.

    Returns:
      `(next state, advantages)`, the advantages of the shape of `rewards`, 0 for invalid
      samples. A batch without a valid sample leaves the state as it is.

    Raises:
      ValueError: shapes that differ; decay outside [0, 1).

    References:
      Williams, Simple statistical gradient-following algorithms, 1992 (reinforcement comparison).
    """
    average = running.exponential(decay)
    present = _present(rewards, valid)
    fixed = jnp.where(present, accumulate(jax.lax.stop_gradient(rewards)), 0.0)
    following = average.update(state, fixed.ravel(), valid=present.ravel())
    return following, jnp.where(present, fixed - average.value(state), 0.0)


def _present(rewards, valid):
    """Which rewards exist."""
    present = jnp.isfinite(jnp.asarray(rewards))
    if valid is not None:
        _checks.same_shape("one flag a sample", rewards=rewards, valid=valid)
        present &= jnp.asarray(valid) != 0
    return present


def effective_positive_fraction(
    fraction: Float[Array, "..."] | float, baseline: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Share of positives that a baseline makes a +-1 data set look like.

    Replacing R = +-1 by R - c weighs positives by 1 - c and negatives by 1 + c, as if the share
    p of positives were p (1 - c) / (1 + c (1 - 2 p)).

    Args:
      fraction: p, the share of positive samples, in [0, 1].
      baseline: c, in [-1, 1].

    Returns:
      The effective share, in [0, 1]; p itself where the weights of all samples vanish (c = 1
      without negatives, c = -1 without positives).

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    p, c = accumulate(fraction), accumulate(baseline)
    positive, negative = p * (1.0 - c), (1.0 - p) * (1.0 + c)
    total = positive + negative
    return jnp.where(total > 0.0, positive / jnp.where(total > 0.0, total, 1.0), p)


def baseline_for_fraction(
    fraction: Float[Array, "..."] | float, target: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """The baseline whose effective share of positives is `target`.

    c = (p - target) / (p + target - 2 p target), the inverse of `effective_positive_fraction`.
    The paper finds 0.1 to 0.2 best whatever p is.

    Args:
      fraction: p, the share of positive samples, in [0, 1].
      target: the wanted effective share, in [0, 1].

    Returns:
      c in [-1, 1]; 0 where every share is the same (both 0 or both 1).

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    p, q = accumulate(fraction), accumulate(target)
    total = p + q - 2.0 * p * q
    return (p - q) / jnp.where(total > 0.0, total, jnp.inf)
