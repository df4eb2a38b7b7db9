"""One decoder-only transformer for the Llama, Qwen and Gemma shapes.

`TransformerConfig` chooses the shape (`configuration.py`); `TransformerNetwork` wraps the module (`modules.py`) as a
pure network whose parameters are a plain nested dict with all layers stacked in each leaf.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from polgrad.policies import attention_kernels, decoder, modules
from polgrad.policies.configuration import TransformerConfig
from polgrad.policies.heads import CappedHead
from polgrad.policies.network import Cache, Params, initialize

REMAT = ("none", "full", "dots")


@functools.lru_cache(maxsize=64)
def _abstract(config: TransformerConfig):
    """The module's graph definition and, by path, its abstract variables: made once a config."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: modules.Transformer(config)))
    return graphdef, nnx.to_flat_state(state)


def _tree(config: TransformerConfig, leaf) -> Params:
    """Nested dict with `leaf(path, variable)` at the place of each parameter."""
    tree: Params = {}
    for path, variable in _abstract(config)[1]:
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf("/".join(path), variable)
    return tree


@dataclasses.dataclass(frozen=True)
class TransformerNetwork:
    """A transformer as a pure network (see `polgrad.policies.network.Network`).

    Args:
        config: its shape.
    """

    config: TransformerConfig

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self.config.max_length

    def init(self, key: PRNGKeyArray) -> Params:
        """Random parameters.

        Matrices are normal with standard deviation 0.02; the two projections into the residual
        stream are scaled by `1 / sqrt(2 * layers)`, norms multiply by one, biases and scalar heads
        are zero.

        Args:
            key: a leaf depends on it and on the leaf's own name alone.

        Returns:
            Nested dict of float32 arrays; those under `"layers"` are `[layers, ...]`.
        """
        leaves = {
            "/".join(path): (variable.shape, variable.get_metadata("scale"))
            for path, variable in _abstract(self.config)[1]
        }
        arrays = initialize(key, leaves)
        return _tree(self.config, lambda path, _: arrays[path])

    def logical_axes(self) -> Params:
        """The tree of `init` with logical axis names: None, layers, embed, heads, mlp, ..."""
        return _tree(self.config, lambda _, variable: variable.get_metadata("axes"))

    def shapes(self) -> Params:
        """The tree of `init` with `jax.ShapeDtypeStruct` leaves: nothing is allocated."""
        return _tree(self.config, lambda _, v: jax.ShapeDtypeStruct(v.shape, jnp.float32))

    def _module(self, params: Params) -> modules.Transformer:
        return nnx.merge(_abstract(self.config)[0], jax.tree.map(jnp.asarray, params))

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | Bool[Array, "B T"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        attention: str = "auto",
    ) -> Float[Array, "B T D"]:
        """Last hidden states, after the final norm.

        Token `t` attends to tokens `s <= t` of the same segment; in a local layer to those less
        than `window` positions before it.

        Args:
            params: as from `init`.
            tokens: `[B, T]`, in `0..V-1`.
            positions: `[B, T]` rotary positions, counted from the start of each segment.
            segment_ids: `[B, T]`; 0 is padding, every other number a sequence of its own. Bool tells
                that each row is one sequence with padding behind it alone, for which cuDNN needs no
                mask.
            compute_dtype: type of the matrix products; norms and softmax stay in float32.
            remat: what the backward pass recomputes: `"none"`, `"full"` (all of a layer), or
                `"dots"` (all but the products with the weights).
            attention: the kernel that attends: `"xla"`, `"splash"` (TPU), `"cudnn"` (NVIDIA GPU; no
                `attention_cap`), or `"auto"`, that of the entered mesh's devices where it can (see
                `attention_kernels`); of several devices without a mesh, `"xla"`.

        Returns:
            `[B, T, D]` in `compute_dtype`; finite but meaningless at padding.

        Raises:
            ValueError: an unknown `remat`, `T` above `max_length`, or a kernel that cannot run.
        """
        self._check(remat, "tokens", tokens.shape[1])
        kernel = self.attention_kernel(attention, compute_dtype, tokens.shape[1])
        return self._module(params).hidden(
            tokens, positions, segment_ids, compute_dtype, remat, kernel
        )

    def group_hidden(
        self,
        params: Params,
        prompts: Int[Array, "M P"],
        lengths: Int[Array, " M"],
        completions: Int[Array, "M G S"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        attention: str = "auto",
    ) -> Float[Array, "M G S+1 D"]:
        """Hidden states of several completions of each prompt; a prompt is read once.

        What `hidden` gives for the prompt followed by each completion, without computing the
        prompt's part `G` times.

        Args:
            params: as from `init`.
            prompts: `[M, P]`, right-padded, in `0..V-1`.
            lengths: `[M]`, in `0..P`.
            completions: `[M, G, S]`, right-padded, S at least 1; each follows its prompt directly.
            compute_dtype: as of `hidden`.
            remat: as of `hidden`.
            attention: as of `hidden`.

        Returns:
            `[M, G, S + 1, D]` in `compute_dtype`: the state after the prompt, and after each token
            of the completion; finite but meaningless at padding.

        Raises:
            ValueError: an unknown `remat`, `P + S` above `max_length`, or a kernel that cannot run.
        """
        length = prompts.shape[1] + completions.shape[2]
        self._check(remat, "prompts and completions", length)
        kernel = self.attention_kernel(attention, compute_dtype, length)
        return self._module(params).group_hidden(
            prompts, lengths, completions, compute_dtype, remat, kernel
        )

    def attention_kernel(
        self,
        setting: str,
        dtype: DTypeLike,
        length: int,
        *,
        platform: str | None = None,
    ) -> str:
        """The kernel that a setting of `attention` means: `"xla"`, `"cudnn"` or `"splash"`.

        Args:
            setting: as of `hidden`.
            dtype: type of the matrix products.
            length: tokens of a row.
            platform: of the devices; by default of those that the program being traced is for.

        Raises:
            ValueError: an unknown setting, or a kernel by name that cannot run.
        """
        # The TPU kernel has to be told how its arrays are split.
        unseen = platform is None and attention_kernels.split_unseen()
        return attention_kernels.choose(
            "xla" if setting == "auto" and unseen else setting,
            platform=platform or attention_kernels.platform(),
            dtype=dtype,
            head_dim=self.config.head_dim,
            cap=self.config.attention_cap,
            length=length,
        )

    def head(self, params: Params) -> Float[Array, "D V"] | CappedHead:
        """The output projection `[D, V]`: the embedding transposed where the two are tied.

        With a `logit_cap` it is a `heads.CappedHead` of that matrix.
        """
        matrix, cap = self._module(params).output_projection(), self.config.logit_cap
        return matrix if cap is None else CappedHead(matrix, cap)

    def values(self, params: Params, hidden: Float[Array, "*S D"]) -> Float[Array, "*S"]:
        """State values `[...]` in float32 from hidden states `[..., D]`.

        Raises:
            ValueError: the config has no `value_head`.
        """
        return self._scalar(params, hidden, "value_head")

    def rewards(self, params: Params, hidden: Float[Array, "*S D"]) -> Float[Array, "*S"]:
        """Scalar rewards `[...]` in float32 from hidden states `[..., D]`.

        Raises:
            ValueError: the config has no `reward_head`.
        """
        return self._scalar(params, hidden, "reward_head")

    def _scalar(self, params: Params, hidden, name: str):
        if not getattr(self.config, name):
            raise ValueError(f"this transformer has no {name}: set {name}=True in its config")
        return getattr(self._module(params), name)(hidden)

    def init_cache(self, batch: int, length: int, dtype: DTypeLike) -> Cache:
        """Zeros for keys and values, each `[layers, batch, length, kv_heads, head_dim]`.

        Raises:
            ValueError: `length` above `max_length`.
        """
        self._check_length("cache length", length)
        c = self.config
        shape = (c.layers, batch, length, c.kv_heads, c.head_dim)
        return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}

    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Reads prompts into cache indices `0..P-1`.

        Args:
            params: as from `init`.
            tokens: `[B, P]`, right-padded.
            lengths: `[B]`, in `0..P`.
            cache: as from `init_cache`, at least `P` long. Indices from a row's length on hold
                padding afterwards; `decode` overwrites each before it first attends to it.
            compute_dtype: type of the matrix products.

        Returns:
            Hidden states at `lengths - 1` (at 0 for an empty prompt) `[B, D]`, and the cache.

        Raises:
            ValueError: prompts longer than the cache.
        """
        if tokens.shape[1] > cache["key"].shape[2]:
            raise ValueError(
                f"tokens has {tokens.shape[1]} columns, more than the cache holds: "
                f"{cache['key'].shape[2]}"
            )
        return self._module(params).prefill(tokens, lengths, cache, compute_dtype)

    def decode(
        self,
        params: Params,
        tokens: Int[Array, " B"],
        positions: Int[Array, " B"],
        cache: Cache,
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B D"], Cache]:
        """One decoding step.

        Args:
            params: as from `init`.
            tokens: `[B]`, in `0..V-1`.
            positions: `[B]`; row `b` writes its key and value at cache index `positions[b]` and
                attends to indices up to and with it (of its window, in a local layer). A row whose position lies outside the cache
                writes nothing.
            cache: as from `init_cache` or `prefill`.
            compute_dtype: type of the matrix products.

        Returns:
            Hidden states `[B, D]`, and the cache.
        """
        return self._module(params).decode(tokens, positions, cache, compute_dtype)

    def decoder(
        self,
        params: Params,
        *,
        compute_dtype: DTypeLike = jnp.float32,
        weights: decoder.Weights = "full",
    ) -> decoder.TransformerDecoder | None:
        """Weights made ready for many decoding steps, where that pays.

        Args:
            params: as from `init`.
            compute_dtype: type of the matrix products.
            weights: `"full"`, or `"int8"` for matrices rounded to eight bits.

        Returns:
            A decoder with `caches` and `decode`; None where `decode` on `params` is to be used: on
            more than one device, where joined products would be laid out anew, and for full weights
            on accelerators, where a program of all layers is slow to compile.
        """
        several = jax.sharding.get_abstract_mesh().size > 1
        if several or (weights == "full" and jax.default_backend() != "cpu"):
            return None
        return decoder.prepare(self.config, params, compute_dtype=compute_dtype, weights=weights)

    def round_layers(self, params: Params) -> Params:
        """Parameters with the matrices of `weights="int8"`, in the layout of `init`."""
        return decoder.round_layers(params)

    def _check(self, remat: str, name: str, length: int) -> None:
        if remat not in REMAT:
            raise ValueError(f"remat must be one of {REMAT}, got {remat!r}")
        self._check_length(name, length)

    def _check_length(self, name: str, length: int) -> None:
        if length > self.config.max_length:
            raise ValueError(f"{name} is {length}, above max_length {self.config.max_length}")
