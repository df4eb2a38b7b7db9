"""Likelihood of answers: supervised fine-tuning, its weighted forms and its reverse.

`imitation` is the negative log-likelihood of given answers, `f_sft` the same with an f-divergence that
holds the policy to the model it starts from. `best_of_n` and `reward_weighted` (AWR without a critic)
take all samples of a prompt, [..., G], and fit the best one, or each by its reward: a sample whose
log-probability or reward is not finite is left out, and log(policy / reference) in place of `logp`
shifts the value and not the gradient. `unlikelihood` lowers the probability of given tokens.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks, divergences
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range, limits
from polgrad.losses.inputs import implicit_reward
from polgrad.losses.ranking import answers
from polgrad.ratios import LIMIT, bounded, finite


def imitation(
    logp: Float[Array, "*B"], lengths: Num[Array, "*B"] | None = None
) -> Float[Array, "*B"]:
    """The negative log-likelihood of given answers: supervised fine-tuning.

    loss = -logp, or -logp / lengths. The term that keeps the likelihood of good answers up beside
    a preference loss (`rpo`). For the mean over all tokens of a batch, which long answers
    dominate, use `masking.reduce(-token_logp, mask, mode="token")`.

    Args:
      logp: log-probabilities of the answers (sums over tokens) or of tokens, any shape.
      lengths: numbers of tokens, same shape, to average over each answer; None for sums.

    Returns:
      Losses, same shape. An answer of length 0 is divided by 1. A log-probability of minus
      infinity counts -20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ.
    """
    loss = -finite(logp)
    if lengths is None:
        return loss
    _checks.same_shape("one length an answer", logp=logp, lengths=lengths)
    return loss / jnp.maximum(accumulate(jax.lax.stop_gradient(lengths)), 1.0)


def f_sft(
    logp: Float[Array, "*B"],
    reference_logp: Float[Array, "*B"],
    *,
    divergence: divergences.FDivergence = divergences.reverse_chi_squared,
    beta: float = 1.0,
    guard: float = -0.5,
) -> Float[Array, "*B"]:
    """f-SFT: likelihood of demonstrations whose weight falls with the log ratio to the reference.

    loss = -(phi(v) - phi(0)) / beta,   v = beta log(policy / reference),   phi(v) = -f*(-v)

    with f* the convex conjugate of the generator. The weight on -grad log policy is phi'(v),
    at the reference 1 as in plain fine-tuning (1/e for `reverse_kl`):

      total_variation      phi = v                weight 1: plain fine-tuning, up to a constant
      reverse_chi_squared  v - v^2 / 4            1 - v / 2, NEGATIVE beyond v = 2
      squared_hellinger    v / (1 + v)            (1 + v)^-2
      jensen_shannon       log(2 - exp(-v))       1 / (2 exp(v) - 1)
      reverse_kl           -exp(-v - 1)           exp(-v - 1)
      forward_kl           1 + log v              1 / v: needs a guard above 0

    Large beta holds tight, beta to 0 is plain fine-tuning. Of tokens [B, T] or of whole answers
    [B]: for a curved phi these are two losses.

    Args:
      logp: log-probabilities of demonstrated tokens, or answers, under the policy, in nats.
      reference_logp: the same under the model before fine-tuning; stopped.
      divergence: of the policy from the demonstrations; one with a `conjugate`.
      beta: strength of the KL to the reference, > 0.
      guard: v below which phi goes on as its tangent, so that no weight exceeds phi'(guard);
        inside of phi's domain, which begins at -`divergence.f_prime_infinity`. Where that is
        infinite, -20 is taken instead.

    Returns:
      Losses, same shape; 0 where policy = reference. Reduce tokens with their mask. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, `beta` is not positive, `guard` lies outside of phi's domain,
        or the divergence has no conjugate.

    References:
      Wang et al., Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections, 2025
      (arXiv:2507.00018). Garg et al., IQ-Learn, 2021 (arXiv:2106.12142): the conjugates.
    """
    if divergence.conjugate is None:
        raise ValueError(f"divergence is {divergence.name}, expected one with a conjugate")
    _checks.same_shape("one a token or answer", logp=logp, reference_logp=reference_logp)
    begin = -divergence.f_prime_infinity
    in_range("guard", guard, low=begin)
    floor = -LIMIT if math.isinf(begin) else guard
    value, slope = _tangent(divergence, floor)

    def guarded(v):
        low = v < floor
        # The logarithm is not to see what lies outside of its domain, not even in its gradient.
        inside = -divergence.conjugate(-jnp.where(low, jnp.maximum(floor, 0.0) + 1.0, v))
        return jnp.where(low, value + slope * (v - floor), inside)

    v = implicit_reward(logp, reference_logp, beta=beta)
    return (guarded(jnp.zeros_like(v)) - guarded(v)) / beta


def _tangent(divergence: divergences.FDivergence, floor) -> tuple[Array | float, Array | float]:
    """phi(floor) and phi'(floor); numbers in float64 where the floor is a number."""

    def phi(v):
        return -divergence.conjugate(-v)

    if isinstance(floor, jax.core.Tracer):
        return jax.value_and_grad(phi)(accumulate(floor))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        value, slope = map(float, jax.value_and_grad(phi)(jnp.asarray(floor, jnp.float64)))
    if not math.isfinite(slope):
        begin = -divergence.f_prime_infinity
        raise ValueError(f"guard is {floor}, expected more than {begin} for {divergence.name}")
    return value, slope


def unlikelihood(logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """The negative log-likelihood of not choosing a token.

    loss = -log(1 - exp(logp)).

    On the rejected answers of preference pairs, beside the likelihood of the chosen ones, it is
    a baseline for `dpo`. Its slope in logp, p / (1 - p), grows with the token's probability p: a
    token that the policy hardly uses is left alone.

    Args:
      logp: log-probabilities of tokens to avoid under the current policy, in nats, <= 0.

    Returns:
      Losses, same shape, >= 0, float32 or wider. A token of probability 0 contributes 0 without
      gradient. A token of probability above 1 - exp(-20) counts 20 nats and has the slope exp(20),
      that of a token of probability 1 - exp(-20).

    References:
      Welleck et al., Neural Text Generation with Unlikelihood Training, 2019 (arXiv:1908.04319).
      Rafailov et al., Direct Preference Optimization, 2023 (arXiv:2305.18290), as a baseline.
    """
    logp = accumulate(logp)
    # -exp(-20) is where 1 - exp(logp) = exp(-20); nearer to 0 the loss has no more precision.
    return -_log1mexp(bounded(logp, low=-jnp.inf, high=-math.exp(-LIMIT)))


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) for x < 0, without cancellation."""
    near = x > -math.log(2.0)
    small = jnp.where(near, x, -1.0)
    large = jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))


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


def _first(hit):
    """The first True of each row alone."""
    place = jnp.arange(hit.shape[-1], dtype=jnp.float32)
    earliest = jnp.min(jnp.where(hit, place, jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
    return place == earliest
