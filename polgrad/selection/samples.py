"""Which samples and prompts are kept: masks, weights and indices over groups or a pool.

A learned reward is wrong about some samples more often than about others. What a sample is worth
keeping for can be told from its rank in the group, its reward or a score of its prompt.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.distributions.draws import inverse_cdf

_KINDS = ("none", "best", "best_random", "best_worst")


def rank_weights(n: int, *, kind: str = "best_random") -> Float[Array, "N"]:
    """The chance of each rank to be the sample that the filtered policy returns.

        "none"         1/n each
        "best"         the best one
        "best_random"  the best with 1/2, the others share 1/2
        "best_worst"   the best and the worst with 1/2 each

    Args:
      n: samples of a prompt, at least 1.
      kind: one of the four. With two samples the last two are "none", with one all are.

    Returns:
      Probabilities, [n], best rank first.

    Raises:
      ValueError: n below 1; unknown kind.

    References:
      Zhang et al., Policy filtration for RLHF to mitigate noise in reward models, 2024
        (arXiv:2409.06957).
    """
    in_range("n", n, low=1)
    _checks.choice("kind", kind, _KINDS)
    return jnp.diff(_mass(jnp.arange(n + 1.0), jnp.asarray(float(n)), kind))


def filtered_weights(
    rewards: Float[Array, "... N"],
    *,
    kind: str = "best_random",
    valid: Bool[Array, "... N"] | None = None,
) -> Float[Array, "... N"]:
    """The chance of each sample to be the one that the filtered policy returns.

    `rank_weights` of its rank among the valid samples of its prompt; samples of equal reward
    share the weights of the ranks that they fill, which is the mean over random tie-breaking.

    Args:
      rewards: one a sample, the samples of a prompt on the last axis. Only their order counts:
        any increasing map of them gives the same weights.
      kind: as in `rank_weights`.
      valid: True where a reward exists; None for all. Rewards that are not finite are invalid in
        any case.

    Returns:
      Probabilities, same shape, stopped; 0 for invalid samples, all 0 in a group without a valid
      one. For the best and worst of the whole batch, as in a widespread port, flatten it first.

    Raises:
      ValueError: unknown kind; shapes that differ; a scalar.

    References:
      Zhang et al., 2024 (arXiv:2409.06957).
    """
    _checks.choice("kind", kind, _KINDS)
    rewards, valid = _group(rewards, valid)
    other = rewards[..., None, :]
    above = jnp.sum(valid[..., None, :] & (other > rewards[..., None]), axis=-1)
    equal = jnp.sum(valid[..., None, :] & (other == rewards[..., None]), axis=-1)
    n = jnp.sum(valid, axis=-1, keepdims=True)
    above, equal, n = (x.astype(rewards.dtype) for x in (above, equal, jnp.maximum(n, 1)))
    share = (_mass(above + equal, n, kind) - _mass(above, n, kind)) / jnp.maximum(equal, 1)
    return jnp.where(valid, share, 0.0)


def best_and_random(
    rewards: Float[Array, "... N"],
    ties: Float[Array, "... N"],
    noise: Float[Array, "..."],
    *,
    valid: Bool[Array, "... N"] | None = None,
) -> Bool[Array, "... N"]:
    """Keeps the best sample of a prompt and one of the others at random.

    The authors' "filter": two of N samples train, at the cost of two.

    Args:
      rewards: one a sample, the samples of a prompt on the last axis.
      ties: uniform numbers, one a sample, that decide between equal rewards: with the position
        in the group as tie-break, the sampler's order would leak in.
      noise: uniform numbers in [0, 1), one a prompt, that pick the other sample.
      valid: True where a reward exists; None for all.

    Returns:
      True for the samples to keep, same shape: two of each prompt, or as many as are valid.

    Raises:
      ValueError: shapes that do not match; a scalar.

    References:
      Zhang et al., 2024 (arXiv:2409.06957), code.
    """
    rewards, valid = _group(rewards, valid)
    _checks.same_shape("[..., N]", rewards=rewards, ties=ties)
    _checks.shape("noise", noise, rewards.shape[:-1], "[...]")
    best = _extreme(rewards, ties, valid)
    rest = valid & ~best
    place = jnp.floor(accumulate(noise)[..., None] * jnp.sum(rest, axis=-1, keepdims=True))
    return best | (rest & (jnp.cumsum(rest, axis=-1) == place + 1))


def best_and_worst(
    rewards: Float[Array, "... N"],
    ties: Float[Array, "... N"],
    *,
    valid: Bool[Array, "... N"] | None = None,
) -> Bool[Array, "... N"]:
    """Keeps the best and the worst sample of a prompt: where a reward model is most reliable.

    Args:
      rewards: one a sample, the samples of a prompt on the last axis.
      ties: uniform numbers, one a sample, that decide between equal rewards.
      valid: True where a reward exists; None for all.

    Returns:
      True for the samples to keep, same shape: two of each prompt, or as many as are valid.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Zhang et al., 2024 (arXiv:2409.06957).
    """
    rewards, valid = _group(rewards, valid)
    _checks.same_shape("[..., N]", rewards=rewards, ties=ties)
    best = _extreme(rewards, ties, valid)
    return best | _extreme(-rewards, ties, valid & ~best)


def threshold_filter(
    rewards: Float[Array, "..."],
    *,
    high: float = 0.5,
    low: float = -math.inf,
    share: float = 0.0,
    noise: Float[Array, "..."] | None = None,
) -> Bool[Array, "..."]:
    """Keeps samples by the reward itself: above one bound, below another, some of the rest.

        reward > high  or  reward < low  or  noise < share

    The paper's "top" (high alone), "top-bottom" (both bounds) and "top-random" (share = 1/2). The
    bounds are the user's; the paper gives none.

    Args:
      rewards: one a sample, any shape, in the units of the reward model.
      high: rewards above it are kept.
      low: rewards below it are kept.
      share: chance of each other sample to be kept, in [0, 1].
      noise: uniform numbers in [0, 1), one a sample; needed for a share that is not 0.

    Returns:
      True for the samples to keep, same shape; perhaps nowhere, which `masking.weights` bears.
      False for rewards that are not finite.

    Raises:
      ValueError: low above high; share outside [0, 1]; shapes that differ; a share without noise.

    References:
      Zhang et al., 2024 (arXiv:2409.06957), appendix.
    """
    in_range("low", low, high=high, high_name="high")
    in_range("share", share, low=0.0, high=1.0)
    rewards = accumulate(rewards)
    keep = (rewards > high) | (rewards < low)
    if noise is not None:
        _checks.same_shape("...", rewards=rewards, noise=noise)
        keep |= accumulate(noise) < share
    elif isinstance(share, jax.core.Tracer) or share != 0.0:
        raise ValueError(f"noise is None, expected uniform numbers for share = {share}")
    return keep & jnp.isfinite(rewards)


def power_weights(
    rewards: Float[Array, "..."],
    *,
    power: float = 2.0,
    epsilon: float = 1e-8,
    valid: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Weights that grow with the size of the reward: |reward|^power + epsilon.

    For `resample`. Centre the rewards first, so that 0 means "unsure".

    Args:
      rewards: one a sample, any shape.
      power: non-negative; 1, 2 and 3 in the paper.
      epsilon: what a reward of 0 weighs, non-negative.
      valid: True where a reward exists; None for all.

    Returns:
      Weights, same shape, stopped, not normalised; 0 for invalid samples.

    Raises:
      ValueError: power or epsilon below 0; shapes that differ.

    References:
      Zhang et al., 2024 (arXiv:2409.06957).
    """
    in_range("power", power, low=0.0)
    in_range("epsilon", epsilon, low=0.0)
    rewards, valid = _present(rewards, valid)
    return jnp.where(valid, jnp.abs(rewards) ** power + epsilon, 0.0)


