"""Running means: of everything so far, of the last values, or with weights that fall with age.

Every mean has one interface, in the manner of an optimiser of Optax. A function such as `window(1024)`
returns a `Running`, three pure functions:

    baseline = running.window(1024)
    state = baseline.init()
    advantages = rewards - baseline.value(state)             # has not seen these rewards
    state = baseline.update(state, rewards, valid=valid)

Read `value` before `update` where the mean is subtracted from the same samples: a baseline that has
seen the samples biases the gradient. `update` with `value` after it is right for a normaliser, such as
f-DPG's Z.

`init(shape)` makes one mean for each entry of `shape`, such as one a prompt; `update` then takes values
of the shape `[*shape, N]`. States are pytrees of fixed shapes: they go through `jit`, `scan`, `vmap`
and checkpoints. No gradient flows through a state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range, whole_number
from polgrad.masking import masked_mean

__all__ = [
    "ExponentialState",
    "LogMeanState",
    "MeanState",
    "Running",
    "WindowState",
    "exponential",
    "log_mean",
    "mean",
    "window",
]


class Running(NamedTuple):
    """A running mean.

    Attributes:
      init: `(shape=()) -> state`, before any value.
      update: `(state, values[*shape, N], *, valid=None) -> state`. `valid` is False for values that do
        not count; None counts all. Values that are not finite never count.
      value: `(state) -> mean`, of the shape `shape`; before any value 0, or -inf for `log_mean`.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    value: Callable[[Any], Array]


class MeanState(NamedTuple):
    """State of `mean`.

    Attributes:
      mean: of all values so far.
      count: how many they are.
    """

    mean: Float[Array, "..."]
    count: Float[Array, "..."]


class ExponentialState(NamedTuple):
    """State of `exponential`.

    Attributes:
      total: sum of the batches' means, each with its weight.
      weight: sum of the weights, 1 in the limit.
    """

    total: Float[Array, "..."]
    weight: Float[Array, "..."]


class WindowState(NamedTuple):
    """State of `window`: ring buffers of a fixed shape.

    Attributes:
      values: the last W values, in no particular order, 0 where there is none yet.
      count: how many values there have been; the next one goes to the place count modulo W.
    """

    values: Float[Array, "... W"]
    count: Int[Array, "..."]


class LogMeanState(NamedTuple):
    """State of `log_mean`.

    Attributes:
      log_mean: log of the mean of exp(value) over all values so far; -inf before any.
      count: how many they are.
    """

    log_mean: Float[Array, "..."]
    count: Int[Array, "..."]


def mean() -> Running:
    """The mean of all values so far.

        mean <- (count mean + sum of values) / (count + number of values)

    For a quantity that does not change, or whose whole past counts, such as the implicit rewards that
    `losses.bco` compares with (Jung et al., 2024, arXiv:2404.04656).

    Returns:
      The running mean.
    """

    def init(shape: tuple[int, ...] = ()) -> MeanState:
        return MeanState(jnp.zeros(shape), jnp.zeros(shape))

    def update(state: MeanState, values, *, valid=None) -> MeanState:
        values, valid = _counted(values, valid, state.mean.shape)
        count = state.count + jnp.sum(valid, axis=-1, dtype=state.count.dtype)
        excess = jnp.sum(jnp.where(valid, values - state.mean[..., None], 0.0), axis=-1)
        return MeanState(state.mean + excess / jnp.maximum(count, 1.0), count)

    return Running(init, update, lambda state: state.mean)


def exponential(decay: float = 0.95) -> Running:
    """An exponential average of the means of the batches.

        total  <- decay total + (1 - decay) mean of the batch
        weight <- decay weight + (1 - decay),     value = total / weight

    For a quantity that changes slowly, such as the reward of a policy that learns. The division by
    the weight removes the bias of the initial 0.

    Args:
      decay: weight of the past, in [0, 1); 0 keeps the last batch alone.

    Returns:
      The running mean. Its `update` returns the same state for a batch without a value that counts.

    Raises:
      ValueError: if `decay` is outside of [0, 1).
    """
    in_range("decay", decay, low=0.0, high=1.0, below=True)

    def init(shape: tuple[int, ...] = ()) -> ExponentialState:
        return ExponentialState(jnp.zeros(shape), jnp.zeros(shape))

    def update(state: ExponentialState, values, *, valid=None) -> ExponentialState:
        values, valid = _counted(values, valid, state.total.shape)
        moved = ExponentialState(
            decay * state.total + (1.0 - decay) * masked_mean(values, valid, axis=-1),
            decay * state.weight + (1.0 - decay),
        )
        some = jnp.any(valid, axis=-1)
        return jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, state)

    def value(state: ExponentialState) -> Array:
        return state.total / jnp.where(state.weight > 0, state.weight, 1.0)

    return Running(init, update, value)


