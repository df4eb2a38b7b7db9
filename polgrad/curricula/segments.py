"""Segments of recorded trajectories, for comparisons of behaviour."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from polgrad import _checks

__all__ = ["Segments", "sample_segments"]


class Segments(NamedTuple):
    """Windows of trajectories.

    Attributes:
      steps: the trajectories' leaves, [B, length, ...].
      trajectory: which one each is of, [B].
      start: its first step, [B].
    """

    steps: PyTree
    trajectory: Int[Array, "B"]
    start: Int[Array, "B"]


def sample_segments(
    trajectories: PyTree, lengths: Int[Array, "N"], noise: Float[Array, "B"], *, length: int
) -> Segments:
    """Segments of one length, each window of the data equally likely.

    A trajectory of n steps has n - length + 1 windows: long ones are drawn more often, and one
    that is shorter than a segment never.

    Args:
      trajectories: a tree of arrays [N, L, ...].
      lengths: valid steps of each, [N].
      noise: uniform in [0, 1), addressed by the segment, [B].
      length: steps of a segment, from 1 to L.

    Returns:
      The segments.

    Raises:
      ValueError: leaves that do not match `lengths`; a length out of range; concrete lengths of
        which none holds a segment.

    References:
      Christiano et al., Deep reinforcement learning from human preferences, 2017
      (arXiv:1706.03741). Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639).
    """
    leaves = jax.tree.leaves(trajectories)
    _checks.rank("lengths", lengths, 1, "[N], one a trajectory")
    for leaf in leaves:
        _checks.shape(
            "trajectories",
            leaf,
            (jnp.shape(lengths)[0], *jnp.shape(leaf)[1:]),
            "leaves [N, L, ...]",
        )
    longest = min(jnp.shape(leaf)[1] for leaf in leaves)
    if not 1 <= length <= longest:
        raise ValueError(f"length is {length}, expected 1 to {longest}, the steps of a trajectory")
    windows = jnp.maximum(jnp.asarray(lengths) - length + 1, 0)
    until = jnp.cumsum(windows)
    if not isinstance(until, jax.core.Tracer) and int(until[-1]) == 0:
        raise ValueError(f"lengths has no trajectory of {length} steps, expected at least one")
    # A noise of almost 1 may round up to the number of windows.
    place = jnp.floor(jnp.asarray(noise) * until[-1]).astype(until.dtype)
    place = jnp.minimum(place, until[-1] - 1)
    trajectory = jnp.searchsorted(until, place, side="right")
    start = place - (until - windows)[trajectory]
    steps = start[:, None] + jnp.arange(length)
    return Segments(
        jax.tree.map(lambda x: jnp.asarray(x)[trajectory[:, None], steps], trajectories),
        trajectory,
        start,
    )