def resample(weights: Float[Array, "N"], noise: Float[Array, "B"]) -> Int[Array, "B"]:
    """Draws samples with replacement, each with a chance proportional to its weight.

    Args:
      weights: of the samples, [N], non-negative; need not sum to 1.
      noise: uniform numbers in [0, 1), one a draw.

    Returns:
      Indices, [B], int32, in 0..N-1; never one of weight 0 as long as one is positive.

    Raises:
      ValueError: if an argument is not of rank 1.
    """
    _checks.rank("weights", weights, 1, "[N], one a sample")
    _checks.rank("noise", noise, 1, "[B], one a draw")
    tokens, _ = inverse_cdf(accumulate(weights)[None], jnp.asarray(noise)[None])
    return tokens[0]


def choose(
    weights: Float[Array, "... N"], noise: Float[Array, "... N"], *, count: int = 2
) -> Bool[Array, "... N"]:
    """Draws samples without replacement, one after the other by weight.

    The `count` smallest of -log(noise) / weight: a race of exponential clocks.

    Args:
      weights: of the samples of a prompt, [..., N], non-negative.
      noise: uniform numbers, one a sample, same shape.
      count: how many to take of each prompt, in 1..N.

    Returns:
      True for the samples taken, same shape: `count` of each prompt, or as many as have a
      positive weight. With equal weights all subsets are equally likely.

    Raises:
      ValueError: shapes that differ; a scalar; count outside 1..N.

    References:
      Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006.
    """
    if jnp.ndim(weights) == 0:
        raise ValueError("weights has shape [], expected [..., N] with the samples last")
    _checks.same_shape("[..., N]", weights=weights, noise=noise)
    in_range("count", count, low=1, high=jnp.shape(weights)[-1])
    weights = accumulate(weights)
    positive = weights > 0
    # A uniform number may be 0, whose clock never rings.
    wait = -jnp.log(jnp.maximum(accumulate(noise), jnp.finfo(jnp.float32).tiny))
    wait = jnp.where(positive, wait / jnp.where(positive, weights, 1.0), jnp.inf)
    place = jnp.argsort(jnp.argsort(wait, axis=-1), axis=-1)
    return positive & (place < count)