def window(size: int = 1024) -> Running:
    """The mean of the last W values.

    For a quantity that changes, where old values must not count at all.

    Args:
      size: W, how many values the mean covers, >= 1.

    Returns:
      The running mean. Its `update` also takes `category`, the entry of `shape = (C,)` that each of N
      values belongs to, `[N]`; values of a category outside of 0..C-1 do not count. Of more than W
      values for an entry the last W stay.

    Raises:
      ValueError: if `size` is below 1.
    """
    whole_number("size", size, low=1)

    def init(shape: tuple[int, ...] = ()) -> WindowState:
        return WindowState(jnp.zeros((*shape, size)), jnp.zeros(shape, jnp.int32))

    def update(state: WindowState, values, *, valid=None, category=None) -> WindowState:
        shape = state.count.shape
        values, valid = _counted(values, valid, shape if category is None else ())
        if category is None:
            category = jnp.repeat(jnp.arange(state.count.size), values.shape[-1])
        else:
            _checks.same_shape("[N]", values=values, category=category)
        moved = _push(
            WindowState(state.values.reshape(-1, size), state.count.reshape(-1)),
            values.reshape(-1),
            jnp.asarray(category),
            valid.reshape(-1),
        )
        return WindowState(moved.values.reshape(*shape, size), moved.count.reshape(shape))

    def value(state: WindowState) -> Array:
        return jnp.sum(state.values, axis=-1) / jnp.clip(state.count, 1, state.values.shape[-1])

    return Running(init, update, value)


def log_mean() -> Running:
    """The log of the mean of exp(value) over all values so far.

        value = log(1/n sum_i exp(x_i))

    For weights that overflow, such as score / behaviour probability, whose mean is the normaliser Z of
    a target: exp overflows float32 beyond 88 nats. A value of -inf counts and adds nothing; NaN and
    +inf do not count.

    Returns:
      The running mean, whose `value` is a logarithm, -inf before any value.
    """

    def init(shape: tuple[int, ...] = ()) -> LogMeanState:
        return LogMeanState(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))

    def update(state: LogMeanState, values, *, valid=None) -> LogMeanState:
        logs = jax.lax.stop_gradient(accumulate(values))
        _checks.shape("values", logs, (*state.count.shape, None), "[*shape, N]")
        known = ~jnp.isnan(logs) & ~jnp.isposinf(logs) & _flags(logs, valid)
        logs = jnp.where(known, logs, -jnp.inf)
        count = state.count + jnp.sum(known, axis=-1, dtype=state.count.dtype)
        total = jnp.logaddexp(
            state.log_mean + jnp.log(state.count), jax.nn.logsumexp(logs, axis=-1)
        )
        found = jnp.where(count > 0, total - jnp.log(jnp.maximum(count, 1)), -jnp.inf)
        return LogMeanState(found.astype(state.log_mean.dtype), count)

    return Running(init, update, lambda state: state.log_mean)


def _counted(values, valid, shape: tuple[int, ...]) -> tuple[Array, Bool[Array, "... N"]]:
    """The values as `[*shape, N]` without gradient, 0 where one does not count, and which do."""
    values = jax.lax.stop_gradient(accumulate(values))
    _checks.shape("values", values, (*shape, None), "[*shape, N]")
    counted = jnp.isfinite(values) & _flags(values, valid)
    return jnp.where(counted, values, 0.0), counted


def _flags(values, valid):
    if valid is None:
        return jnp.ones(jnp.shape(values), bool)
    _checks.same_shape("one flag a value", values=values, valid=valid)
    return jnp.asarray(valid) != 0


def _push(state: WindowState, values, category, counted) -> WindowState:
    """Values of N categories into their ring buffers `[C, W]`, in the order in which they came."""
    categories, size = state.values.shape
    counted &= category >= 0
    member = (category[:, None] == jnp.arange(categories)) & counted[:, None]
    place = jnp.sum(jnp.where(member, jnp.cumsum(member, axis=0) - 1, 0), axis=-1)
    came = jnp.sum(member, axis=0, dtype=state.count.dtype)
    row = jnp.where(jnp.any(member, axis=-1), category, categories)  # beyond the end: dropped
    kept = place >= came.at[row].get(mode="fill", fill_value=0) - size
    column = (state.count.at[row].get(mode="fill", fill_value=0) + place) % size
    buffer = state.values.at[jnp.where(kept, row, categories), column].set(values, mode="drop")
    return WindowState(buffer, state.count + came)
