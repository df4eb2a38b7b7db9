"""Decode-ready weights of the transformer: one array a product, made once for a whole rollout.

A scan over stacked layers slices, and so copies, all weights at every token. Here each layer has its
own arrays, with the products that share an input side by side: queries, keys and values in one, gate
and up in another. Parameters and checkpoints keep their layout.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, Int8, PyTree

from polgrad.policies import modules

Weights = Literal["full", "int8"]


class Rounded(NamedTuple):
    """A matrix as `values * scales`: integers in -127..127 and one scale an output channel."""

    values: Int8[Array, "D O"]
    scales: Float[Array, " O"]


def round_matrix(kernel: Float[Array, "D O"]) -> Rounded:
    """Symmetric rounding to eight bits: `scale[o] = max_d |kernel[d, o]| / 127`.

    Args:
        kernel: `[D, O]`, a product's matrix. A column of zeros stays one.

    Returns:
        `round(kernel / scale)`, half to even, and the scales in float32 (float64 for float64): no
        entry is off by more than half a scale.
    """
    wide = modules.at_least_float32(kernel)
    scales = jnp.max(jnp.abs(wide), axis=0) / 127
    values = jnp.round(wide / jnp.where(scales > 0, scales, 1))
    return Rounded(values.astype(jnp.int8), scales)


def restore(matrix: Array | Rounded, dtype: DTypeLike) -> Float[Array, "D O"]:
    """The matrix that a product is with, as one array."""
    if isinstance(matrix, Rounded):
        return (matrix.values.astype(matrix.scales.dtype) * matrix.scales).astype(dtype)
    return matrix.astype(dtype)


def product(x: Float[Array, "B D"], matrix: Array | Rounded, bias=None) -> Float[Array, "B O"]:
    """`x @ matrix (+ bias)` in the type of `x`; rounded matrices are summed in float32."""
    if isinstance(matrix, Rounded):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        out = jnp.dot(x, matrix.values.astype(x.dtype), preferred_element_type=wide)
        out = (out * matrix.scales).astype(x.dtype)
    else:
        out = x @ matrix
    return out if bias is None else out + bias


def round_layers(params: PyTree) -> PyTree:
    """Parameters whose layers hold the matrices that `weights="int8"` computes with.

    Args:
        params: as from `TransformerNetwork.init`.

    Returns:
        The same tree; norms, biases, the embedding and the heads are untouched.
    """

    def rounded(path, leaf):
        names = [entry.key for entry in path]
        if names[0] != "layers" or names[-1] != "kernel":
            return leaf
        inputs = 2 if names[-2] == "output" else 1
        rows = math.prod(leaf.shape[1 : 1 + inputs])
        flat = leaf.reshape(leaf.shape[0], rows, -1)
        restored = jax.vmap(lambda kernel: restore(round_matrix(kernel), kernel.dtype))(flat)
        return restored.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(rounded, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransformerDecoder:
    """One decoding step of a transformer, from weights made ready.

    Args:
        embed: `[V, D]`.
        norm: `[D]`, the final norm's scale.
        layers: one dict a layer: matrices `qkv`, `output`, `gate_up`, `down`, norms, biases.
        config: the transformer's shape.
        compute_dtype: of the matrix products.
    """

    embed: Float[Array, "V D"]
    norm: Float[Array, " D"]
    layers: tuple[dict[str, Any], ...]
    config: Any = dataclasses.field(metadata={"static": True})
    compute_dtype: Any = dataclasses.field(metadata={"static": True})

    def caches(self, cache: PyTree) -> PyTree:
        """A cache of `init_cache` or `prefill` as `decode` takes it.

        Args:
            cache: keys and values `[layers, B, S, kv_heads, head_dim]`.

        Returns:
            One pair a layer, each `[1, B, kv_heads, S, head_dim]`: the order that attention reads.
        """

        def of_layer(index):
            return jax.tree.map(lambda leaf: leaf[index : index + 1].swapaxes(2, 3), cache)

        return tuple(of_layer(index) for index in range(self.config.layers))

    def decode(
        self, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: PyTree
    ) -> tuple[Float[Array, "B D"], PyTree]:
        """As `TransformerNetwork.decode`, on a cache of `caches`."""
        c, dtype = self.config, self.compute_dtype
        rotary = modules.rotary_table(positions, c, dtype)
        index = jnp.arange(cache[0]["key"].shape[3])
        visible = index <= positions[:, None]
        x, after = self.embed[tokens].astype(dtype), []
        for layer, kept in zip(self.layers, cache):
            normed = modules.rms_norm(x, layer["attention_norm"], c.norm_epsilon)
            mixed, kept = self._attend(layer, normed, rotary, positions, visible, kept)
            x = x + product(mixed, layer["output"])
            normed = modules.rms_norm(x, layer["mlp_norm"], c.norm_epsilon)
            gate, up = jnp.split(product(normed, layer["gate_up"]), 2, axis=-1)
            x = x + product(jax.nn.silu(gate) * up, layer["down"])
            after.append(kept)
        return modules.rms_norm(x, self.norm, c.norm_epsilon), tuple(after)

    def _attend(self, layer, x, rotary, positions, visible, cache):
        c, rows = self.config, jnp.arange(x.shape[0])
        heads = product(x, layer["qkv"], layer.get("qkv_bias"))
        heads = heads.reshape(x.shape[0], -1, c.head_dim)
        query, key, value = jnp.split(heads, [c.heads, c.heads + c.kv_heads], axis=1)
        if c.qk_norm:
            query = modules.rms_norm(query, layer["query_norm"], c.norm_epsilon)
            key = modules.rms_norm(key, layer["key_norm"], c.norm_epsilon)
        query, key = modules.rotate(query, rotary), modules.rotate(key, rotary)
        cache = {
            name: cache[name]
            .at[0, rows, :, positions]
            .set(new.astype(cache[name].dtype), mode="drop")
            for name, new in (("key", key), ("value", value))
        }
        keys, values = (cache[name][0].astype(x.dtype) for name in ("key", "value"))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        query = query.reshape(x.shape[0], c.kv_heads, -1, c.head_dim)
        scores = jnp.einsum("bngk,bnsk->bngs", query, keys, preferred_element_type=wide)
        scores = jnp.where(
            visible[:, None, None], scores / math.sqrt(c.head_dim), jnp.finfo(wide).min
        )
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bngs,bnsk->bngk", shares, values)
        return mixed.reshape(x.shape[0], -1), cache


def prepare(config, params: PyTree, *, compute_dtype: DTypeLike, weights: Weights = "full"):
    """Splits the stacked layers and joins the products that share an input.

    Args:
        config: the transformer's shape.
        params: as from `TransformerNetwork.init`.
        compute_dtype: type of the matrix products.
        weights: `"full"`, or `"int8"` to round each matrix (`round_matrix`).

    Returns:
        A `TransformerDecoder`.
    """
    dtype = jnp.dtype(compute_dtype)

    def layer(index):
        block = jax.tree.map(lambda leaf: leaf[index], params["layers"])
        attention, mlp = block["attention"], block["mlp"]

        def ready(*kernels, rows=config.width):
            kernel = jnp.concatenate([kernel.reshape(rows, -1) for kernel in kernels], axis=1)
            return round_matrix(kernel) if weights == "int8" else kernel.astype(dtype)

        parts = [attention[name] for name in ("query", "key", "value")]
        made = {
            "qkv": ready(*(part["kernel"] for part in parts)),
            "output": ready(attention["output"]["kernel"], rows=config.heads * config.head_dim),
            "gate_up": ready(mlp["gate"]["kernel"], mlp["up"]["kernel"]),
            "down": ready(mlp["down"]["kernel"], rows=config.mlp_width),
            "attention_norm": block["attention_norm"]["scale"],
            "mlp_norm": block["mlp_norm"]["scale"],
        }
        if config.qkv_bias:
            biases = [part["bias"].reshape(-1) for part in parts]
            made["qkv_bias"] = jnp.concatenate(biases).astype(dtype)
        if config.qk_norm:
            made |= {n: attention[n]["scale"] for n in ("query_norm", "key_norm")}
        return made

    layers = tuple(layer(index) for index in range(config.layers))
    return TransformerDecoder(params["embed"], params["norm"]["scale"], layers, config, dtype)