def _mass(rank, n, kind):
    """Weight of the first `rank` ranks of n."""
    if kind == "none":
        return rank / n
    first = jnp.minimum(rank, 1.0)
    if kind == "best":
        return first
    if kind == "best_worst":
        return 0.5 * first + 0.5 * jnp.maximum(rank - n + 1.0, 0.0)
    others = jnp.maximum(rank - 1.0, 0.0) / jnp.maximum(n - 1.0, 1.0)
    return jnp.where(n > 1, 0.5 * (first + others), first)


def _extreme(rewards, ties, valid):
    """The one valid sample of largest reward, of equal ones the one of largest tie-break."""
    best = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    top = valid & (rewards == best)
    place = jnp.argmax(jnp.where(top, accumulate(ties), -jnp.inf), axis=-1, keepdims=True)
    return top & (jnp.arange(rewards.shape[-1]) == place)


def _present(rewards, valid) -> tuple[Array, Num[Array, "..."]]:
    """Stopped rewards with 0 where there is none, and which exist."""
    rewards = accumulate(jax.lax.stop_gradient(rewards))
    present = jnp.isfinite(rewards)
    if valid is not None:
        _checks.same_shape("one flag a sample", rewards=rewards, valid=valid)
        present &= jnp.asarray(valid) != 0
    return jnp.where(present, rewards, 0.0), present


def _group(rewards, valid):
    if jnp.ndim(rewards) == 0:
        raise ValueError("rewards has shape [], expected [..., N] with the samples last")
    return _present(rewards, valid)


