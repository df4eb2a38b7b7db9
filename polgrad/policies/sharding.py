"""What networks ask of the partitioner, by the axes of the mesh that is entered.

Outside a mesh nothing is asked, and every function here returns what it was given.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

# Mesh axes over which a batch of sequences is split; the trainer's mesh uses the same names.
BATCH_AXES = ("data", "fsdp")
# And the one over which attention heads, and the vocabulary, are split.
HEAD_AXIS = "tensor"


def auto_axes() -> dict[str, int]:
    """Sizes of the mesh's axes that are the partitioner's: not those that somebody else handles."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types)
    return {name: mesh.shape[name] for name, kind in axes if kind == AxisType.Auto}


def batch_parts(batch: int) -> int:
    """Over how many devices a batch of this size is split; 1 where it does not divide."""
    parts = batch_devices()
    return 1 if batch % parts else parts


def shard_batch(x: Float[Array, "B ..."], *, axis: int = 0) -> Float[Array, "B ..."]:
    """Asks for `x` to be split over the mesh's batch axes along one dimension.

    Args:
        x: activations `[B, ...]`, or a cache `[layers, B, ...]` with `axis=1`.
        axis: the dimension of the batch.

    Returns:
        `x`, unchanged in value. Outside a mesh, or where `B` does not divide over the mesh's
        `data` and `fsdp` axes, nothing is asked.
    """
    axes = _batch_axes()
    if not axes or x.shape[axis] % batch_devices():
        return x
    # What the other dimensions do is left to the partitioner.
    free = [PartitionSpec.UNCONSTRAINED] * x.ndim
    free[axis] = axes
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free))


def over_batch(function: Callable, batch: int, in_axes: Sequence[int | None], out_axis: int):
    """`function` of arrays, run by every device on its own part of the batch.

    For what a row does to itself alone, which the partitioner does not see of indices.

    Args:
        function: of arrays, to one array.
        batch: size of the batch; where the devices do not divide it, `function` itself is returned.
        in_axes: the batch's dimension in each argument, None in one that has none.
        out_axis: and in the result.
    """
    if batch_parts(batch) == 1:
        return function
    axes = _batch_axes()

    def spec(axis):
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, axes)

    return jax.shard_map(
        function,
        in_specs=tuple(map(spec, in_axes)),
        out_specs=spec(out_axis),
        axis_names=set(axes),
        check_vma=False,
    )


def whole_rows(matrix: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """Asks for every device to hold its columns of a matrix in all rows."""
    if math.prod(auto_axes().values()) == 1:
        return matrix
    return jax.lax.with_sharding_constraint(matrix, PartitionSpec(None, _columns(matrix)))


def partial_sums(parts: Float[Array, "P D V"]) -> Float[Array, "P D V"]:
    """Asks for each device that holds a part of the batch to hold its own part of a sum over it."""
    if parts.shape[0] == 1:
        return parts
    spec = PartitionSpec(_batch_axes(), None, _columns(parts))
    return jax.lax.with_sharding_constraint(parts, spec)


def _batch_axes() -> tuple[str, ...]:
    return tuple(name for name in BATCH_AXES if name in auto_axes())


def batch_devices() -> int:
    """Over how many devices batches are split."""
    return math.prod(auto_axes()[name] for name in _batch_axes())


def _columns(x) -> str | None:
    """The mesh axis of the last dimension of a head's matrix, None where it stays whole."""
    size = auto_axes().get(HEAD_AXIS)
    return HEAD_AXIS if size and x.shape[-1] % size == 0 else None
