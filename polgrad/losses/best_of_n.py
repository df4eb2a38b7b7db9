"""Likelihood of the better samples of a group: best-of-N, with and without a push on the others.

The supervised side of preference tuning, next to `reinforce` and `dpo`: three switches (fresh
samples or not, samples used again or not, a negative gradient or not) tell most methods apart.
A sample whose log-probability or reward is not finite is left out, as is one that `valid`
excludes. The losses are sums over tokens; log(policy / reference) in place of `logp` shifts their
value and not their gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._scalars import in_range, limits
from polgrad.losses.ranking import answers
from polgrad.ratios import LIMIT

__all__ = ["OrderedPairs", "best_of_n", "ordered_pairs", "reward_weighted"]


class OrderedPairs(NamedTuple):
    """All pairs of a group, the better answer first, for `dpo`, `ipo` and their relatives.

    Attributes:
      chosen_logratio: of the answers with the higher reward, M = G (G - 1) / 2 pairs.
      rejected_logratio: of the others.
      valid: 1 where the rewards differ by enough.
    """

    chosen_logratio: Float[Array, "... M"]
    rejected_logratio: Float[Array, "... M"]
    valid: Float[Array, "... M"]


def best_of_n(
    logp: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    negative: str = "none",
    negative_weight: float = 1.0,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """Likelihood of the best sample of each prompt, optionally pushing down the worse ones.

        loss = -logp_best + negative_weight x

        "none"   x = 0                                    best-of-N, filtered imitation
        "worst"  x = logp of the worst sample
        "sum"    x = sum of logp over the worse samples
        "mean"   x = their mean

    With G = 2 and "none" it is imitation of the preferred answer (Pref-FT). Without a negative
    part it covers the modes of what was sampled and cannot leave a bad one quickly; with one the
    loss has NO LOWER BOUND: a few steps on fresh samples, or `dpo`, whose push fades.

    Args:
      logp: log-probabilities of the G samples of a prompt, sums over tokens, in nats.
      rewards: what orders them; no gradient flows through an order.
      negative: "none", "worst", "sum" or "mean".
      negative_weight: of the push, non-negative.
      valid: False for samples to leave out; None for none.

    Returns:
      Losses of the prompts, [...], to be averaged over prompts. Of equal best samples the first
      counts; only a reward below theirs makes a sample worse. 0 for a group without a sample.

    Raises:
      ValueError: unknown name; shapes that differ; rank 0 or 1; negative_weight below 0.

    References:
      Tajwar et al., Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data,
      2024 (arXiv:2404.14367).
    """
    _checks.choice("negative", negative, ("none", "worst", "sum", "mean"))
    in_range("negative_weight", negative_weight, low=0.0)
    _checks.groups("logp", logp)
    logp, rewards, counted = answers(valid, logp=logp, rewards=rewards)
    highest = jnp.max(rewards, axis=-1, keepdims=True, initial=-jnp.inf, where=counted)
    loss = -jnp.sum(jnp.where(_first(counted & (rewards == highest)), logp, 0.0), axis=-1)
    if negative == "none":
        return loss
    pushed = counted & (rewards < highest)
    if negative == "worst":
        lowest = jnp.min(rewards, axis=-1, keepdims=True, initial=jnp.inf, where=counted)
        pushed = _first(pushed & (rewards == lowest))
    push = jnp.sum(jnp.where(pushed, logp, 0.0), axis=-1)
    if negative == "mean":
        push /= jnp.maximum(jnp.sum(pushed, axis=-1), 1)
    return loss + negative_weight * push


def reward_weighted(
    logp: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    beta: float = 1.0,
    weight: str = "exponential",
    clip: tuple[float, float] | None = None,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "... G"]:
    """Reward-weighted regression: likelihood of every sample, of good ones more.

        loss_i = -w_i logp_i

        "exponential"  w = exp(reward / beta)                        RWR, AWR
        "sigmoid"      w = sigmoid(reward / beta)
        "softmax"      w = n softmax(reward / beta) over the group   n valid samples

    For fixed samples of the reference "exponential" fits the regularised optimum
    reference exp(reward / beta) / Z by its forward KL. beta to infinity is imitation of all
    samples, up to a factor; beta to 0 with "softmax" is `best_of_n`.

    Args:
      logp: log-probabilities of the G samples of a prompt, sums over tokens, in nats.
      rewards: rewards or advantages; stopped.
      beta: temperature in units of the reward, > 0.
      weight: "exponential", "sigmoid" or "softmax".
      clip: (lowest, highest) weight, 0 <= lowest <= highest; None for no limits.
      valid: False for samples to leave out; None for none.

    Returns:
      Losses, same shape, to be averaged over samples; 0 for those left out. Exponents are
      clamped to +-20.

    Raises:
      ValueError: unknown name; shapes that differ; rank 0 or 1; numbers out of range.

    References:
      Peters and Schaal, Reinforcement learning by reward-weighted regression, 2007. Peng et al.,
      Advantage-Weighted Regression, 2019 (arXiv:1910.00177). Tajwar et al., 2024
      (arXiv:2404.14367).
    """
    _checks.choice("weight", weight, ("exponential", "sigmoid", "softmax"))
    in_range("beta", beta, low=0.0, above=True)
    _checks.groups("logp", logp)
    logp, rewards, counted = answers(valid, logp=logp, rewards=jax.lax.stop_gradient(rewards))
    scaled = rewards / beta
    if weight == "exponential":
        weights = jnp.exp(jnp.clip(scaled, -LIMIT, LIMIT))
    elif weight == "sigmoid":
        weights = jax.nn.sigmoid(scaled)
    else:
        count = jnp.sum(counted, axis=-1, keepdims=True)
        weights = count * jax.nn.softmax(scaled, axis=-1, where=counted)
    if clip is not None:
        limits("clip", clip)
        weights = jnp.clip(weights, *clip)
    return jnp.where(counted, -weights * logp, 0.0)


def ordered_pairs(
    logratio: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    threshold: float = 0.0,
    valid: Bool[Array, "... G"] | None = None,
) -> OrderedPairs:
    """All pairs of the samples of a prompt whose rewards differ by more than a threshold.

    For the pairwise losses on groups; the logistic one of a whole list is `pairwise_logistic`.

    Args:
      logratio: log(policy / reference) of the G samples, sums over tokens, in nats; the gradient
        flows through them.
      rewards: what orders them; no gradient flows through an order.
      threshold: smallest gap that makes a pair, exclusive, >= 0; 0.2 in the paper's offline runs.
      valid: False for samples to leave out; None for none.

    Returns:
      Pairs on the last axis. A pair that is not valid holds zeros, without gradient.

    Raises:
      ValueError: shapes that differ; rank 0 or 1; threshold below 0.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367).
    """
    in_range("threshold", threshold, low=0.0)
    _checks.groups("logratio", logratio)
    logratio, rewards, counted = answers(valid, logratio=logratio, rewards=rewards)
    first, second = jnp.triu_indices(rewards.shape[-1], k=1)
    gap = rewards[..., first] - rewards[..., second]
    made = (jnp.abs(gap) > threshold) & counted[..., first] & counted[..., second]
    swap = gap < 0.0
    chosen = jnp.where(swap, logratio[..., second], logratio[..., first])
    rejected = jnp.where(swap, logratio[..., first], logratio[..., second])
    kept = [jnp.where(made, x, 0.0) for x in (chosen, rejected)]
    return OrderedPairs(*kept, made.astype(rewards.dtype))


def _first(hit):
    """The first True of each row alone."""
    place = jnp.arange(hit.shape[-1], dtype=jnp.float32)
    earliest = jnp.min(jnp.where(hit, place, jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
    return place == earliest