def anna_karenina_select(
    correct: Bool[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Bool[Array, "... G"]:
    """Keeps all wrong samples of a prompt and the first right one.

    Right answers resemble each other, wrong ones are each wrong in their own way. Without the
    cut, prompts that are nearly solved flood an off-policy data set with positives.

    Args:
      correct: whether each of the G samples of a prompt is right.
      valid: whether each sample could be scored; all by default.

    Returns:
      Which samples to keep, same shape. Invalid samples are never kept.

    Raises:
      ValueError: rank 0 or 1.

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    _checks.groups("correct", correct)
    correct = jnp.asarray(correct, bool)
    valid = jnp.ones(correct.shape, bool) if valid is None else jnp.asarray(valid, bool)
    right = correct & valid
    first = right & (jnp.cumsum(right, axis=-1) == 1)
    return valid & (~correct | first)


_WHICH = ("lowest", "middle", "highest")


def select_by_score(
    scores: Float[Array, "N"],
    *,
    count: int,
    which: str = "lowest",
    valid: Bool[Array, "N"] | None = None,
) -> Bool[Array, "N"]:
    """Keeps `count` prompts of a pool by their score, such as the base model's BLEU.

    "lowest" takes the hard prompts, "highest" the easy ones, "middle" the window around the
    median. With uniform noise for scores it is a random subset of the same size. A score from one
    sampled answer is noisy; the mean of several is less so.

    Args:
      scores: one a prompt, [N].
      count: how many to keep, >= 0.
      which: "lowest", "middle" or "highest".
      valid: prompts that may be taken; all by default. Scores that are not finite are invalid in
        any case.

    Returns:
      Which to keep, [N], stopped; all valid ones where there are not more than `count`. Of equal
      scores the earlier prompts are taken.

    Raises:
      ValueError: unknown name; shapes that differ; count below 0.

    References:
      Chang et al., BLEUBERI, 2025 (arXiv:2505.11080): the 5,000 lowest of 50,000.
    """
    _checks.choice("which", which, _WHICH)
    _checks.rank("scores", scores, 1, "[N], one a prompt")
    in_range("count", count, low=0)
    scores = jax.lax.stop_gradient(jnp.asarray(scores))
    usable = jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[N]", scores=scores, valid=valid)
        usable &= jnp.asarray(valid) != 0
    ordered = -scores if which == "highest" else scores
    # Two stable sorts turn scores into places, invalid prompts behind all others.
    order = jnp.argsort(jnp.where(usable, ordered, jnp.inf), stable=True)
    place = jnp.argsort(order)
    first = jnp.maximum(jnp.sum(usable) - count, 0) // 2 if which == "middle" else 0
    return usable & (place >= first) & (place < first + count)


def distillation_mask(
    correct: Bool[Array, "... G"],
    *,
    level: str = "response",
    valid: Bool[Array, "... G"] | None = None,
) -> Bool[Array, "... G"]:
    """Which samples the teacher still has something to say about: those that failed.

        "response":  the wrong ones          "group":  all of a group without a right one

    Args:
      correct: whether each sample of a prompt is right (the verdict, not a shaped reward).
      level: "response" or "group".
      valid: whether a sample could be scored; None for all.

    Returns:
      True where the teacher's term counts, [..., G]; False for invalid samples, which are not
      right ones either.

    Raises:
      ValueError: unknown level; shapes that differ; rank 0 or 1.

    References:
      Xu et al., KDRL, 2025 (arXiv:2506.02208), section 3.4.
    """
    _checks.choice("level", level, ("response", "group"))
    _checks.groups("correct", correct)
    right = jnp.asarray(correct) != 0
    valid = jnp.ones(right.shape, bool) if valid is None else jnp.asarray(valid) != 0
    _checks.same_shape("[..., G]", correct=right, valid=valid)
    right &= valid
    solved = right if level == "response" else jnp.any(right, axis=-1, keepdims=True)
    return valid & ~solved
