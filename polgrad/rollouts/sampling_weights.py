"""How the weights lie while a policy is sampled from.

The trainer splits them over `fsdp` and keeps them in float32. Decoding so would gather and convert every
layer's matrices for every token; here both are done once, before a rollout.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Gather = Literal["auto", "always", "never"]

# Of a device's memory, for weights that "auto" gathers: caches and the optimiser need the rest.
SHARE = 1 / 3


def layout(
    params: Any, axes: Any, mesh: Mesh, *, dtype: Any, gather: Gather, memory: float | None
) -> Any:
    """Types and shardings of the weights while sampling.

    Args:
      params: `jax.ShapeDtypeStruct`s with the shardings of training.
      axes: their logical axes, of `network.logical_axes`.
      mesh: the devices.
      dtype: of the network's products; matrices are held in it, all else as it is. None leaves the
        matrices, too, as they are.
      gather: whether each device holds what is split over `fsdp` whole. `"auto"`: where that takes
        at most a third of its memory.
      memory: of a device, in bytes; None where it is not known, and then "auto" is "never".

    Returns:
      `jax.ShapeDtypeStruct`s with shardings.
    """

    def held(x, kind, *, whole: bool):
        spec = PartitionSpec(*(None if whole and a == "fsdp" else a for a in x.sharding.spec))
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=NamedSharding(mesh, spec))

    def all_held(whole):
        kinds = types(params, axes, dtype)
        return jax.tree.map(lambda x, kind: held(x, kind, whole=whole), params, kinds)

    whole = all_held(True)
    if gather == "auto":
        fits = memory is not None and bytes_of_a_device(whole) <= SHARE * memory
        return whole if fits else all_held(False)
    return whole if gather == "always" else all_held(False)


def types(params: Any, axes: Any, dtype: Any) -> Any:
    """The type that each array is held in while it is only read.

    Args:
      params: arrays, or their shapes.
      axes: their logical axes, of `network.logical_axes`.
      dtype: of the network's products, which round matrices to it; None leaves all as they are.
    """

    def kind(x, names):
        matrix = "embed" in names and len(set(names) - {"layers", None}) > 1
        return jnp.dtype(dtype) if matrix and dtype else jnp.dtype(x.dtype)

    return jax.tree.map(kind, params, axes)


def bytes_of_a_device(tree: Any) -> int:
    """What a device holds of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def memory_of(mesh: Mesh) -> float | None:
    """Bytes that programs may use on the smallest of this process's devices; None where not told."""
    here = [d for d in mesh.local_devices if d.platform != "cpu"]
    return smallest([(d.memory_stats() or {}).get("bytes_limit") for d in here])


def smallest(memories: Sequence[float | None]) -> float | None:
    """The least of several devices' or processes' memories; None where one is not known."""
    return None if None in memories else min(memories, default=None)


def same(params: Any, held: Any) -> bool:
    """Whether parameters already lie as `layout` has them."""
    alike = jax.tree.map(
        lambda x, y: x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim),
        params,
        held,
    )
    return all(jax.tree.leaves(alike))


def converter(params: Any, held: Any):
    """A function from parameters to the weights as `layout` has them; the given ones if they are."""
    if same(params, held):
        return lambda tree: tree
    shardings = jax.tree.map(lambda x: x.sharding, held)

    def convert(tree):
        return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), tree, held)

    return jax.jit(convert, out_shardings=shardings)
