"""Advantages from a group of samples of one prompt, or from the batch they come in.

The group is the last axis and at least one axis stands before it: [prompts, G]. Samples that come
as one flat array are reshaped first, `rewards.reshape(-1, G)`; one group is `rewards[None]`. An
array of rank 1 is refused, because it may be one group or many. `valid` marks the samples whose
reward exists; a reward that is not finite counts as invalid too. Invalid samples enter no statistic
and have advantage 0, and so does the only valid sample of a group.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.advantages.returns import discounted_returns
from polgrad.masking import masked_mean, sequence_sum

__all__ = [
    "above_worst",
    "difficulty_weight",
    "group_relative",
    "leave_one_out",
    "reinforce_plus_plus",
    "remax",
    "success_rate",
    "whiten",
]

_SCALES = ("group", "none", "batch")


def group_relative(
    rewards: Float[Array, "... G"],
    *,
    scale: str = "group",
    ddof: int = 1,
    epsilon: float = 1e-6,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """The group-relative advantage of GRPO and its variants.

        centred = R - mean(R over the group)
        scale "group":  centred / (std(R over the group) + epsilon)     GRPO
        scale "none":   centred                                         Dr. GRPO
        scale "batch":  centred / (std(R over the batch) + epsilon)     Lite PPO

    The batch standard deviation is that of all valid raw rewards about their common mean (not
    of the centred ones), as in TRL's `scale_rewards="batch"`; all leading axes are the batch, so
    call it on the whole batch.

    Args:
      rewards: one a sample, [..., G], the G samples of a prompt on the last axis, rank 2 or more.
      scale: "group", "none" or "batch".
      ddof: 1 divides the sum of squares by n - 1 (the codes), 0 by n (the papers).
      epsilon: added to the standard deviation, non-negative.
      valid: True where a reward exists, same shape; None for all. Rewards that are not finite
        are invalid in any case.

    Returns:
      Advantages [..., G], float32 or wider. 0 for invalid samples, for a group with one valid
      sample, and exactly 0 where all rewards of a group are equal.

    Raises:
      ValueError: unknown scale; ddof not 0 or 1; shapes that differ; rank 0 or 1.

    References:
      Shao et al., DeepSeekMath, 2024 (arXiv:2402.03300).
      Liu et al., Understanding R1-Zero-Like Training, 2025 (arXiv:2503.20783): "none".
      Liu et al., Tricks or traps? (Lite PPO), 2025 (arXiv:2508.08221): "batch".
    """
    in_range("epsilon", epsilon, low=0.0)
    _checks.choice("scale", scale, _SCALES)
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}, expected 0 or 1")
    rewards, valid = _group(rewards, valid)
    centred = _centred(rewards, valid, axis=-1)
    if scale == "none":
        return centred
    if scale == "group":
        deviation = _deviation(centred, valid, ddof=ddof, axis=-1)
    else:
        everything = tuple(range(rewards.ndim))
        deviation = _deviation(
            _centred(rewards, valid, axis=everything), valid, ddof=ddof, axis=everything
        )
    # Equal rewards leave 0 / (0 + epsilon); the guard is for epsilon = 0.
    scaled = deviation + epsilon
    unit = _unit(scaled)  # the gradient of a quotient divides by the square of its divisor
    return centred / unit / jnp.where(scaled > 0, scaled / unit, jnp.inf)


def leave_one_out(
    rewards: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Float[Array, "... G"]:
    """The reward minus the mean reward of the group's other samples (RLOO).

        A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean R),   n valid samples

    The baseline of a sample does not depend on that sample, so REINFORCE stays unbiased.

    Args:
      rewards: one a sample, [..., G].
      valid: True where a reward exists, same shape; None for all. Rewards that are not finite
        are invalid in any case.

    Returns:
      Advantages [..., G], float32 or wider; 0 for invalid samples and for a group with one
      valid sample.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Kool et al., Buy 4 REINFORCE samples, get a baseline for free!, 2019.
      Ahmadian et al., Back to basics, 2024 (arXiv:2402.14740).
    """
    rewards, valid = _group(rewards, valid)
    count = jnp.sum(valid, axis=-1, keepdims=True).astype(rewards.dtype)
    return _centred(rewards, valid, axis=-1) * count / jnp.maximum(count - 1, 1)


def above_worst(
    rewards: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Float[Array, "... G"]:
    """The reward minus the smallest of the group: REINFORCE without a negative gradient.

        A_i = R_i - min_j R_j

    An ablation: no sample is pushed down, good ones are only pushed up more.

    Args:
      rewards: one a sample, [..., G]; standardised ones (`group_relative`) in the paper.
      valid: True where a reward exists, same shape; None for all. Rewards that are not finite
        are invalid in any case.

    Returns:
      Advantages [..., G], float32 or wider, >= 0; 0 for invalid samples.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Tajwar et al., Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data,
      2024 (arXiv:2404.14367).
    """
    rewards, valid = _group(rewards, valid)
    lowest = jnp.min(rewards, axis=-1, keepdims=True, initial=jnp.inf, where=valid)
    return jnp.where(valid, rewards - lowest, 0.0)


def success_rate(
    rewards: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Float[Array, "..."]:
    """Mean reward of each group: with rewards 0 or 1, the share of right answers.

    Call it before any split: a group's rate needs all of its samples.

    Args:
      rewards: one a sample, [..., G].
      valid: True where a reward exists, same shape; None for all. Rewards that are not finite
        are invalid in any case.

    Returns:
      Rates [...], float32 or wider; 0 for a group without a valid sample.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.
    """
    rewards, valid = _group(rewards, valid)
    return masked_mean(rewards, valid, axis=-1)


def difficulty_weight(
    success_rate: Float[Array, "..."], *, scale: str = "group"
) -> Float[Array, "..."]:
    """How much a question of rewards 0 or 1 counts under the advantages of `group_relative`.

        scale "group":  sqrt(p (1 - p))     scale "none":  p (1 - p)

    For any score of the answers, the mean of advantage x score over a group (ddof = 0) is this
    weight times (mean score of the right answers - mean score of the wrong ones): very easy and
    very hard questions hardly count.

    Args:
      success_rate: p, the share of right answers, in [0, 1].
      scale: as in `group_relative`, "group" or "none".

    Returns:
      Weights in [0, 1/2], same shape.

    Raises:
      ValueError: unknown scale.

    References:
      Li et al., DisCO, 2025 (arXiv:2505.12366), proposition 1.
    """
    _checks.choice("scale", scale, ("group", "none"))
    p = accumulate(success_rate)
    variance = p * (1.0 - p)
    if scale == "none":
        return variance
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def remax(
    rewards: Float[Array, "... G"], greedy_rewards: Float[Array, "..."]
) -> Float[Array, "... G"]:
    """The reward minus that of the greedy completion of the same prompt (ReMax).

        A_i = R_i - R_greedy

    Args:
      rewards: one a sample, [..., G].
      greedy_rewards: one a prompt, [...].

    Returns:
      Advantages [..., G], float32 or wider; 0 where either reward is not finite.

    Raises:
      ValueError: greedy_rewards not of the leading shape of rewards.

    References:
      Li et al., ReMax, 2023 (arXiv:2310.10505).
    """
    rewards, valid = _group(rewards, None)
    _checks.shape("greedy_rewards", greedy_rewards, rewards.shape[:-1], "[...]")
    greedy = accumulate(greedy_rewards)[..., None]
    valid &= jnp.isfinite(greedy)
    return jnp.where(valid, rewards - jnp.where(jnp.isfinite(greedy), greedy, 0.0), 0.0)


def whiten(
    advantages: Float[Array, "..."],
    mask: Num[Array, "..."] | Bool[Array, "..."],
    *,
    center: bool = True,
    epsilon: float = 1e-8,
) -> Float[Array, "..."]:
    """Scales valid advantages to unit variance, and by default to zero mean.

        (x - mean) / sqrt(var + epsilon),   or x / sqrt(var + epsilon) with center=False

    Mean and variance are over all valid entries (n - 1 in the variance), so call it on the whole
    batch, before any split.

    Args:
      advantages: any shape.
      mask: 1 where an entry counts, same shape.
      center: whether to subtract the mean.
      epsilon: added to the variance, non-negative.

    Returns:
      Same shape, float32 or wider; 0 where masked. Without any spread (one valid entry, or all
      equal): 0 with center, unchanged without.

    Raises:
      ValueError: if the shapes differ.
    """
    in_range("epsilon", epsilon, low=0.0)
    _checks.same_shape("one mask entry an advantage", advantages=advantages, mask=mask)
    valid = jnp.asarray(mask) != 0
    x = jnp.where(valid, accumulate(advantages), 0.0)
    everything = tuple(range(x.ndim))
    centred = _centred(x, valid, axis=everything)
    deviation = _deviation(centred, valid, ddof=1, axis=everything)
    unit = jnp.maximum(_unit(deviation), 1.0)  # beside epsilon a tiny deviation is none
    variance = jnp.square(deviation / unit)
    spread = variance > 0
    root = jnp.sqrt(jnp.where(spread, variance, 1.0) + epsilon / unit / unit)
    scale = jnp.where(spread, root * unit, 1.0)
    return (centred if center else x) / scale


def reinforce_plus_plus(
    token_rewards: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    discount: float = 1.0,
    group_size: int | None = None,
) -> Float[Array, "B T"]:
    """Token returns whitened over the whole batch (REINFORCE++), critic-free.

        A = whiten(sum_{s >= t} discount^(s - t) r_s)

    With `group_size` ("REINFORCE++-baseline"): the return of a sequence minus the mean of its
    group, the same for all its tokens, then whitened over the tokens of the batch.

    Args:
      token_rewards: usually the sequence's reward on its last valid token and a KL penalty on
        all, [B, T].
      mask: 1 where a token counts, [B, T]; the return passes through holes undiscounted.
      discount: per token, in [0, 1]; with `group_size` the number 1, not traced.
      group_size: samples a prompt; rows are ordered prompt by prompt. None for no group mean.

    Returns:
      Advantages [B, T], float32 or wider; 0 where masked. A row without a valid token, or with
      a valid one whose reward is NaN, is 0 and enters no mean.

    Raises:
      ValueError: shapes that differ; a group size that does not divide B; a discount below 1,
        or a traced one, together with a group size.

    References:
      Hu et al., REINFORCE++, 2025 (arXiv:2501.03262).
    """
    in_range("discount", discount, low=0.0, high=1.0)
    _checks.rank("token_rewards", token_rewards, 2, "[B, T]")
    _checks.same_shape("[B, T]", token_rewards=token_rewards, mask=mask)
    token_rewards = accumulate(token_rewards)
    wrong = (jnp.asarray(mask) != 0) & ~jnp.isfinite(token_rewards)
    mask = jnp.where(jnp.any(wrong, axis=-1, keepdims=True), 0, jnp.asarray(mask))
    if group_size is None:
        return whiten(_returns(token_rewards, discount, mask), mask)
    rows = np.shape(mask)[0]
    if group_size < 1 or rows % group_size:
        raise ValueError(f"group_size is {group_size}, expected a divisor of B = {rows}")
    if isinstance(discount, jax.core.Tracer):
        raise ValueError("discount is traced, expected the number 1 when group_size is given")
    if np.any(discount != 1.0):
        raise ValueError(f"discount is {discount}, expected 1 when group_size is given")
    grouped = "(prompts group) -> prompts group"
    scores = rearrange(sequence_sum(token_rewards, mask), grouped, group=group_size)
    present = rearrange(jnp.any(jnp.asarray(mask) != 0, axis=-1), grouped, group=group_size)
    centred = group_relative(scores, scale="none", valid=present)
    centred = rearrange(centred, "prompts group -> (prompts group) 1")
    return whiten(jnp.broadcast_to(centred, np.shape(mask)), mask)


def _returns(token_rewards, discount, mask):
    """Discounted sums of what follows; without a discount as running sums, which need no loop."""
    if isinstance(discount, int | float) and discount == 1.0:
        valid = jnp.asarray(mask) != 0
        rewards = jnp.where(valid, accumulate(token_rewards), 0.0)
        return jnp.where(valid, jax.lax.cumsum(rewards, axis=1, reverse=True), 0.0)
    discounts = jnp.full(np.shape(mask), discount, accumulate(token_rewards).dtype)
    return discounted_returns(token_rewards, discounts, mask=mask)


def _group(rewards, valid):
    """Rewards with 0 in place of invalid ones, and which are valid."""
    rewards = accumulate(rewards)
    _checks.groups("rewards", rewards)
    finite = jnp.isfinite(rewards)
    if valid is not None:
        _checks.same_shape("[..., G]", rewards=rewards, valid=valid)
        finite &= jnp.asarray(valid) != 0
    return jnp.where(finite, rewards, 0.0), finite


def _centred(x, valid, *, axis):
    """x minus its mean over the valid entries; 0 at the others.

    The smallest valid entry is subtracted first: the float mean of n equal numbers may miss them
    by an ulp, and a division by a standard deviation of that ulp makes advantages of about 1.
    """
    smallest = jnp.min(jnp.where(valid, x, jnp.inf), axis=axis, keepdims=True, initial=jnp.inf)
    shifted = jnp.where(valid, x - jnp.where(jnp.isfinite(smallest), smallest, 0.0), 0.0)
    unit = _unit(jnp.max(jnp.abs(shifted), axis=axis, keepdims=True, initial=0.0))
    mean = jnp.expand_dims(masked_mean(shifted / unit, valid, axis=axis), axis) * unit
    return jnp.where(valid, shifted - mean, 0.0)


def _deviation(centred, valid, *, ddof, axis):
    """Standard deviation of centred entries, 0 (with gradient 0) where there is no spread."""
    count = jnp.sum(valid, axis=axis, keepdims=True)
    unit = _unit(jnp.max(jnp.abs(centred), axis=axis, keepdims=True, initial=0.0))
    squares = jnp.sum(jnp.square(centred / unit), axis=axis, keepdims=True)
    variance = squares / jnp.maximum(count - ddof, 1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)) * unit, 0.0)


def _unit(size):
    """What numbers of this size are divided by before they are squared or summed.

    The square of 1e30 is infinite in float32, and that of 1e-30 is 0. The unit is a power of two,
    so that dividing by it and multiplying by it round nothing, and 1 for sizes whose squares and
    sums are safe, so that ordinary figures are computed as if it were not there.
    """
    size = jax.lax.stop_gradient(size)
    exponent = jnp.frexp(size)[1]
    outside = jnp.isfinite(size) & (size > 0) & (jnp.abs(exponent) > 30)
    return jnp.ldexp(jnp.ones_like(size), jnp.where(outside, jnp.clip(exponent, -120, 120), 0))
