"""Strengths of the terms beside the policy's: controllers, schedules, the entropy bonus.

Each gives a scalar array that may be traced, so that one compiled step serves a whole run; what a
loss is multiplied with never has to be a Python number.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "Coefficient",
    "adaptive_entropy",
    "adaptive_kl",
    "annealed_coefficient",
    "dynamic_kl_coefficient",
    "entropy_bonus",
]


class Coefficient(NamedTuple):
    """What a controller remembers; start with `Coefficient(jnp.asarray(0.001))`.

    Attributes:
      value: the coefficient for the next update.
    """

    value: Float[Array, ""]


def adaptive_kl(
    state: Coefficient,
    kl: Float[Array, ""],
    samples: Int[Array, ""] | int,
    *,
    target: float = 0.1,
    horizon: float = 10_000.0,
) -> Coefficient:
    """Steers the KL to the reference towards a target (Ziegler's controller).

        coefficient <- coefficient (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon)

    For runs in which no constant strength suits both the beginning and the end.

    Args:
      state: from the last update, or `Coefficient(jnp.asarray(start))`.
      kl: mean KL of the batch, in nats a sample.
      samples: how many samples the batch had.
      target: the wanted KL, in nats a sample, positive.
      horizon: samples over which the coefficient may change by a fifth, positive.

    Returns:
      The next state, stopped; the same one if `kl` is not finite.

    Raises:
      ValueError: target or horizon not positive.

    References:
      Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019 (arXiv:1909.08593).
    """
    in_range("target", target, low=0.0, above=True)
    in_range("horizon", horizon, low=0.0, above=True)
    value = accumulate(state.value)
    known = jnp.isfinite(kl)
    error = jnp.clip(jnp.where(known, kl, target) / target - 1.0, -0.2, 0.2)
    return Coefficient(jax.lax.stop_gradient(value * (1.0 + error * samples / horizon)))


def adaptive_entropy(
    state: Coefficient,
    entropy: Float[Array, ""],
    *,
    target: float = 0.2,
    step: float = 0.005,
    low: float = 0.0,
    high: float = math.inf,
) -> tuple[Coefficient, Float[Array, ""]]:
    """An entropy bonus that works only while the entropy is at or below a target.

        this update's coefficient:  c where entropy <= target, else 0
        c <- clip(c + step where entropy <= target, else c - step;  low, high)

    Keeps the entropy from collapsing without the search for a coefficient that neither does
    nothing nor makes it explode.

    Args:
      state: from the last update, or `Coefficient(jnp.asarray(0.0))`.
      entropy: mean entropy of the policy on this batch, in nats.
      target: the entropy to keep, in nats.
      step: change of c an update, non-negative.
      low: smallest c.
      high: largest c.

    Returns:
      `(next state, coefficient)`, both stopped; the coefficient multiplies `entropy_bonus` of
      this batch. An entropy that is not a number changes nothing and gives 0.

    Raises:
      ValueError: step below 0; low above high.

    References:
      He et al., Skywork Open Reasoner 1, 2025 (arXiv:2505.22312).
    """
    in_range("step", step, low=0.0)
    in_range("low", low, high=high, high_name="high")
    value = accumulate(state.value)
    short, enough = jnp.asarray(entropy) <= target, jnp.asarray(entropy) > target
    moved = value + step * (short.astype(value.dtype) - enough)
    following = Coefficient(jnp.clip(moved, low, high))
    return jax.lax.stop_gradient((following, jnp.where(short, value, 0.0)))


def dynamic_kl_coefficient(
    step: Int[Array, ""] | int,
    *,
    steps: int = 100,
    low: float = 0.04,
    high: float = 0.1,
    explore: float = 0.3,
) -> Float[Array, ""]:
    """GRPO-D's strength of the KL: first down, for exploration, then up, for exploitation.

        w = explore steps,  middle = (low + high) / 2
        low + (middle - low) (w - step) / w             up to step = w
        low + (high - low) (step - w) / (steps - w)     up to step = steps, then constant

    Args:
      step: number of the update, from 0; may be traced.
      steps: length of the run, in updates, positive.
      low: least strength, reached at w. The paper takes 0.04 and 0.1 for counting, 0 and 0.02 for
        geometry.
      high: strength at the end, at least `low`.
      explore: share of the run over which the strength falls, in [0, 1]: at 0 it only rises, from
        `low`, at 1 it only falls.

    Returns:
      The strength, a scalar, float32 or wider.

    Raises:
      ValueError: steps not positive; low above high; explore outside [0, 1].

    References:
      Liu et al., OThink-MR1, 2025 (arXiv:2503.16081), equation 4.
    """
    in_range("steps", steps, low=0.0, above=True)
    in_range("low", low, high=high, high_name="high")
    in_range("explore", explore, low=0.0, high=1.0)
    middle = 0.5 * (low + high)
    places, strengths = jnp.array([0.0, explore * steps, steps]), jnp.array([middle, low, high])
    # Clipped first, so that after a run that only explores the strength stays low.
    return jnp.interp(jnp.clip(accumulate(step), 0.0, steps), places, strengths)


def annealed_coefficient(
    step: Int[Array, ""] | int,
    *,
    initial: float = 5e-3,
    decrement: float = 5e-5,
    floor: float = 1e-3,
) -> Float[Array, ""]:
    """KDRL's strength of the teacher: linear down to a floor.

        max(initial - decrement step, floor)

    Imitation first, reward later. By default the floor is reached at update 80.

    Args:
      step: number of the update, from 0; may be traced.
      initial: strength at update 0.
      decrement: by how much it falls an update, non-negative.
      floor: least strength.

    Returns:
      The strength, a scalar, float32 or wider.

    Raises:
      ValueError: decrement below 0; floor above initial.

    References:
      Xu et al., KDRL, 2025 (arXiv:2506.02208).
    """
    in_range("decrement", decrement, low=0.0)
    in_range("floor", floor, high=initial, high_name="initial")
    return jnp.maximum(initial - decrement * accumulate(step), floor)


def entropy_bonus(
    entropy: Float[Array, "..."], *, coefficient: Float[Array, ""] | float = 0.001
) -> Float[Array, "..."]:
    """The entropy as a reward of its own: a term -coefficient entropy beside the policy's loss.

    Args:
      entropy: exact entropy of the policy at each step (`distributions.entropy` of its
        logits), in nats, any shape; the gradient flows through it.
      coefficient: strength, non-negative; a constant or one from `adaptive_entropy`; stopped.

    Returns:
      Losses, same shape, float32 or wider, to be added before the reduction. The entropy of a
      position that is masked may be anything.

    Raises:
      ValueError: coefficient below 0.

    References:
      Williams and Peng, Function optimization using connectionist reinforcement learning
        algorithms, 1991. Mnih et al., Asynchronous methods for deep reinforcement learning, 2016
        (arXiv:1602.01783).
    """
    in_range("coefficient", coefficient, low=0.0)
    return -jax.lax.stop_gradient(jnp.asarray(coefficient)) * accumulate(entropy)
