"""Flax NNX modules of the transformer.

A block holds the parameters of all layers, stacked along a leading axis; `lax.scan` hands it one
layer at a time, so the same code sees `[D, H, K]` kernels. Every parameter carries two notes:
`axes`, its logical axis names, and `scale`, how it starts.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from polgrad.policies import attention_kernels
from polgrad.policies.attention import attention, in_window, local_layers, rotary_tables, rotate
from polgrad.policies.attention_kernels import Rows
from polgrad.policies.sharding import over_batch, shard_batch

SCALE = 0.02
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def parameter(shape, axes, scale, layers=None):
    """An `nnx.Param`, stacked over layers where `layers` is a number."""
    if layers is not None:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes, scale=scale)


def at_least_float32(x):
    """`x` in `promote_types(dtype, float32)`."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_norm(x, scale, epsilon):
    """See `RMSNorm`."""
    wide = at_least_float32(x)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * inverse * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale`, in float32, back in the type of `x`.

    Centered, the factor is `1 + scale`: it stays as checkpoints have it, since a sum that is rounded
    would not come back exactly.
    """

    def __init__(self, size, axis, epsilon, layers=None, *, centered=False):
        self.scale = parameter((size,), (axis,), "zeros" if centered else "ones", layers)
        self.epsilon = epsilon
        self.centered = centered

    def __call__(self, x):
        scale = self.scale[...]
        return rms_norm(x, 1 + scale if self.centered else scale, self.epsilon)


def embedded(embed, tokens, config, dtype):
    """Embeddings of tokens `[..., D]` in `dtype`, times `sqrt(D)` where the config says so."""
    x = embed[tokens].astype(dtype)
    return x * jnp.asarray(math.sqrt(config.width), dtype) if config.embedding_scale else x


class Projection(nnx.Module):
    """`x @ kernel (+ bias)` over the last `inputs` axes of `x`, in the type of `x`."""

    def __init__(self, shape, axes, *, inputs=1, bias=False, scale=SCALE, layers=None):
        self.kernel = parameter(shape, axes, scale, layers)
        self.bias = parameter(shape[inputs:], axes[inputs:], "zeros", layers) if bias else None
        self.inputs = inputs

    def __call__(self, x):
        # Both sides as matrices: XLA's CPU products, and above all their gradients, run at a third
        # of the speed on arrays of more axes.
        kernel = self.kernel[...].astype(x.dtype)
        ahead, out = x.shape[: x.ndim - self.inputs], kernel.shape[self.inputs :]
        rows = math.prod(kernel.shape[: self.inputs])
        out = (x.reshape(-1, rows) @ kernel.reshape(rows, -1)).reshape(*ahead, *out)
        return out if self.bias is None else out + self.bias[...].astype(x.dtype)


class ScalarHead(nnx.Module):
    """A linear map to one number, zero at the start, in float32."""

    def __init__(self, width):
        self.kernel = parameter((width,), ("embed",), "zeros")
        self.bias = parameter((), (), "zeros")

    def __call__(self, x):
        return at_least_float32(x) @ self.kernel[...] + self.bias[...]


class Attention(nnx.Module):
    """Grouped-query attention; `attend` decides what the queries see and what is stored."""

    def __init__(self, c):
        def project(heads, axis):
            shape, axes = (c.width, heads, c.head_dim), ("embed", axis, None)
            return Projection(shape, axes, bias=c.qkv_bias, layers=c.layers)

        self.query = project(c.heads, "heads")
        self.key = project(c.kv_heads, "kv_heads")
        self.value = project(c.kv_heads, "kv_heads")
        self.output = Projection(
            (c.heads, c.head_dim, c.width),
            ("heads", None, "embed"),
            inputs=2,
            scale=SCALE / math.sqrt(2 * c.layers),
            layers=c.layers,
        )
        norm = functools.partial(
            RMSNorm, c.head_dim, None, c.norm_epsilon, c.layers, centered=c.centered_norms
        )
        self.query_norm = norm() if c.qk_norm else None
        self.key_norm = norm() if c.qk_norm else None

    def __call__(self, x, rotary, attend):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        mixed, stored = attend(rotate(query, rotary), rotate(key, rotary), value)
        return self.output(mixed), stored


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(self, c):
        into, back = (c.width, c.mlp_width), (c.mlp_width, c.width)
        self.gate = Projection(into, ("embed", "mlp"), layers=c.layers)
        self.up = Projection(into, ("embed", "mlp"), layers=c.layers)
        scale = SCALE / math.sqrt(2 * c.layers)
        self.down = Projection(back, ("mlp", "embed"), scale=scale, layers=c.layers)
        self.activation = c.activation

    def __call__(self, x):
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, a norm before each and where asked for behind each, added to what came in."""

    def __init__(self, c):
        norm = functools.partial(
            RMSNorm, c.width, "embed", c.norm_epsilon, c.layers, centered=c.centered_norms
        )
        self.attention_norm = norm()
        self.attention = Attention(c)
        self.attention_post_norm = norm() if c.post_norms else None
        self.mlp_norm = norm()
        self.mlp = MLP(c)
        self.mlp_post_norm = norm() if c.post_norms else None

    def __call__(self, x, rotary, attend):
        mixed, stored = self.attention(self.attention_norm(x), rotary, attend)
        if self.attention_post_norm is not None:
            mixed = self.attention_post_norm(mixed)
        x = x + mixed
        out = self.mlp(self.mlp_norm(x))
        return x + (out if self.mlp_post_norm is None else self.mlp_post_norm(out)), stored


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm, heads."""

    def __init__(self, config):
        c = self.config = config
        self.embed = parameter((c.vocab_size, c.width), ("vocab", "embed"), SCALE)
        self.layers = Block(c)
        self.norm = RMSNorm(c.width, "embed", c.norm_epsilon, centered=c.centered_norms)
        untied = None if c.tied else parameter((c.width, c.vocab_size), ("embed", "vocab"), SCALE)
        self.head = untied
        self.value_head = ScalarHead(c.width) if c.value_head else None
        self.reward_head = ScalarHead(c.width) if c.reward_head else None

    def output_projection(self):
        """`[D, V]`."""
        return self.embed[...].T if self.head is None else self.head[...]

    def blocks(self):
        """A function from one layer's parameters to its block, and all layers' parameters."""
        graphdef, state = nnx.split(self.layers)
        return lambda params: nnx.merge(graphdef, params), nnx.to_pure_dict(state)

    def attend(self, query, key, value, mask, places, local, causal=False):
        """Attention of one layer; `places` are the positions of its queries and of its keys."""
        c = self.config
        mask = in_window(mask, *places, c, local)
        scalar, cap = c.query_scalar, c.attention_cap
        return attention(query, key, value, mask, causal=causal, scalar=scalar, cap=cap)

    def attend_rows(self, kernel, rows, places):
        """Attention of one layer through a kernel: a function `(query, key, value, local)`.

        `rows` tells what is seen (`attention_kernels.Rows`), `places` where all lies (`attend`).
        """
        c = self.config
        if kernel == "xla":
            square, mask = rows.offset == 0, rows.mask(causal=rows.offset != 0)
            return functools.partial(self.attend, mask=mask, places=places, causal=square)
        settings = {"rows": rows, "window": c.window, "scalar": c.query_scalar}
        if kernel == "splash":
            layers = local_layers(c)
            settings["cap"] = c.attention_cap
            settings["local_share"] = 0.0 if layers is None else float(layers.mean())
        return functools.partial(getattr(attention_kernels, kernel), **settings)

    def hidden(self, tokens, positions, segment_ids, dtype, remat, kernel):
        """See `TransformerNetwork.hidden`."""
        arrays = tokens, positions, segment_ids
        x, _ = self._forward(*arrays, dtype, remat, kernel, lambda k, v: None)
        return x

    def group_hidden(self, prompts, lengths, completions, dtype, remat, kernel):
        """See `TransformerNetwork.group_hidden`.

        Inside, prompts end at the right of their part: the completions follow without a hole, and
        what lies how far before a token is told by indices alone, as kernels have it.
        """
        (width, (rows, samples, steps)) = prompts.shape[1], completions.shape
        counted = jnp.arange(width) - (width - lengths[:, None])
        inside = (counted >= 0).astype(jnp.int32)
        counted = jnp.maximum(counted, 0)
        prompts = jnp.take_along_axis(prompts, counted, axis=1)
        following = jnp.tile(lengths[:, None] + jnp.arange(steps), (1, samples))
        tokens = jnp.concatenate(
            [prompts, rearrange(completions, "rows samples steps -> rows (samples steps)")], axis=1
        )
        positions = jnp.concatenate([counted, following], axis=1)

        def after(x):
            """The completions' part of a row, one to a row."""
            split = "rows (samples steps) ... -> (rows samples) steps ..."
            return rearrange(x[:, width:], split, samples=samples)

        def whole(x):
            return jnp.concatenate([jnp.repeat(x[:, :width], samples, axis=0), after(x)], axis=1)

        segments = jnp.pad(inside, ((0, 0), (0, samples * steps)), constant_values=1)
        own = Rows(inside, inside)
        joined = Rows(after(segments), whole(segments), offset=width)
        prompt = self.attend_rows(kernel, own, (counted, counted))
        completion = self.attend_rows(kernel, joined, (after(positions), whole(positions)))

        def attend(query, key, value, local):
            first = prompt(*(x[:, :width] for x in (query, key, value)), local=local)
            rest = completion(after(query), whole(key), whole(value), local=local)
            merged = "(rows samples) steps ... -> rows (samples steps) ..."
            rest = rearrange(rest, merged, samples=samples)
            return jnp.concatenate([first, rest], axis=1), None

        x, _ = self._layers(tokens, positions, attend, dtype, remat)
        first = jnp.broadcast_to(x[:, None, width - 1 : width], (rows, samples, 1, x.shape[-1]))
        split = "rows (samples steps) width -> rows samples steps width"
        rest = rearrange(x[:, width:], split, samples=samples)
        return jnp.concatenate([first, rest], axis=2)

    def _forward(self, tokens, positions, segment_ids, dtype, remat, kernel, keep):
        """All layers on whole sequences; also what `keep(key, value)` gives, stacked."""
        rows = Rows(segment_ids, segment_ids)
        attend_rows = self.attend_rows(kernel, rows, (positions, positions))

        def attend(query, key, value, local):
            return attend_rows(query, key, value, local=local), keep(key, value)

        return self._layers(tokens, positions, attend, dtype, remat)

    def _layers(self, tokens, positions, attend, dtype, remat):
        """Embedding, all layers and the final norm; also what `attend` stores, stacked."""
        rotary = rotary_tables(positions, self.config, dtype)
        merge, layers = self.blocks()

        def layer(x, inputs):
            params, local = inputs
            x, kept = merge(params)(x, rotary(local), functools.partial(attend, local=local))
            return shard_batch(x), kept

        if remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if remat == "dots" else None
            # Inside a loop XLA cannot merge the recomputation with the original: only an
            # unrolled loop needs the (slower) barriers against it.
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=self.config.unroll > 1)
        x = shard_batch(embedded(self.embed[...], tokens, self.config, dtype))
        inputs = (layers, local_layers(self.config))
        x, kept = jax.lax.scan(layer, x, inputs, unroll=min(self.config.unroll, self.config.layers))
        return self.norm(x), kept

    def prefill(self, tokens, lengths, cache, dtype):
        """See `TransformerNetwork.prefill`."""
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        segment_ids = (index < lengths[:, None]).astype(jnp.int32)
        x, kept = self._forward(
            tokens, index, segment_ids, dtype, "none", "xla", lambda k, v: {"key": k, "value": v}
        )
        cache = jax.tree.map(
            lambda old, new: old.at[:, :, : new.shape[2]].set(new.astype(old.dtype)), cache, kept
        )
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        return jnp.take_along_axis(x, last, axis=1)[:, 0], cache

    def decode(self, tokens, positions, cache, dtype):
        """See `TransformerNetwork.decode`."""
        rotary = rotary_tables(positions[:, None], self.config, dtype)
        index = jnp.arange(cache["key"].shape[2])
        visible = (index <= positions[:, None])[:, None, None, :]
        places = (positions[:, None], index[None])
        merge, layers = self.blocks()

        def write(leaf, new, positions, number):
            rows = jnp.arange(positions.shape[0])
            new = new[:, 0].astype(leaf.dtype)
            return leaf.at[number, rows, positions].set(new, mode="drop")

        write = over_batch(write, tokens.shape[0], (1, 0, 0, None), 1)

        def layer(carry, inputs):
            (x, cache), (params, number, local) = carry, inputs

            def attend(query, key, value):
                after = {
                    name: write(cache[name], new, positions, number)
                    for name, new in (("key", key), ("value", value))
                }
                seen = jax.tree.map(lambda leaf: leaf[number].astype(dtype), after)
                mixed = self.attend(query, seen["key"], seen["value"], visible, places, local)
                return mixed, after

            return merge(params)(x, rotary(local), attend), None

        # The cache is carried, not scanned over: carried, it is updated in place, while slices
        # in and out of a scan would copy all of it at every step.
        x = embedded(self.embed[...], tokens, self.config, dtype)[:, None]
        inputs = (layers, jnp.arange(self.config.layers), local_layers(self.config))
        unroll = min(self.config.unroll, self.config.layers)
        (x, cache), _ = jax.lax.scan(layer, (x, cache), inputs, unroll=unroll)
        return self.norm(x)[:, 0], cache
