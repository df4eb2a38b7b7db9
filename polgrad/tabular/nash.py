"""Nash equilibria of preference games, exactly: mirror descent, self-play, best responses, and the gap.

A policy is a vector of probabilities [N], a preference a matrix [N, N] with P + P^T = 1. `nash_md_step`
and `self_play_step` are steps of mirror ascent, `regularized_nash` is their limit and `duality_gap` the
distance from it. `soft_policy_iteration` is exact DNO, `fictitious_play` answers the average of
everything played so far, `spin_step` is an exact iteration of self-play fine-tuning.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.tabular.preference import policy_win_rate, win_rates


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


class SelfPlay(NamedTuple):
    """What a run of self-play ends with.

    Attributes:
      last: the policy after the last iteration.
      average: mean of all policies that were played, the first included and the last not.
    """

    last: Float[Array, "N"]
    average: Float[Array, "N"]


def smoothed_policy(
    policy: Float[Array, "N"], reference: Float[Array, "N"], *, reference_weight: float
) -> Float[Array, "N"]:
    """The geometric mixture policy^(1 - w) reference^w / Z of two tabular policies.

    With w = eta tau it is the centre of a step eta of mirror descent whose KL to the reference has
    strength tau (`distributions.geometric_mixture` is the same on logits).

    Args:
      policy: probabilities, [N].
      reference: probabilities, [N].
      reference_weight: w, in [0, 1].

    Returns:
      Probabilities, [N]; uniform where the two have no answer in common.

    Raises:
      ValueError: if shapes differ or the weight lies outside [0, 1].

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886). Rosset et al.,
      Direct Nash Optimization, 2024 (arXiv:2404.03715), algorithm 3.
    """
    in_range("reference_weight", reference_weight, low=0.0, high=1.0)
    _checks.same_shape("[N]", policy=policy, reference=reference)
    logits = _mixture(policy, reference, reference_weight)
    return jax.nn.softmax(jnp.where(jnp.any(logits > -jnp.inf), logits, 0.0))


def soft_policy_iteration(
    policy: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    eta: float,
    iterations: int,
    reference: Float[Array, "N"] | None = None,
    tau: float = 0.0,
) -> SelfPlay:
    """Exact DNO: each policy re-weighted by its answers' win rates against itself.

        next ~ policy exp(eta preference @ policy)

    each step a `self_play_step`: with tau > 0 the policy is first mixed with the reference
    (`smoothed_policy` of weight eta tau). With tau = 0 the average policy tends to the Nash policy,
    and the last policy moves away from an interior Nash policy in a spiral.

    Args:
      policy: probabilities to start from, [N].
      preference: P(i beats j).
      eta: step, > 0. The paper's eta is the reciprocal.
      iterations: number of steps, at least 1.
      reference: probabilities, [N]; None for the policy to start from.
      tau: strength of the KL to the reference, in [0, 1 / eta]; 0 for no KL.

    Returns:
      `SelfPlay(last, average)`.

    Raises:
      ValueError: numbers out of range.

    References:
      Rosset et al., Direct Nash Optimization, 2024 (arXiv:2404.03715). Freund and Schapire,
      Adaptive game playing using multiplicative weights, 1999.
    """
    check_step(eta, tau)
    in_range("iterations", iterations, low=1)
    reference = policy if reference is None else reference

    def play(state, _):
        after = self_play_step(state, reference, preference, eta=eta, tau=tau)
        return after, state

    last, played = jax.lax.scan(play, jnp.asarray(policy), length=iterations)
    return SelfPlay(last, jnp.mean(played, axis=0))


def fictitious_play(
    reference: Float[Array, "N"],
    preference: Float[Array, "N N"],
    *,
    tau: float,
    iterations: int,
) -> SelfPlay:
    """Regularised best responses to the average of everything played so far.

        average_{t+1} = average_t + (best response to average_t - average_t) / (t + 2)

    from the reference. The average tends to the Nash policy of the regularised game.

    Args:
      reference: probabilities, [N].
      preference: P(i beats j).
      tau: strength of the KL to the reference, > 0.
      iterations: number of best responses, at least 1.

    Returns:
      `SelfPlay(last, average)`: the last best response, and the average that includes it.

    Raises:
      ValueError: numbers out of range.

    References:
      Brown, Iterative solution of games by fictitious play, 1951. Heinrich, Lanctot and Silver,
      Fictitious self-play in extensive-form games, 2015. Munos et al., Nash Learning from Human
      Feedback, 2023 (arXiv:2312.00886).
    """
    in_range("tau", tau, low=0.0, above=True)
    in_range("iterations", iterations, low=1)

    def play(state, t):
        best = regularized_best_response(state.average, reference, preference, tau=tau)
        return SelfPlay(best, state.average + (best - state.average) / (t + 2)), None

    start = SelfPlay(jnp.asarray(reference), jnp.asarray(reference))
    return jax.lax.scan(play, start, jnp.arange(iterations))[0]


def judge_pairs(
    preference: Float[Array, "N N"],
    first: Int[Array, "*B"],
    second: Int[Array, "*B"],
    noise: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    """One choice a pair by a judge with the given preferences: 1 if the first answer wins.

    Args:
      preference: P(i beats j).
      first: indices of answers, any shape.
      second: of the answers they are compared with, same shape.
      noise: uniform numbers in [0, 1), same shape, one a comparison.

    Returns:
      1 with probability preference[first, second], else 0, same shape.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("one a pair", first=first, second=second, noise=noise)
    return (noise < preference[first, second]).astype(preference.dtype)


def spin_step(
    policy: Float[Array, "N"], data: Float[Array, "N"], *, lambda_: float
) -> Float[Array, "N"]:
    """One exact iteration of self-play fine-tuning: towards the data, perhaps beyond.

        next = policy (data / policy)^(1 / lambda) / Z

    the minimiser of `losses.dpo` with beta = lambda, chosen answers from the data, rejected ones
    from the policy, and the policy as the reference. lambda = 1 is there in one step; the
    iteration converges for lambda > 1/2, swings back and forth at 1/2 and diverges below: what
    saves a small lambda in practice is that each problem is solved only in part.

    Args:
      policy: probabilities, [N], > 0 wherever the data are.
      data: probabilities, [N].
      lambda_: strength of the KL to the policy, > 0.

    Returns:
      Probabilities, [N]; 0 where data or policy are 0.

    Raises:
      ValueError: if shapes differ or `lambda_` is not positive.

    References:
      Chen et al., Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models,
      2024 (arXiv:2401.01335), theorem 5.4.
    """
    in_range("lambda_", lambda_, low=0.0, above=True)
    _checks.same_shape("[N]", policy=policy, data=data)
    policy, data = jnp.asarray(policy), jnp.asarray(data)
    both = (policy > 0.0) & (data > 0.0)
    now, aim = (jnp.log(jnp.where(both, x, 1.0)) for x in (policy, data))
    return jax.nn.softmax(jnp.where(both, now + (aim - now) / lambda_, -jnp.inf))
