"""Curricula as bandits: categories of prompts are arms, paid by how much there is to learn.

One step of a self-evolving curriculum, from the advantages [B, T] that the policy update has
computed anyway and the category of every sample:

    paid = category_mean(absolute_advantage(advantages, mask), category, categories=C)
    state = update(state, paid.mean, paid.count, alpha=0.5)
    category = sample_categories(boltzmann(state.values, tau=0.2), noise)

The payments need every sample, groups that are all right or all wrong included: their zeros are
what moves the curriculum away. Take them before any filter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.advantages import group_relative
from polgrad.distributions.draws import inverse_cdf
from polgrad.masking import masked_mean

__all__ = [
    "BanditState",
    "CategoryMean",
    "absolute_advantage",
    "boltzmann",
    "category_mean",
    "easy_to_hard",
    "epsilon_greedy",
    "init",
    "normalized",
    "progress",
    "reverse",
    "sample_categories",
    "uniform",
    "unnormalized",
    "update",
]


class BanditState(NamedTuple):
    """What a bandit curriculum remembers.

    Attributes:
      values: estimate of what a sample of each category pays.
      counts: samples seen of each category.
    """

    values: Float[Array, "C"]
    counts: Float[Array, "C"]


class CategoryMean(NamedTuple):
    """Means over the samples of each category.

    Attributes:
      mean: 0 for a category without samples.
      count: samples behind it.
    """

    mean: Float[Array, "C"]
    count: Float[Array, "C"]


def init(categories: int) -> BanditState:
    """The state before any sample: values 0, so that `boltzmann` starts uniform.

    Args:
      categories: C, >= 1.

    Returns:
      The state.

    Raises:
      ValueError: if `categories` is below 1.
    """
    in_range("categories", categories, low=1)
    return BanditState(jnp.zeros(categories), jnp.zeros(categories))


def update(
    state: BanditState,
    rewards: Float[Array, "C"],
    count: Num[Array, "C"],
    *,
    alpha: float = 0.5,
    decay_unseen: bool = False,
) -> BanditState:
    """Updates the exponential average of the rewards of each category.

    value <- (1 - alpha) value + alpha reward, for categories with samples; the others keep their
    value. `decay_unseen` gives them a reward of 0 instead, as the authors' code does: a category
    then fades while it is not visited.

    Args:
      state: from `init` or the last `update`.
      rewards: mean payment of each category in this batch (see `category_mean`).
      count: samples of each category in this batch.
      alpha: step, in [0, 1]; 1 keeps the last reward alone.
      decay_unseen: whether a category without samples counts as one that paid 0.

    Returns:
      The next state; no gradient flows through it. What stands in `rewards` at a category
      without samples is ignored; a payment that is NaN counts as no sample.

    Raises:
      ValueError: if shapes differ or `alpha` is out of range.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970).
    """
    _checks.rank("rewards", rewards, 1, "[C], one value a category")
    _checks.same_shape("[C]", rewards=rewards, count=count, values=state.values)
    in_range("alpha", alpha, low=0.0, high=1.0)
    seen = (jnp.asarray(count) > 0) & jnp.isfinite(rewards)
    paid = jnp.where(seen, accumulate(rewards), 0.0)
    moved = (1.0 - alpha) * state.values + alpha * paid
    values = moved if decay_unseen else jnp.where(seen, moved, state.values)
    counts = state.counts + jnp.where(seen, accumulate(count), 0.0)
    return BanditState(*jax.lax.stop_gradient((values, counts)))


def boltzmann(
    values: Float[Array, "... C"], *, tau: float, mask: Bool[Array, "... C"] | None = None
) -> Float[Array, "... C"]:
    """Probabilities exp(value / tau) / Z.

    With values in [0, 1] and tau = 1 the odds of two categories are at most e; far below 0.1 one
    category may take all samples and starve the next one.

    Args:
      values: one a category, on the last axis.
      tau: temperature, > 0, in units of the values.
      mask: categories that have prompts; all by default.

    Returns:
      Probabilities, same shape; 0 where masked, all 0 where everything is.

    Raises:
      ValueError: if `tau` is not positive or `mask` has another shape.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970).
    """
    in_range("tau", tau, low=0.0, above=True)
    values, mask = _masked(values, mask)
    peak = jnp.max(jnp.where(mask, values, -jnp.inf), axis=-1, keepdims=True)
    gap = jnp.where(mask, values - jnp.where(mask, peak, 0.0), 0.0)
    return _normalized(jnp.where(mask, jnp.exp(gap / tau), 0.0))


def normalized(
    values: Float[Array, "... C"], *, floor: float = 0.01, mask: Bool[Array, "... C"] | None = None
) -> Float[Array, "... C"]:
    """Probabilities proportional to max(value, floor).

    Args:
      values: one a category, on the last axis.
      floor: least weight of a category, > 0.
      mask: categories that have prompts; all by default.

    Returns:
      Probabilities, same shape; 0 where masked, all 0 where everything is.

    Raises:
      ValueError: if `floor` is not positive or `mask` has another shape.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970), code.
    """
    in_range("floor", floor, low=0.0, above=True)
    values, mask = _masked(values, mask)
    return _normalized(jnp.where(mask, jnp.maximum(values, floor), 0.0))


def epsilon_greedy(
    values: Float[Array, "... C"],
    *,
    epsilon: float = 0.1,
    mask: Bool[Array, "... C"] | None = None,
) -> Float[Array, "... C"]:
    """Probability 1 - epsilon for the best category, epsilon for one at random.

    Args:
      values: one a category, on the last axis.
      epsilon: share of random choices, in [0, 1].
      mask: categories that have prompts; all by default.

    Returns:
      Probabilities, same shape; categories that tie for best share equally; 0 where masked, all
      0 where everything is.

    Raises:
      ValueError: if `epsilon` is out of range or `mask` has another shape.
    """
    in_range("epsilon", epsilon, low=0.0, high=1.0)
    values, mask = _masked(values, mask)
    values = jnp.where(mask, values, -jnp.inf)
    best = mask & (values == jnp.max(values, axis=-1, keepdims=True))
    greedy, random = (_normalized(x.astype(values.dtype)) for x in (best, mask))
    return (1.0 - epsilon) * greedy + epsilon * random


def uniform(categories: int) -> Float[Array, "C"]:
    """The random curriculum: equal probabilities.

    Args:
      categories: C, >= 1.

    Returns:
      Probabilities, [C].

    Raises:
      ValueError: if `categories` is below 1.
    """
    in_range("categories", categories, low=1)
    return jnp.full(categories, 1.0 / categories)


def easy_to_hard(step: Int[Array, ""] | int, *, steps: int, categories: int) -> Float[Array, "C"]:
    """The ordered curriculum: all mass on category floor(step C / steps), an equal share each.

    Args:
      step: number of the update, from 0; from `steps` on it is the last category's turn.
      steps: length of the curriculum, >= 1.
      categories: C, in order of difficulty, easiest first.

    Returns:
      Probabilities, [C].

    Raises:
      ValueError: if `steps` or `categories` is below 1.
    """
    in_range("steps", steps, low=1)
    in_range("categories", categories, low=1)
    turn = jnp.clip(jnp.asarray(step) * categories // steps, 0, categories - 1)
    return jax.nn.one_hot(turn, categories)


def reverse(step: Int[Array, ""] | int, *, steps: int, categories: int) -> Float[Array, "C"]:
    """The reversed curriculum: `easy_to_hard` from the hardest category down.

    Args:
      step: number of the update, from 0; from `steps` on it is the first category's turn.
      steps: length of the curriculum, >= 1.
      categories: C, in order of difficulty, easiest first.

    Returns:
      Probabilities, [C].

    Raises:
      ValueError: if `steps` or `categories` is below 1.
    """
    return easy_to_hard(step, steps=steps, categories=categories)[::-1]


def sample_categories(
    probabilities: Float[Array, "C"], noise: Float[Array, "B"]
) -> Int[Array, "B"]:
    """Draws the category of every prompt of a batch, independently.

    Args:
      probabilities: of the categories, [C], >= 0, not all 0; need not sum to 1.
      noise: uniform in [0, 1), one a prompt: `jax.random.uniform(key, (B,))`, or addressed by
        prompt.

    Returns:
      Categories, [B], int32, in 0..C-1; never one of probability 0.

    Raises:
      ValueError: if an argument is not of rank 1.
    """
    _checks.rank("probabilities", probabilities, 1, "[C], one value a category")
    _checks.rank("noise", noise, 1, "[B], one value a prompt")
    tokens, _ = inverse_cdf(accumulate(probabilities)[None], jnp.asarray(noise)[None])
    return tokens[0]


def category_mean(
    values: Float[Array, "N"],
    category: Int[Array, "N"],
    *,
    categories: int,
    valid: Bool[Array, "N"] | None = None,
) -> CategoryMean:
    """Mean over the samples of each category, pooled over its prompts.

    Args:
      values: one a sample.
      category: of each sample, in 0..categories-1; samples outside are left out.
      categories: C, >= 1.
      valid: samples that count; all by default. A value that is not finite never counts.

    Returns:
      `CategoryMean(mean, count)`, [C] each.

    Raises:
      ValueError: if shapes differ or `categories` is below 1.
    """
    _checks.rank("values", values, 1, "[N], one value a sample")
    _checks.same_shape("[N]", values=values, category=category)
    in_range("categories", categories, low=1)
    values = accumulate(values)
    counted = jnp.isfinite(values)
    if valid is not None:
        _checks.same_shape("[N]", values=values, valid=valid)
        counted &= jnp.asarray(valid) != 0
    # An index below 0 would wrap around; one above is dropped by the segment sum.
    place = jnp.where(category < 0, categories, category)
    pair = jnp.stack([jnp.where(counted, values, 0.0), counted.astype(values.dtype)], axis=-1)
    total, count = jax.ops.segment_sum(pair, place, num_segments=categories).T
    return CategoryMean(total / jnp.maximum(count, 1.0), count)


def absolute_advantage(
    advantages: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """The reward of a sample for a curriculum: the mean of |advantage| over its tokens.

    The norm of the policy gradient grows with it. For a reward of 0 or 1 with success
    probability p and advantages of unit variance it is 2 sqrt(p (1 - p)) on average: the bandit
    looks for prompts that succeed half of the time.

    Args:
      advantages: [B, T], or [B, 1] when all tokens share one.
      mask: 1 where a token counts, [B, T].

    Returns:
      [B], float32 or wider; 0 for a row without a valid token.

    Raises:
      ValueError: if the shapes do not fit.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970).
    """
    _checks.token_advantages(advantages, mask)
    size = jnp.broadcast_to(jnp.abs(accumulate(advantages)), jnp.shape(mask))
    return jax.lax.stop_gradient(masked_mean(size, mask, axis=-1))


def unnormalized(
    rewards: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Float[Array, "... G"]:
    """Another payment: |reward - mean reward of the group|, not divided by the deviation.

    For a reward of 0 or 1 it is 2 p (1 - p) on average, so it falls off faster on both sides of
    one half than `absolute_advantage`.

    Args:
      rewards: one a sample, the G samples of a prompt on the last axis.
      valid: True where a reward exists; all by default.

    Returns:
      Payments, same shape; 0 for invalid samples.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970), code.
    """
    return jax.lax.stop_gradient(jnp.abs(group_relative(rewards, scale="none", valid=valid)))


def progress(
    mean: Float[Array, "C"], count: Num[Array, "C"], previous: Float[Array, "C"]
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Another payment: how far a category's mean reward rose since its last visit.

    Args:
      mean: mean reward of each category in this batch (see `category_mean`).
      count: samples of each category in this batch.
      previous: the second result of the last call; at first, what an untrained policy is
        expected to get, such as 0.

    Returns:
      `(payments, previous)`, [C] each. A category without samples, or with a NaN for a mean,
      is paid 0 and keeps its previous mean.

    Raises:
      ValueError: if shapes differ.

    References:
      Chen et al., Self-Evolving Curriculum for LLM Reasoning, 2025 (arXiv:2505.14970), code.
    """
    _checks.same_shape("[C]", mean=mean, count=count, previous=previous)
    seen = (jnp.asarray(count) > 0) & jnp.isfinite(mean)
    latest = jnp.where(seen, accumulate(mean), accumulate(previous))
    return latest - previous, latest


def _masked(values, mask):
    values = accumulate(values)
    mask = jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask) != 0
    _checks.same_shape("[..., C]", values=values, mask=mask)
    return values, mask


def _normalized(weights):
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0.0, total, 1.0)
