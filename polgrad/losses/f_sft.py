"""Supervised fine-tuning that an f-divergence holds to the model it starts from."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks, divergences
from polgrad._scalars import in_range
from polgrad.losses.dpo import implicit_reward
from polgrad.ratios import LIMIT

__all__ = ["f_sft"]


def f_sft(
    logp: Float[Array, "*B"],
    reference_logp: Float[Array, "*B"],
    *,
    divergence: divergences.FDivergence = divergences.reverse_chi_squared,
    beta: float = 1.0,
    guard: float = -0.5,
) -> Float[Array, "*B"]:
    """f-SFT: likelihood of demonstrations whose pull fades as the policy leaves the reference.

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
      Losses, same shape; 0 where policy = reference (for `forward_kl` where its tangent says so).
      Reduce tokens with their mask. An infinite log ratio counts +-20 nats, an undefined one 0,
      both without gradient.

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
    in_range("guard", guard, low=-divergence.f_prime_infinity)
    floor = -LIMIT if math.isinf(divergence.f_prime_infinity) else guard
    value, zero, slope = _tangent(divergence, floor)

    v = implicit_reward(logp, reference_logp, beta=beta)
    low = v < floor
    # The logarithm is not to see what lies outside of its domain, not even in its gradient.
    inside = -divergence.conjugate(-jnp.where(low, max(floor, 0.0) + 1.0, v))
    return (zero - jnp.where(low, value + slope * (v - floor), inside)) / beta


def _tangent(divergence: divergences.FDivergence, floor: float) -> tuple[float, float, float]:
    """phi(floor), phi(0) as the guarded phi has it, and phi'(floor), as numbers."""

    def phi(v):
        return -divergence.conjugate(-v)

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        at = jnp.asarray(floor, jnp.float64)
        value, slope = map(float, (phi(at), jax.grad(phi)(at)))
        zero = float(phi(jnp.zeros_like(at))) if floor <= 0.0 else value - slope * floor
    if not math.isfinite(slope):
        begin = -divergence.f_prime_infinity
        raise ValueError(f"guard is {floor}, expected more than {begin} for {divergence.name}")
    return value, zero, slope
