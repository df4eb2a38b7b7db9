"""What the sampler and the trainer ask of a language network.

A network is a static description (frozen, hashable: it may be closed over or be a static argument
of `jit`); its parameters are a plain nested dict of arrays that travels separately.
"""

import math
import zlib
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

Params = dict[str, Any]
Cache = Any

# Mesh axes over which a batch of sequences is split; the trainer's mesh uses the same two names.
BATCH_AXES = ("data", "fsdp")


@runtime_checkable
class Network(Protocol):
    """A causal sequence model with a vocabulary head and, where it has them, scalar heads."""

    vocab_size: int
    max_length: int

    def init(self, key: PRNGKeyArray) -> Params:
        """Random float32 parameters; each leaf depends on `key` and its own name alone."""
        ...

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        compute_dtype: DTypeLike = ...,
        remat: str = ...,
    ) -> Float[Array, "B T D"]:
        """Last hidden states; a token sees earlier tokens of its own non-zero segment."""
        ...

    def head(self, params: Params) -> Float[Array, "D V"]:
        """The output projection: `logits = hidden @ head`."""
        ...

    def values(self, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """State values; ValueError where the network has no value head."""
        ...

    def rewards(self, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, " B"]:
        """Scalar rewards; ValueError where the network has no reward head."""
        ...

    def init_cache(self, batch: int, length: int, dtype: DTypeLike) -> Cache:
        """An empty decoding cache; every leaf is `[layers, batch, ...]`."""
        ...

    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = ...,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Reads right-padded prompts into cache indices 0..P-1; hidden at `lengths - 1`."""
        ...

    def decode(
        self,
        params: Params,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = ...,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """One step: writes `tokens` at `positions` and attends to indices `<= positions`."""
        ...

    def logical_axes(self) -> Params:
        """The tree of `init` with a tuple of logical axis names in place of each array."""
        ...


def shard_batch(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Asks for `x` to be split over the mesh's batch axes along its first dimension.

    Args:
        x: activations `[B, ...]`.

    Returns:
        `x`, unchanged in value. Outside a mesh, or where `B` does not divide over the mesh's
        `data` and `fsdp` axes, nothing is asked.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
        return x
    spec = PartitionSpec(axes, *([None] * (x.ndim - 1)))
    return jax.lax.with_sharding_constraint(x, spec)


def initialize(key: PRNGKeyArray, path: str, shape: tuple[int, ...], scale: float | str):
    """One parameter leaf: normal with standard deviation `scale`, or `"zeros"` / `"ones"`.

    The key is folded with a checksum of `path`, so that a leaf does not change when another leaf
    (a value head, say) is added to the network.
    """
    if scale == "zeros":
        return jnp.zeros(shape, jnp.float32)
    if scale == "ones":
        return jnp.ones(shape, jnp.float32)
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return scale * jax.random.normal(key, shape, jnp.float32)
