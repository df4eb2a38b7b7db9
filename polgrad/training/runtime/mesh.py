"""Devices in a mesh, and the one table that lays parameters and batches over it."""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str | None, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    None: None,
}
"""Logical axis of a parameter to mesh axis."""


def parse(text: str) -> dict[str, int]:
    """`"data=2,fsdp=2,tensor=2"` as sizes by axis; axes left out have size 1.

    Raises:
      ValueError: for anything that is not a list of `axis=size` with known axes.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]{1,9})\s*", part)
        if match is None or match[1] not in AXES or int(match[2]) < 1:
            raise ValueError(
                f"mesh has {part!r:.80}; expected axis=size with axis one of {', '.join(AXES)} and a "
                "size of at least 1"
            )
        if match[1] in sizes:
            raise ValueError(
                f"mesh has {match[1]!r} twice in {text!r:.80}; expected each axis once"
            )
        sizes[match[1]] = int(match[2])
    return dict.fromkeys(AXES, 1) | sizes


def make(sizes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh over the devices; all of them on `data` when no sizes are given.

    Raises:
      ValueError: if the sizes need another number of devices than there are.
    """
    available = jax.device_count()
    sizes = sizes or {"data": available}
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    needed = math.prod(shape)
    if needed > available:
        wanted = ",".join(f"{a}={s}" for a, s in zip(AXES, shape))
        raise ValueError(f"mesh {wanted} needs {needed} devices; there are {available}")
    if needed < available and jax.process_count() > 1:
        # A process without a device in the mesh would have no part in the run.
        raise ValueError(
            f"mesh uses {needed} devices; expected all {available} of the {jax.process_count()} "
            "processes"
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:needed]
    )


def entered(mesh: Mesh) -> contextlib.AbstractContextManager:
    """The context in which every step is traced and run."""
    return jax.set_mesh(mesh)


def spec(shape: tuple[int, ...], logical: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
    """Mesh axes of an array; an axis whose size the mesh does not divide stays whole."""
    axes, taken = [], set()
    for size, name in zip(shape, logical):
        axis = RULES[name]
        fits = axis is not None and axis not in taken and size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
        taken.add(axis if fits else None)
    return PartitionSpec(*axes)


def parameter_shardings(network, abstract_params: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every parameter, from the network's logical axes."""
    return jax.tree.map(
        lambda x, names: NamedSharding(mesh, spec(x.shape, names, mesh)),
        abstract_params,
        network.logical_axes(),
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Moments lie as their parameters do; counters are everywhere."""
    everywhere = replicated(mesh)

    def masked(x):
        # Where an optimiser leaves a parameter to another one (`optax.partition`), it has no moment.
        return isinstance(x, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, sharding: moment if masked(moment) else sharding,
        jax.eval_shape(optimizer.init, abstract_params),
        shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=masked,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """The leading axis over `data` and `fsdp` together; whole when they do not divide it."""
    if size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch on the mesh, its leading axis split; each host feeds its own devices."""
    return jax.tree.map(lambda x: place(x, batch_sharding(mesh, x.shape[0])), batch)


def place(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Lays an array, the same on every host, over devices of which a host holds only some."""
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
