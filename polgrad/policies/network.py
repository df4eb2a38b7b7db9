"""What the sampler and the trainer ask of a language network.

A network is a static description (frozen, hashable: it may be closed over or be a static argument
of `jit`); its parameters are a plain nested dict of arrays that travels separately.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from polgrad.policies.heads import CappedHead

Params = dict[str, Any]
Cache = Any

# Random parameters are drawn in chunks of this many numbers; leaves above this many chunks alone.
_CHUNK = 1024
_LARGE = 1024


@runtime_checkable
class Network(Protocol):
    """A causal sequence model with a vocabulary head and, where it has them, scalar heads.

    A network may also have (see `TransformerNetwork`):
      `group_hidden(params, prompts, lengths, completions, *, compute_dtype, remat)`, which reads a
        prompt once for all its completions; without it each is read with its prompt.
      `attention`, a further keyword of `hidden` and `group_hidden`: which kernel attends. It is given
        where it is not `"auto"`, its default.
      `decoder(params, *, compute_dtype, weights)`, which makes weights ready for many decoding
        steps or returns None, and `round_layers(params)`, the matrices that its decoder of
        `weights="int8"` computes with; without them the sampler calls `decode` on the parameters as
        they are.
    """

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
        segment_ids: Int[Array, "B T"] | Bool[Array, "B T"],
        *,
        compute_dtype: DTypeLike = ...,
        remat: str = ...,
    ) -> Float[Array, "B T D"]:
        """Last hidden states; a token sees earlier tokens of its own non-zero segment.

        Segments are bool where each row is one sequence, with padding behind it alone.
        """
        ...

    def head(self, params: Params) -> Float[Array, "D V"] | CappedHead:
        """The output projection, from which `heads.logits(hidden, head)` makes logits.

        A matrix, with `logits = hidden @ head`; or, of a network that caps its logits, a `CappedHead`.
        """
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


def initialize(
    key: PRNGKeyArray, leaves: Mapping[str, tuple[tuple[int, ...], float | str]]
) -> dict[str, Array]:
    """Random parameters, each leaf addressed by its own name.

    A leaf depends on the key, its name and its shape alone, so that it does not change when
    another leaf (a value head, say) is added to the network.

    Args:
        key: root of the randomness.
        leaves: path of each leaf to its shape and scale: a standard deviation, or `"zeros"` or
            `"ones"`.

    Returns:
        Path to float32 array.
    """
    constants = {"zeros": jnp.zeros, "ones": jnp.ones}
    arrays, small = {}, {}
    for path, (shape, scale) in leaves.items():
        if isinstance(scale, str):
            arrays[path] = constants[scale](shape, jnp.float32)
            continue
        leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        chunks = -(-math.prod(shape) // _CHUNK)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(leaf_key, jnp.arange(chunks))
        if chunks > _LARGE:
            arrays[path] = _shaped(_draw(keys), shape, scale)
        else:
            small[path] = keys
    if small:
        # Compiling a generator takes half a second: the small leaves share one. Large leaves
        # keep their own, which a partitioner can spread over devices.
        drawn = _draw(jnp.concatenate(list(small.values())))
        start = 0
        for path, keys in small.items():
            arrays[path] = _shaped(drawn[start : start + keys.shape[0]], *leaves[path])
            start += keys.shape[0]
    return {path: arrays[path] for path in leaves}


def _draw(keys: PRNGKeyArray) -> Float[Array, "N C"]:
    return jax.vmap(lambda key: jax.random.normal(key, (_CHUNK,), jnp.float32))(keys)


def _shaped(chunks: Float[Array, "N C"], shape: tuple[int, ...], scale: float) -> Array:
    return scale * chunks.reshape(-1)[: math.prod(shape)].reshape(shape)
