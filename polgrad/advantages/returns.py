"""Returns and advantages along time: rewards and values in, credit for each step out.

Conventions: `discounts[b, t]` is gamma (1 - terminated), the weight of everything after step t;
it is 0 where the episode ended. `truncated[b, t]` marks a time limit: the episode goes on, but
not in this array (the environment was reset), so the step bootstraps from `final_values[b, t]`,
the value of the true next observation, and no trace runs across. `values[b, T]` is the value
after the last step. `mask` has 0 at positions that are no step at all (tool tokens, padding):
what comes after passes through them unchanged, and their own result is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = ["VTrace", "discounted_returns", "gae", "lambda_returns", "vtrace"]


def discounted_returns(
    rewards: Float[Array, "B T"],
    discounts: Float[Array, "B T"],
    *,
    bootstrap_value: Float[Array, "B"] | None = None,
    truncated: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
    final_values: Float[Array, "B T"] | None = None,
    mask: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Sums of discounted future rewards.

        G_t = r_t + discount_t G_{t+1},             G_T = bootstrap_value
        G_t = r_t + discount_t final_value_t        where truncated

    Args:
      rewards: reward of each step, [B, T].
      discounts: gamma (1 - terminated), in [0, 1], [B, T].
      bootstrap_value: value after the last step, [B]; None for 0.
      truncated: 1 where a time limit cut the episode, [B, T]; None for nowhere.
      final_values: value of the true next observation, [B, T], read where truncated.
      mask: 1 where there is a step, [B, T]; None for everywhere.

    Returns:
      Returns [B, T], float32 or wider; 0 where masked.

    Raises:
      ValueError: shapes that do not match; truncated without final_values or the reverse.

    References:
      Sutton and Barto, Reinforcement learning, 2018, chapter 3.
    """
    steps = _steps(rewards, discounts, truncated, final_values, mask)
    if bootstrap_value is None:
        after = jnp.zeros(steps.rewards.shape[0], steps.rewards.dtype)
    else:
        _checks.shape("bootstrap_value", bootstrap_value, steps.rewards.shape[:1], "[B]")
        after = accumulate(bootstrap_value)

    def step(following, now):
        future = jnp.where(now.truncated, now.final_values, following)
        result = now.rewards + now.discounts * future
        return jnp.where(now.valid, result, following), jnp.where(now.valid, result, 0.0)

    return _backwards(step, after, steps)


