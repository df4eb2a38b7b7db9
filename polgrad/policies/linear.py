"""A bigram network: an embedding and a linear head. Cheap enough for tests and tiny worlds."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from polgrad.policies.network import Cache, Params, initialize
from polgrad.policies.sharding import shard_batch


@dataclasses.dataclass(frozen=True)
class LinearNetwork:
    """Next-token logits that depend on the current token alone: `E[token] @ W`.

    Args:
        vocab_size: number of tokens `V`, at least 1.
        width: embedding width `D`, at least 1.
        value_head: adds a linear value head (zero at the start).
        reward_head: adds a linear scalar reward head (zero at the start).
        max_length: longest sequence; nothing in the network limits it.
    """

    vocab_size: int
    width: int
    value_head: bool = False
    reward_head: bool = False
    max_length: int = 1 << 20

    def __post_init__(self):
        for name in ("vocab_size", "width", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _leaves(self):
        """`name -> (shape, scale, logical axes)`."""
        leaves = {
            "embed": ((self.vocab_size, self.width), 1.0, ("vocab", "embed")),
            "head": ((self.width, self.vocab_size), self.width**-0.5, ("embed", "vocab")),
        }
        if self.value_head:
            leaves["value_head"] = ((self.width,), "zeros", ("embed",))
        if self.reward_head:
            leaves["reward_head"] = ((self.width,), "zeros", ("embed",))
        return leaves

    def init(self, key: PRNGKeyArray) -> Params:
        """Unit-variance logits; heads start at zero."""
        return initialize(key, {n: (shape, s) for n, (shape, s, _) in self._leaves().items()})

    def logical_axes(self) -> Params:
        """Logical axis names of every leaf of `init`."""
        return {name: axes for name, (_, _, axes) in self._leaves().items()}

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
    ) -> Float[Array, "B T D"]:
        """The embedding of each token; positions, segments and remat change nothing."""
        del positions, segment_ids, remat
        return shard_batch(jnp.asarray(params["embed"])[tokens].astype(compute_dtype))

    def head(self, params: Params) -> Float[Array, "D V"]:
        """The output projection."""
        return jnp.asarray(params["head"])

    def values(self, params: Params, hidden: Float[Array, "*S D"]) -> Float[Array, "*S"]:
        """`hidden . value_head`.

        Raises:
            ValueError: the network was built without `value_head=True`.
        """
        return self._scalar(params, hidden, "value_head")

    def rewards(self, params: Params, hidden: Float[Array, "*S D"]) -> Float[Array, "*S"]:
        """`hidden . reward_head`.

        Raises:
            ValueError: the network was built without `reward_head=True`.
        """
        return self._scalar(params, hidden, "reward_head")

    def _scalar(self, params: Params, hidden, name: str):
        if not getattr(self, name):
            raise ValueError(f"this LinearNetwork has no {name}: build it with {name}=True")
        return hidden.astype(params[name].dtype) @ jnp.asarray(params[name])

    def init_cache(self, batch: int, length: int, dtype: DTypeLike) -> Cache:
        """Nothing is remembered, so the cache has no leaves."""
        del batch, length, dtype
        return {}

    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """The embedding of each prompt's last token (of its first slot where it is empty)."""
        last = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        return jnp.asarray(params["embed"])[last].astype(compute_dtype), cache

    def decode(
        self,
        params: Params,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """The embedding of each token."""
        del positions
        return jnp.asarray(params["embed"])[tokens].astype(compute_dtype), cache
