"""Whole runs of exact self-play, last and average policy: what iterative methods approximate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.games.nash_md import _mixture, check_step, regularized_best_response, self_play_step

__all__ = [
    "SelfPlay",
    "fictitious_play",
    "judge_pairs",
    "smoothed_policy",
    "soft_policy_iteration",
    "spin_step",
]


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
