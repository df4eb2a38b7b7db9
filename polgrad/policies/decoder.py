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
from einops import rearrange
from jaxtyping import Array, DTypeLike, Float, Int, Int8, PyTree

from polgrad.policies import modules
from polgrad.policies.attention import in_window, local_layers, rotary_tables, rotate, soft_cap

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
        norm: `[D]`, the final norm's factor.
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
            order = "layer batch steps heads size -> layer batch heads steps size"
            return jax.tree.map(lambda leaf: rearrange(leaf[index : index + 1], order), cache)

        return tuple(of_layer(index) for index in range(self.config.layers))

    def decode(
        self, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: PyTree
    ) -> tuple[Float[Array, "B D"], PyTree]:
        """As `TransformerNetwork.decode`, on a cache of `caches`."""
        c, dtype = self.config, self.compute_dtype
        rotary = rotary_tables(positions, c, dtype)
        index = jnp.arange(cache[0]["key"].shape[3])
        visible = (index <= positions[:, None])[:, None, None]
        activation = modules.ACTIVATIONS[c.activation]
        local = local_layers(c)
        x, after = modules.embedded(self.embed, tokens, c, dtype), []

        def normed(x, layer, name):
            return modules.rms_norm(x, layer[name], c.norm_epsilon) if name in layer else x

        for number, (layer, kept) in enumerate(zip(self.layers, cache)):
            here = None if local is None else local[number]
            mask = in_window(visible, positions[:, None], index[None], c, here)
            ahead = normed(x, layer, "attention_norm")
            mixed, kept = self._attend(layer, ahead, rotary(here), positions, mask[:, 0], kept)
            x = x + normed(product(mixed, layer["output"]), layer, "attention_post_norm")
            ahead = normed(x, layer, "mlp_norm")
            gate, up = jnp.split(product(ahead, layer["gate_up"]), 2, axis=-1)
            out = product(activation(gate) * up, layer["down"])
            x = x + normed(out, layer, "mlp_post_norm")
            after.append(kept)
        return modules.rms_norm(x, self.norm, c.norm_epsilon), tuple(after)

    def _attend(self, layer, x, rotary, positions, visible, cache):
        c, rows = self.config, jnp.arange(x.shape[0])
        heads = product(x, layer["qkv"], layer.get("qkv_bias"))
        heads = rearrange(heads, "b (heads size) -> b heads size", size=c.head_dim)
        query, key, value = jnp.split(heads, [c.heads, c.heads + c.kv_heads], axis=1)
        if c.qk_norm:
            query = modules.rms_norm(query, layer["query_norm"], c.norm_epsilon)
            key = modules.rms_norm(key, layer["key_norm"], c.norm_epsilon)
        query, key = rotate(query, rotary), rotate(key, rotary)
        cache = {
            name: cache[name]
            .at[0, rows, :, positions]
            .set(new.astype(cache[name].dtype), mode="drop")
            for name, new in (("key", key), ("value", value))
        }
        keys, values = (cache[name][0].astype(x.dtype) for name in ("key", "value"))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        query = rearrange(query, "b (n g) k -> b n g k", n=c.kv_heads)
        scores = jnp.einsum("bngk,bnsk->bngs", query, keys, preferred_element_type=wide)
        scores = soft_cap(scores / math.sqrt(c.query_scalar or c.head_dim), c.attention_cap)
        scores = jnp.where(visible[:, None], scores, jnp.finfo(wide).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bngs,bnsk->bngk", shares, values)
        return rearrange(mixed, "b n g k -> b (n g k)"), cache


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

    def factor(norm):
        return 1 + norm["scale"] if config.centered_norms else norm["scale"]

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
            **{name: factor(block[name]) for name in block if name.endswith("norm")},
        }
        if config.qkv_bias:
            biases = [part["bias"].reshape(-1) for part in parts]
            made["qkv_bias"] = jnp.concatenate(biases).astype(dtype)
        if config.qk_norm:
            made |= {name: factor(attention[name]) for name in ("query_norm", "key_norm")}
        return made

    layers = tuple(layer(index) for index in range(config.layers))
    return TransformerDecoder(params["embed"], factor(params["norm"]), layers, config, dtype)
