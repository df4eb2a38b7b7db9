"""Whether a run's largest arrays can fit at all: asked before any of them is made.

XLA ends the process where an array is larger than the machine, and nothing can catch that. The
figures here are lower bounds: what they refuse cannot run, and what they let pass may still be too
large.
"""

import functools
import math
import os
import pathlib

import jax
import jax.numpy as jnp

from polgrad import policies
from polgrad.rollouts import sampler, sampling_weights
from polgrad.training.config import TrainConfig

__all__ = ["check_run", "check_sampling", "check_small", "memory"]

_STATE = 16  # bytes a parameter: itself, its gradient and Adam's two moments, all float32
_ROLLOUT = 12  # bytes a token of a rollout: its id, its log-probability and its mask
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory(mesh: jax.sharding.Mesh | None = None) -> float:
    """Bytes that arrays may take, on all devices together.

    Args:
      mesh: the devices; those of JAX when left out.

    Returns:
      The memory of the accelerators; on CPUs the machine's, or what its container may use of it,
      times the number of processes, which are taken to be on machines of their own. Infinity where
      nothing tells it.
    """
    devices = jax.devices() if mesh is None else list(mesh.devices.flat)
    if devices[0].platform == "cpu":
        return host_memory() * len({device.process_index for device in devices})
    here = [d for d in devices if d.process_index == jax.process_index()]
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in here]
    smallest = sampling_weights.smallest(limits)
    return math.inf if smallest is None else smallest * len(devices)


def host_memory() -> float:
    """Bytes of this machine's memory that the process may use."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for path in _LIMITS:
        try:
            text = pathlib.Path(path).read_text().strip()
        except OSError:
            continue
        limits += [float(text)] if text.isdecimal() else []
    return min(limits)


def check_small(config: TrainConfig, available: float) -> None:
    """Refuses a small policy whose parameters and optimiser are larger than the memory.

    Args:
      config: the settings.
      available: bytes of all devices together.

    Raises:
      ValueError: names the sizes and the memory.
    """
    if config.policy != "small":
        return
    shape = config.small
    parameters = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.mlp)
    if parameters * _STATE > available:
        _refuse(
            f"small.layers {shape.layers}, small.width {shape.width} and small.mlp {shape.mlp} make "
            f"{parameters:,} parameters, which",
            parameters * _STATE,
            available,
            "small.width, small.mlp or small.layers",
        )


def check_run(
    config: TrainConfig, network: policies.Network, mesh: jax.sharding.Mesh, *, samples: bool
) -> None:
    """Refuses rollouts that are longer than the policy's context or larger than the memory.

    Args:
      config: the settings, with what was left out filled in.
      network: the policy's network.
      mesh: the run's devices.
      samples: whether the algorithm samples completions.

    Raises:
      ValueError: names the settings to lower.
    """
    rollouts = config.rollouts
    if rollouts.max_tokens >= network.max_length:
        raise ValueError(
            f"rollouts.max_tokens is {rollouts.max_tokens}; expected less than {network.max_length}, "
            "the policy's context, which holds the prompt too"
        )
    rows = rollouts.prompts * (rollouts.group_size if samples else 1)
    with jax.set_mesh(mesh):
        slots = rollouts.slots or sampler.default_slots(rows)
    check_sampling(
        network,
        rows=rows,
        slots=slots if samples else 0,
        tokens=rollouts.max_tokens,
        dtype=config.update.dtype,
        available=memory(mesh),
        lower="rollouts.max_tokens, rollouts.prompts, rollouts.group_size or rollouts.slots",
    )


def check_sampling(
    network: policies.Network,
    *,
    rows: int,
    slots: int,
    tokens: int,
    dtype: jnp.dtype = jnp.float32,
    available: float | None = None,
    lower: str,
) -> None:
    """Refuses a rollout whose cache and tokens are larger than the memory.

    Args:
      network: the policy's network.
      rows: completions.
      slots: sequences decoded at once.
      tokens: longest completion.
      dtype: of the cache.
      available: bytes; `memory()` when left out.
      lower: the settings that make it smaller, for the message.

    Raises:
      ValueError: names what it takes, what there is, and the settings to lower.
    """
    available = memory() if available is None else available
    # Two rows, and as many as there are by multiplication: a shape itself may not be too large.
    cache = jax.eval_shape(functools.partial(network.init_cache, 2, tokens, dtype))
    held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache))
    needed = held / 2 * slots + rows * tokens * _ROLLOUT
    if needed > available:
        _refuse(
            f"{rows:,} completions of up to {tokens:,} tokens, {slots:,} of them decoded at once,",
            needed,
            available,
            lower,
        )


def _refuse(what: str, needed: float, available: float, lower: str) -> None:
    raise ValueError(
        f"{what} need at least {needed / 2**30:,.1f} GiB of memory; there are "
        f"{available / 2**30:,.1f} GiB; lower {lower}"
    )
