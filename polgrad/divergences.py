"""Divergences between distributions: exact values, sample estimates, generators.

Three things live here and are kept apart on purpose: the *exact* quantities on an enumerated
support (`categorical_kl`, `f_divergence`), the *sample estimates* for
metrics and rewards (`kl_estimate`, `f_divergence_estimate`), and the *generators*
(`FDivergence`) that `losses.f_dpg` turns into policy gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._softplus import softplus
from polgrad.distributions.categorical import log_softmax
from polgrad.ratios import importance_ratio, log_ratio, penalty_log_ratio

__all__ = [
    "FDivergence",
    "alpha",
    "categorical_kl",
    "chi_squared",
    "f_divergence",
    "f_divergence_estimate",
    "forward_kl",
    "jensen_shannon",
    "kl_estimate",
    "reverse_chi_squared",
    "reverse_kl",
    "squared_hellinger",
    "total_variation",
]


def kl_estimate(
    logp: Float[Array, "..."], reference_logp: Float[Array, "..."], *, kind: str = "k3"
) -> Float[Array, "..."]:
    """Estimates KL(policy || reference) from samples of the policy, for metrics and rewards.

    With x = reference_logp - logp: k1 = -x, k2 = x^2 / 2, k3 = exp(x) - 1 - x. Over samples of
    the policy k1 and k3 are unbiased; k1 may be negative, k3 never is and varies less; k2 is
    biased and small where the two policies are close. The result carries no gradient: the right
    *gradient* is another estimator, see `losses.kl_penalty`.

    Args:
      logp: log-probabilities of the samples under the policy that drew them, in nats.
      reference_logp: the same samples under the reference, same shape.
      kind: "k1", "k2" or "k3".

    Returns:
      Estimates, same shape, stopped. Log ratios are clamped to +-20 nats; where both
      log-probabilities are minus infinity the estimate is 0.

    Raises:
      ValueError: if `kind` is none of the three.

    References:
      Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html).
    """
    _checks.choice("kind", kind, ("k1", "k2", "k3"))
    x = jax.lax.stop_gradient(log_ratio(reference_logp, logp))
    if kind == "k1":
        return -x
    if kind == "k2":
        return 0.5 * jnp.square(x)
    return jnp.expm1(x) - x


def categorical_kl(
    logits: Float[Array, "... V"], reference_logits: Float[Array, "... V"]
) -> Float[Array, "..."]:
    """Exact KL(softmax(logits) || softmax(reference_logits)) over the last axis.

    KL = sum_v p_v (log p_v - log q_v), in nats. Both arguments carry gradients, so that either
    direction can be used as a loss; stop the side that is a fixed teacher or reference.

    Args:
      logits: unnormalised log-probabilities; minus infinity excludes an outcome.
      reference_logits: the same, same shape.

    Returns:
      KL without the last axis, >= 0 up to rounding. The log ratio of one outcome is clamped to
      +-20 nats, its gradient is not: an outcome that only the reference excludes counts 20 nats,
      not infinity, and carries no gradient of the ratio.
    """
    logp, reference_logp = log_softmax(logits), log_softmax(reference_logits)
    # A log ratio stops its second argument; read backwards it carries the reference's gradient.
    backwards = penalty_log_ratio(reference_logp, logp)
    ratio = penalty_log_ratio(logp, reference_logp) - backwards + jax.lax.stop_gradient(backwards)
    return jnp.sum(jnp.exp(logp) * ratio, axis=-1)


class FDivergence(NamedTuple):
    """A generator f of the divergence D_f(policy || target) = E_target[f(policy / target)].

    The POLICY is the first argument and t = policy / target. f is convex with f(1) = 0; adding
    c (t - 1) to f changes neither the divergence nor its gradient.

    Attributes:
      name: for tables and error messages.
      f: t -> f(t), for t > 0.
      f_prime_log: log t -> f'(t), in a form that stays accurate for small and large log t. The
        policy gradient of D_f is E_policy[f'(t) grad log policy].
      f_zero: f(0), the price of target mass that the policy does not cover; may be infinite.
      f_prime_infinity: lim f(u) / u, the price of policy mass outside the target's support; may
        be infinite.
      conjugate: s -> f*(s) = sup_t (t s - f(t)), for s < f_prime_infinity; None where it has no
        closed form here. Outside of the domain t >= 0 the conjugates of total variation (s) and
        Pearson's chi^2 (s + s^2 / 4) are extended analytically.
    """

    name: str
    f: Callable[[Array], Array]
    f_prime_log: Callable[[Array], Array]
    f_zero: float
    f_prime_infinity: float
    conjugate: Callable[[Array], Array] | None = None


# Module-level functions rather than lambdas: their identity is stable, so a divergence can be a
# static argument of `jax.jit` without recompiling.
def _total_variation(t: Array) -> Array:
    # jax differentiates |x| at 0 as 1; the sign form gives 0 there.
    return 0.5 * (1.0 - t) * jnp.sign(1.0 - t)


def _jensen_shannon(t: Array) -> Array:
    return t * jnp.log(2.0 * t / (1.0 + t)) + jnp.log(2.0 / (1.0 + t))


def _forward_kl(t: Array) -> Array:
    return -jnp.log(t)


def _forward_kl_prime(log_t: Array) -> Array:
    return -jnp.exp(-log_t)


def _reverse_kl(t: Array) -> Array:
    return t * jnp.log(t)


def _reverse_kl_prime(log_t: Array) -> Array:
    return log_t + 1.0


def _total_variation_prime(log_t: Array) -> Array:
    return 0.5 * jnp.sign(log_t)


def _jensen_shannon_prime(log_t: Array) -> Array:
    return math.log(2.0) - softplus(-log_t)


def _chi_squared(t: Array) -> Array:
    return jnp.square(1.0 - t) / t


def _chi_squared_prime(log_t: Array) -> Array:
    return -jnp.expm1(-2.0 * log_t)


def _reverse_chi_squared(t: Array) -> Array:
    return jnp.square(t - 1.0)


def _reverse_chi_squared_prime(log_t: Array) -> Array:
    return 2.0 * jnp.expm1(log_t)


def _squared_hellinger(t: Array) -> Array:
    return jnp.square(jnp.sqrt(t) - 1.0)


def _squared_hellinger_prime(log_t: Array) -> Array:
    return -jnp.expm1(-0.5 * log_t)


def _total_variation_conjugate(s: Array) -> Array:
    return s


def _jensen_shannon_conjugate(s: Array) -> Array:
    return -jnp.log(2.0 - jnp.exp(s))


def _forward_kl_conjugate(s: Array) -> Array:
    return -1.0 - jnp.log(-s)


def _reverse_kl_conjugate(s: Array) -> Array:
    return jnp.exp(s - 1.0)


def _reverse_chi_squared_conjugate(s: Array) -> Array:
    return s + 0.25 * jnp.square(s)


def _squared_hellinger_conjugate(s: Array) -> Array:
    return s / (1.0 - s)


forward_kl = FDivergence(
    "forward_kl", _forward_kl, _forward_kl_prime, math.inf, 0.0, _forward_kl_conjugate
)
"""KL(target || policy), f = -log t: covers every mode of the target."""

reverse_kl = FDivergence(
    "reverse_kl", _reverse_kl, _reverse_kl_prime, 0.0, math.inf, _reverse_kl_conjugate
)
"""KL(policy || target), f = t log t: with a reward tilt this is KL-regularised reward."""

total_variation = FDivergence(
    "total_variation",
    _total_variation,
    _total_variation_prime,
    0.5,
    0.5,
    _total_variation_conjugate,
)
"""sum |policy - target| / 2, f = |1 - t| / 2."""

jensen_shannon = FDivergence(
    "jensen_shannon",
    _jensen_shannon,
    _jensen_shannon_prime,
    math.log(2.0),
    math.log(2.0),
    _jensen_shannon_conjugate,
)
"""KL(policy || m) + KL(target || m) with m the midpoint: TWICE the usual Jensen-Shannon."""

chi_squared = FDivergence("chi_squared", _chi_squared, _chi_squared_prime, math.inf, 1.0)
"""chi^2(target || policy) = sum (target - policy)^2 / policy, f = (1 - t)^2 / t."""

reverse_chi_squared = FDivergence(
    "reverse_chi_squared",
    _reverse_chi_squared,
    _reverse_chi_squared_prime,
    1.0,
    math.inf,
    _reverse_chi_squared_conjugate,
)
"""chi^2(policy || target) = sum (policy - target)^2 / target, f = (t - 1)^2."""

squared_hellinger = FDivergence(
    "squared_hellinger",
    _squared_hellinger,
    _squared_hellinger_prime,
    1.0,
    1.0,
    _squared_hellinger_conjugate,
)
"""sum (sqrt(policy) - sqrt(target))^2, f = (sqrt(t) - 1)^2."""


@functools.cache
def alpha(a: float) -> FDivergence:
    """Cressie-Read (Amari) divergence of order a.

    f(t) = (t^a - a t - (1 - a)) / (a (a - 1)) and f'(t) = (t^(a-1) - 1) / (a - 1), with the
    limits t log t - t + 1 at a = 1 and t - 1 - log t at a = 0. So a = 1 is `reverse_kl`, a = 0
    `forward_kl`, a = 2 half of `reverse_chi_squared`, a = -1 half of `chi_squared`, a = 1/2
    twice `squared_hellinger`.

    Args:
      a: the order, a finite float; the useful range is -1 to 2.

    Returns:
      The generator. Equal orders give the same object, so it may be a static jit argument.

    Raises:
      ValueError: if `a` is not finite.

    References:
      Cressie and Read, Multinomial goodness-of-fit tests, 1984.
    """
    a = float(a)
    if not math.isfinite(a):
        raise ValueError(f"a is {a}, expected a finite order of the divergence")
    f_zero = 1.0 / a if a > 0.0 else math.inf
    f_prime_infinity = 1.0 / (1.0 - a) if a < 1.0 else math.inf
    return FDivergence(
        f"alpha({a:g})",
        functools.partial(_alpha, a=a),
        functools.partial(_alpha_prime, a=a),
        f_zero,
        f_prime_infinity,
    )


def _alpha(t: Array, *, a: float) -> Array:
    if a == 1.0:
        return t * jnp.log(t) - t + 1.0
    if a == 0.0:
        return t - 1.0 - jnp.log(t)
    return (t**a - a * t - (1.0 - a)) / (a * (a - 1.0))


def _alpha_prime(log_t: Array, *, a: float) -> Array:
    if a == 1.0:
        return log_t
    return jnp.expm1((a - 1.0) * log_t) / (a - 1.0)


def f_divergence(
    divergence: FDivergence, log_policy: Float[Array, "... N"], log_target: Float[Array, "... N"]
) -> Float[Array, "..."]:
    """Exact D_f(policy || target) over an enumerated support (the last axis).

    D_f = sum_{target > 0} target f(policy / target) + f'(inf) policy({target = 0}).

    Differentiable in both arguments; its gradient in the policy is what `losses.f_dpg` estimates
    from samples.

    Args:
      divergence: the generator, for example `divergences.jensen_shannon`.
      log_policy: normalised log-probabilities of the policy; minus infinity is allowed.
      log_target: normalised log-probabilities of the target; minus infinity is allowed.

    Returns:
      The divergence without the last axis, >= 0, infinite where the generator says so. Finite
      log ratios beyond +-40 nats (+-300 in float64) saturate there.

    References:
      Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
      2023 (arXiv:2302.08215).
    """
    log_policy, log_target = accumulate(log_policy), accumulate(log_target)
    no_policy, no_target = jnp.isneginf(log_policy), jnp.isneginf(log_target)
    both = ~no_policy & ~no_target
    bound = 300.0 if log_policy.dtype == jnp.float64 else 40.0
    # Safe values first, `where` after: a masked infinity must not reach the gradient.
    lp = jnp.where(both, log_policy, 0.0)
    lq = jnp.where(both, log_target, 0.0)
    t = jnp.exp(jnp.clip(lp - lq, -bound, bound))
    # target * f(t) below 1 and policy * f(t) / t above: neither factor overflows.
    small = t <= 1.0
    f_small = divergence.f(jnp.where(small, t, 1.0))
    t_large = jnp.where(small, 1.0, t)
    inside = jnp.where(small, jnp.exp(lq) * f_small, jnp.exp(lp) * divergence.f(t_large) / t_large)
    uncovered = jnp.where(no_policy & ~no_target, _mass(log_target), 0.0)
    outside = jnp.where(no_target & ~no_policy, _mass(log_policy), 0.0)
    total = jnp.sum(jnp.where(both, inside, 0.0), axis=-1)
    total += _price(divergence.f_zero, jnp.sum(uncovered, axis=-1))
    return total + _price(divergence.f_prime_infinity, jnp.sum(outside, axis=-1))


def f_divergence_estimate(
    divergence: FDivergence,
    logp: Float[Array, "..."],
    log_target: Float[Array, "..."],
    behavior_logp: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Estimates D_f(policy || target) from samples of any policy, for metrics.

    estimate = (target / behavior) f(policy / target), whose mean over samples of the behaviour
    policy is the divergence if that policy covers both. One batch serves any number of policies:
    f-DPG's public code measures KL, total variation and (half our) Jensen-Shannon this way.

    Args:
      divergence: the generator; `forward_kl` estimates KL(target || policy).
      logp: log-probabilities of the samples under the policy to measure, in nats.
      log_target: NORMALISED log-probabilities under the target (`distributions.normalize`).
      behavior_logp: log-probabilities under the policy that drew the samples.

    Returns:
      Estimates, same shape, stopped; single ones may be negative. log(policy / target) is clamped
      to +-20 nats, so that an outcome which one of them excludes costs 20 nats where the
      divergence is infinite; so are the importance weights. Where both exclude it, or the target
      is not known yet (plus infinity or NaN), the estimate is 0.

    Raises:
      ValueError: if shapes differ.

    References:
      Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
      2023 (arXiv:2302.08215).
    """
    _checks.same_shape("...", logp=logp, log_target=log_target, behavior_logp=behavior_logp)
    logp, log_target = jax.lax.stop_gradient((accumulate(logp), accumulate(log_target)))
    known = ~(jnp.isnan(log_target) | jnp.isposinf(log_target))
    log_target = jnp.where(known, log_target, -jnp.inf)
    t = jnp.exp(log_ratio(logp, log_target))
    # As in `f_divergence`: the larger of policy and target is the weight.
    small = t <= 1.0
    t_large = jnp.where(small, 1.0, t)
    covered = importance_ratio(log_target, behavior_logp) * divergence.f(jnp.where(small, t, 1.0))
    beyond = importance_ratio(logp, behavior_logp) * divergence.f(t_large) / t_large
    nowhere = jnp.isneginf(logp) & jnp.isneginf(log_target)
    return jnp.where(known & ~nowhere, jnp.where(small, covered, beyond), 0.0)


def _mass(logp: Array) -> Array:
    return jnp.exp(jnp.where(jnp.isneginf(logp), 0.0, logp))


def _price(slope: float, mass: Array) -> Array:
    """slope * mass with inf * 0 = 0, and no gradient through an infinite price."""
    if math.isinf(slope):
        return jax.lax.stop_gradient(jnp.where(mass > 0.0, jnp.inf, 0.0).astype(mass.dtype))
    return slope * mass
