"""Losses of given answers: supervised fine-tuning and its reverse.

`imitation` is the negative log-likelihood of answers, `f_sft` the same with an f-divergence that holds
the policy to the model it starts from; `unlikelihood` lowers the probability of given tokens.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from polgrad import _checks, divergences
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.inputs import implicit_reward
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