def lambda_returns(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T+1"],
    discounts: Float[Array, "B T"],
    *,
    lambda_: float = 0.95,
    truncated: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
    final_values: Float[Array, "B T"] | None = None,
    mask: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """TD(lambda) returns: the targets of a value function.

        G_t = r_t + discount_t ((1 - lambda) V_{t+1} + lambda G_{t+1}),   G_T = V_T
        G_t = r_t + discount_t final_value_t                              where truncated

    lambda 0 gives one-step targets, lambda 1 `discounted_returns`. `gae` is G_t - V_t.

    Args:
      rewards: reward of each step, [B, T].
      values: value of each state, and after the last step, [B, T+1].
      discounts: gamma (1 - terminated), in [0, 1], [B, T].
      lambda_: in [0, 1].
      truncated: 1 where a time limit cut the episode, [B, T]; None for nowhere.
      final_values: value of the true next observation, [B, T], read where truncated.
      mask: 1 where there is a step, [B, T]; None for everywhere. V_{t+1} is the value of the
        next valid step.

    Returns:
      Targets [B, T], float32 or wider; 0 where masked.

    Raises:
      ValueError: shapes that do not match; truncated without final_values or the reverse.

    References:
      Sutton and Barto, Reinforcement learning, 2018, chapter 12.
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    steps = _steps(rewards, discounts, truncated, final_values, mask, values=values)

    def step(following, now):
        next_value, next_return = following
        mixture = (1.0 - lambda_) * next_value + lambda_ * next_return
        future = jnp.where(now.truncated, now.final_values, mixture)
        result = now.rewards + now.discounts * future
        carry = (
            jnp.where(now.valid, now.values, next_value),
            jnp.where(now.valid, result, next_return),
        )
        return carry, jnp.where(now.valid, result, 0.0)

    after = accumulate(values)[:, -1]
    return _backwards(step, (after, after), steps)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T+1"],
    discounts: Float[Array, "B T"],
    *,
    lambda_: float = 0.95,
    truncated: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
    final_values: Float[Array, "B T"] | None = None,
    mask: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Generalised advantage estimation.

        delta_t = r_t + discount_t V_{t+1} - V_t      (final_value_t for V_{t+1} where truncated)
        A_t = delta_t + discount_t lambda A_{t+1}     (the second term is cut where truncated)

    The value targets are A + V, taken before any whitening of A.

    Args:
      rewards: reward of each step, [B, T].
      values: value of each state, and after the last step, [B, T+1].
      discounts: gamma (1 - terminated), in [0, 1], [B, T].
      lambda_: in [0, 1]: 0 is one-step TD (low variance), 1 return minus value (no bias).
      truncated: 1 where a time limit cut the episode, [B, T]; None for nowhere.
      final_values: value of the true next observation, [B, T], read where truncated.
      mask: 1 where there is a step, [B, T]; None for everywhere. V_{t+1} and A_{t+1} are those
        of the next valid step; after the last valid step V is values[:, T] (times the
        discount, so 0 at a termination).

    Returns:
      Advantages [B, T], float32 or wider; 0 where masked.

    Raises:
      ValueError: shapes that do not match; truncated without final_values or the reverse.

    References:
      Schulman et al., High-dimensional continuous control using GAE, 2015 (arXiv:1506.02438).
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    steps = _steps(rewards, discounts, truncated, final_values, mask, values=values)

    def step(following, now):
        next_value, next_advantage = following
        future = jnp.where(now.truncated, now.final_values, next_value)
        delta = now.rewards + now.discounts * future - now.values
        trace = jnp.where(now.truncated, 0.0, now.discounts * lambda_ * next_advantage)
        carry = (
            jnp.where(now.valid, now.values, next_value),
            jnp.where(now.valid, delta + trace, next_advantage),
        )
        return carry, jnp.where(now.valid, delta + trace, 0.0)

    after = accumulate(values)[:, -1]
    return _backwards(step, (after, jnp.zeros_like(after)), steps)


class VTrace(NamedTuple):
    """What `vtrace` returns."""

    advantages: Float[Array, "B T"]
    value_targets: Float[Array, "B T"]


def vtrace(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T+1"],
    discounts: Float[Array, "B T"],
    log_ratios: Float[Array, "B T"],
    *,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    lambda_: float = 1.0,
    truncated: Num[Array, "B T"] | Bool[Array, "B T"] | None = None,
    final_values: Float[Array, "B T"] | None = None,
) -> VTrace:
    """Off-policy advantages and value targets of IMPALA.

        rho_t = min(clip_rho, ratio_t),  c_t = lambda min(clip_c, ratio_t)
        x_t = rho_t (r_t + discount_t V_{t+1} - V_t) + discount_t c_t x_{t+1}
        v_t = V_t + x_t
        A_t = rho_t (r_t + discount_t (lambda v_{t+1} + (1 - lambda) V_{t+1}) - V_t)

    Where truncated, final_value_t stands for both V_{t+1} and v_{t+1}, and x_{t+1} is cut.
    The advantages already hold the clipped ratio: they go into `losses.reinforce`, not into
    `losses.ppo_clip`, which would correct twice. On-policy, v are the `lambda_returns`.

    Args:
      rewards: reward of each step, [B, T].
      values: value of each state, and after the last step, [B, T+1].
      discounts: gamma (1 - terminated), in [0, 1], [B, T].
      log_ratios: log of current over behaviour probability of the action, [B, T]; stopped;
        clipped to +-20, minus infinity gives ratio 0.
      clip_rho: bound on the ratio in the temporal difference and the advantage, positive.
      clip_c: bound on the ratio in the trace, positive.
      lambda_: in [0, 1].
      truncated: 1 where a time limit cut the episode, [B, T]; None for nowhere.
      final_values: value of the true next observation, [B, T], read where truncated.

    Returns:
      (advantages, value_targets), both [B, T], float32 or wider.

    Raises:
      ValueError: shapes that do not match; truncated without final_values or the reverse.

    References:
      Espeholt et al., IMPALA, 2018 (arXiv:1802.01561).
    """
    in_range("lambda_", lambda_, low=0.0, high=1.0)
    in_range("clip_rho", clip_rho, low=0.0, above=True)
    in_range("clip_c", clip_c, low=0.0, above=True)
    steps = _steps(rewards, discounts, truncated, final_values, None, values=values)
    _checks.same_shape("[B, T]", rewards=rewards, log_ratios=log_ratios)
    logs = accumulate(jax.lax.stop_gradient(log_ratios))
    ratios = jnp.where(logs == -jnp.inf, 0.0, jnp.exp(jnp.clip(logs, -20.0, 20.0)))

    def step(following, inputs):
        now, ratio = inputs
        next_value, next_error = following
        future = jnp.where(now.truncated, now.final_values, next_value)
        error_ahead = jnp.where(now.truncated, 0.0, next_error)
        rho = jnp.minimum(clip_rho, ratio)
        delta = now.rewards + now.discounts * future - now.values
        trace = now.discounts * lambda_ * error_ahead
        error = rho * delta + jnp.minimum(clip_c, ratio) * trace
        # lambda v' + (1 - lambda) V' = V' + lambda x'
        return (now.values, error), (rho * (delta + trace), now.values + error)

    after = accumulate(values)[:, -1]
    return VTrace(*_backwards(step, (after, jnp.zeros_like(after)), (steps, ratios)))


class _Steps(NamedTuple):
    rewards: Array
    discounts: Array
    values: Array
    truncated: Array
    final_values: Array
    valid: Array


def _steps(rewards, discounts, truncated, final_values, mask, *, values=None) -> _Steps:
    """Checks the shapes and replaces everything that must not be read by 0."""
    _checks.rank("rewards", rewards, 2, "[B, T]")
    rows, length = np.shape(rewards)
    if (truncated is None) != (final_values is None):
        missing = "truncated" if truncated is None else "final_values"
        raise ValueError(f"{missing} is None, expected [B, T]: both or neither must be given")
    given = {"discounts": discounts, "truncated": truncated, "final_values": final_values}
    given["mask"] = mask
    for name, x in given.items():
        if x is not None:
            _checks.shape(name, x, (rows, length), "[B, T]")
    rewards = accumulate(rewards)
    zeros, everywhere = jnp.zeros_like(rewards), jnp.ones(rewards.shape, bool)
    if values is None:
        values = zeros
    else:
        _checks.shape("values", values, (rows, length + 1), "[B, T+1]")
        values = accumulate(values)[:, :-1]
    valid = everywhere if mask is None else jnp.asarray(mask) != 0
    cut = ~everywhere if truncated is None else jnp.asarray(truncated) != 0
    final_values = zeros if final_values is None else accumulate(final_values)
    return _Steps(
        rewards=jnp.where(valid, rewards, 0.0),
        discounts=jnp.where(valid, accumulate(discounts), 0.0),
        values=jnp.where(valid, values, 0.0),
        truncated=cut,
        final_values=jnp.where(cut, final_values, 0.0),
        valid=valid,
    )


def _backwards(step, after, inputs):
    """Scans [B, T] inputs from the last step to the first; outputs are [B, T] again."""
    time_major = jax.tree.map(lambda x: x.T, inputs)
    _, outputs = jax.lax.scan(step, after, time_major, reverse=True)
    return jax.tree.map(lambda x: x.T, outputs)
