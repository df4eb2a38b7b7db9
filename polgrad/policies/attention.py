"""Attention, what a layer sees of a sequence, and rotary positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def local_layers(config):
    """Whether a layer has a window, bool `[layers]`; None where no layer has one.

    What differs between layers is data: a scan over layers hands each its own entry.
    """
    if config.window is None:
        return None
    return (np.arange(config.layers) + 1) % config.global_every != 0


def in_window(mask, queries, keys, config, local):
    """`mask` without the keys that lie outside a local layer's window.

    Args:
        mask: bool `[B, 1, T, S]`.
        queries: positions of the queries `[B, T]`, counted from the start of their sequence.
        keys: positions of the keys `[B, S]`.
        config: the transformer's shape.
        local: the layer's entry of `local_layers`, an array or a plain bool.

    Returns:
        bool `[B, 1, T, S]`: a query at position `p` of a local layer sees positions above
        `p - window`.
    """
    if config.window is None:
        return mask
    near = queries[:, None, :, None] - keys[:, None, None, :] < config.window
    return mask & (near | jnp.logical_not(local))


def soft_cap(x, cap):
    """`cap * tanh(x / cap)`: within `-cap..cap`, and `x` where it is small; `x` for a cap of None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention(query, key, value, mask, *, causal=False, scalar=None, cap=None):
    """Softmax attention `[B, T, H, K]`; the softmax is in float32 (float64 for float64 inputs).

    Args:
        query: `[B, T, H, K]`.
        key: `[B, S, N, K]`, where N divides H.
        value: `[B, S, N, K]`.
        mask: bool `[B, 1, T, S]`, what may be seen.
        causal: query `t` sees no key behind `t`.
        scalar: scores are divided by its square root (default: K).
        cap: of `soft_cap` on the scores.
    """
    # jax.nn's softmax is fixed to float32, which would cap float64 proofs at 1e-7; and for one
    # query its way of grouping heads costs twice the plain product. It has no cap on scores.
    if query.dtype != jnp.float64 and query.shape[1] > 1 and cap is None:
        scale = None if scalar is None else scalar**-0.5
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, scale=scale
        )
    length, size = query.shape[1], query.shape[-1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = rearrange(query, "b t (n g) k -> b t n g k", n=key.shape[2])
    scores = jnp.einsum("btngk,bsnk->bngts", grouped, key, preferred_element_type=wide)
    mask = mask[:, :, None]
    if causal:
        mask = mask & jnp.tril(jnp.ones((length, key.shape[1]), bool))
    scores = soft_cap(scores / math.sqrt(scalar or size), cap)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(wide).min), axis=-1)
    mixed = jnp.einsum("bngts,bsnk->btngk", weights.astype(query.dtype), value)
    return rearrange(mixed, "b t n g k -> b t (n g) k")


def rotary_frequencies(config, *, local: bool = False) -> np.ndarray:
    """Angle per position of each pair of dimensions `[head_dim / 2]`, in float64.

    `theta^(-2 i / head_dim)`, stretched by `config.rope_scaling`; of local layers with a
    `local_rope_theta` of their own, that base and no stretch.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    if local and config.local_rope_theta is not None:
        return config.local_rope_theta**-exponent
    frequencies = config.rope_theta**-exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_length * frequencies / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotary_table(positions, config, dtype, *, local=False):
    """Cosines and sines `[B, T, 1, head_dim / 2]` of the angles at `positions`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = jnp.asarray(rotary_frequencies(config, local=local), wide)
    angles = positions[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotary_tables(positions, config, dtype):
    """A function from a layer's entry of `local_layers` to its `rotary_table`."""
    table = rotary_table(positions, config, dtype)
    if config.local_rope_theta is None:
        return lambda local: table
    other = rotary_table(positions, config, dtype, local=True)
    return lambda local: jax.tree.map(functools.partial(jnp.where, local), other, table)


def rotate(x, rotary):
    """Turns each pair `(x[i], x[i + head_dim / 2])` by its angle, in float32."""
    cos, sin = rotary
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
