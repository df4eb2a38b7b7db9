"""Exact mirror descent on the KL-regularised preference game.

Players choose policies over N answers; the payoff is P(policy beats opponent) - tau KL(policy ||
reference) + tau KL(opponent || reference). For tau > 0 the Nash equilibrium is unique and solves
policy ~ reference exp(P policy / tau).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._scalars import in_range
from polgrad.games.preference import policy_win_rate, win_rates

__all__ = [
    "duality_gap",
    "nash_md_step",
    "regularized_best_response",
    "regularized_nash",
    "self_play_step",
]


def _log(probabilities: Array) -> Array:
    """The logarithm; minus infinity at 0, with gradient 0."""
    positive = probabilities > 0.0
    return jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1.0)), -jnp.inf)


def _mixture(policy: Array, reference: Array, weight: Array | float) -> Array:
    """Logits of policy^(1 - weight) reference^weight; a zero weight drops its factor whole."""
    return _scaled(1.0 - weight, _log(policy)) + _scaled(weight, _log(reference))


def _scaled(weight: Array | float, logits: Array) -> Array:
    # A product of 0 and -inf is NaN in the gradient too, even in the unused branch of `where`.
    finite = jnp.isfinite(logits)
    weight = jnp.where(jnp.asarray(weight) >= 0.0, weight, 0.0)  # below 0 by rounding
    product = weight * jnp.where(finite, logits, 0.0)
    return jnp.where(finite | (weight == 0.0), product, logits)


def check_step(eta: Array | float, tau: Array | float) -> None:
    """Raises ValueError unless eta > 0 and 0 <= tau <= 1 / eta, up to rounding."""
    in_range("eta", eta, low=0.0, above=True)
    in_range("tau", tau, low=0.0, high=(1.0 + 1e-6) / eta, high_name="1 / eta")


def nash_md_step(
    policy: Float[Array, "N"],
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    eta: float,
    tau: float,
) -> Float[Array, "N"]:
    """One step of Nash-MD: mirror ascent against the mixture of policy and reference.

    mixture ~ policy^(1 - eta tau) reference^(eta tau);
    next ~ mixture exp(eta preference @ mixture).

    With eta_t = 2 / (tau (t + 2)) from policy = reference, KL(equilibrium || policy_T) <=
    8 / (tau^2 (T + 1)). A constant eta stops at a nearby point, O(eta^2) away in KL.

    Args:
      policy: probabilities, [N].
      reference: probabilities, [N]; the result has no mass where it has none (for tau > 0).
      preference: P(i beats j).
      eta: step, > 0, with eta tau <= 1.
      tau: strength of the KL to the reference, >= 0.

    Returns:
      The next policy, [N].

    Raises:
      ValueError: if eta or tau is out of range.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886), section 5.
    """
    check_step(eta, tau)
    logits = _mixture(policy, reference, eta * tau)
    return jax.nn.softmax(logits + eta * win_rates(preference, jax.nn.softmax(logits)))


def self_play_step(
    policy: Float[Array, "N"],
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    eta: float,
    tau: float,
) -> Float[Array, "N"]:
    """One step of regularised mirror descent against the current policy itself.

    next ~ policy^(1 - eta tau) reference^(eta tau) exp(eta preference @ policy). The equilibrium
    is an exact fixed point, but large constant steps cycle where Nash-MD is stable.

    Args:
      policy: probabilities, [N].
      reference: probabilities, [N].
      preference: P(i beats j).
      eta: step, > 0, with eta tau <= 1.
      tau: strength of the KL to the reference, >= 0.

    Returns:
      The next policy, [N].

    Raises:
      ValueError: if eta or tau is out of range.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886).
    """
    check_step(eta, tau)
    logits = _mixture(policy, reference, eta * tau)
    return jax.nn.softmax(logits + eta * win_rates(preference, policy))


def regularized_best_response(
    opponent: Float[Array, "N"],
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    tau: float,
) -> Float[Array, "N"]:
    """The policy that maximises P(policy beats opponent) - tau KL(policy || reference).

    It is reference exp(preference @ opponent / tau) / Z.

    Args:
      opponent: probabilities, [N].
      reference: probabilities, [N].
      preference: P(i beats j).
      tau: strength of the KL to the reference, > 0.

    Returns:
      The best response, [N].

    Raises:
      ValueError: if tau is out of range.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886).
    """
    in_range("tau", tau, low=0.0, above=True)
    return jax.nn.softmax(_log(reference) + win_rates(preference, opponent) / tau)


def duality_gap(
    policy: Float[Array, "N"],
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    tau: float,
) -> Float[Array, ""]:
    """Exploitability of a policy in the regularised game; 0 at the Nash equilibrium alone.

    gap = 2 (tau log sum reference exp(P policy / tau) + tau KL(policy || reference)
             - P(policy beats policy)), and 2 (max_i (P policy)_i - 1/2) for tau = 0.

    Args:
      policy: probabilities, [N]; zero where the reference is (otherwise the gap is infinite).
      reference: probabilities, [N].
      preference: P(i beats j).
      tau: strength of the KL to the reference, >= 0.

    Returns:
      The gap, a scalar >= 0 up to rounding. With tau = 0 the reference has no influence on the
      gap or on its gradient.

    Raises:
      ValueError: if tau is out of range.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886).
    """
    in_range("tau", tau, low=0.0)
    rates = win_rates(preference, policy)
    value = policy_win_rate(preference, policy, policy)
    free = jnp.asarray(tau) == 0.0
    safe = jnp.where(free, 1.0, tau)
    # Both branches of `where` are differentiated: the unused one must not hold log 0.
    anchor = _log(jnp.where(free, 1.0, reference))
    best = safe * jax.nn.logsumexp(anchor + rates / safe)
    held = jnp.where(policy > 0.0, _log(policy) - anchor, 0.0)
    gap = 2.0 * (best + safe * jnp.sum(policy * held) - value)
    return jnp.where(free, 2.0 * (jnp.max(rates) - value), gap)


def regularized_nash(
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    tau: float,
    iterations: int = 20_000,
) -> Float[Array, "N"]:
    """The Nash equilibrium of the regularised game, by predictive mirror descent.

    Each iteration looks ahead with a `self_play_step` and then repeats the step against what it
    saw. With eta = 1 / (1 + tau) the error falls like (1 - eta tau)^iterations, however cyclic
    the game; plain mirror descent needs eta of the order of tau.

    Args:
      reference: probabilities, [N]; the equilibrium has the same support.
      preference: P(i beats j), with P + P^T = 1.
      tau: strength of the KL to the reference, > 0.
      iterations: number of iterations, at least 1; 20 / tau or more for full precision.

    Returns:
      The equilibrium, [N].

    Raises:
      ValueError: if tau or iterations is out of range.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886). Cen, Wei and Chi,
      Fast Policy Extragradient Methods for Competitive Games with Entropy Regularization, 2021
      (arXiv:2105.15186).
    """
    in_range("tau", tau, low=0.0, above=True)
    in_range("iterations", iterations, low=1)
    eta = 1.0 / (1.0 + tau)
    anchor = eta * tau * _log(reference)
    # Win rates are centred at 1/2 (equal up to the normalisation) to keep the logits small.
    centred = preference - 0.5

    def step(_, logits):
        kept = (1.0 - eta * tau) * logits + anchor
        ahead = kept + eta * centred @ jax.nn.softmax(logits)
        return jax.nn.log_softmax(kept + eta * centred @ jax.nn.softmax(ahead))

    return jax.nn.softmax(
        jax.lax.fori_loop(0, iterations, step, jax.nn.log_softmax(_log(reference)))
    )
