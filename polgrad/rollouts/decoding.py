"""What both samplers share: prefill, one decoding step, checks, and the result's assembly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PyTree

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.distributions import geometric_mixture
from polgrad.policies.attention import soft_cap
from polgrad.policies.decoder import Rounded, round_matrix
from polgrad.policies.heads import CappedHead, matrix_and_cap
from polgrad.policies.network import Network
from polgrad.policies.sharding import batch_devices, shard_batch
from polgrad.rollouts.sampling import Sampling, draw, sample_keys, token_uniforms
from polgrad.rollouts.types import Rollout

# What is static in the compiled program of a sampler.
STATIC = ("network", "sampling", "group_size", "compute_dtype", "reference_weight", "weights")
# Prompts are prefilled in chunks of about this many tokens a device: activations stay bounded, and a
# chunk is still large enough to keep any device busy.
_PREFILL_TOKENS = 8192


def check(
    network,
    prompts,
    prompt_lengths,
    prompt_ids,
    *,
    sampling,
    group_size,
    reference_params,
    reference_weight,
    weights="full",
):
    """Static mistakes, at trace time; returns the three arrays in the sampler's types."""
    prompts, prompt_lengths = (
        jnp.asarray(prompts, jnp.int32),
        jnp.asarray(prompt_lengths, jnp.int32),
    )
    prompt_ids = jnp.asarray(prompt_ids, jnp.uint32)
    _checks.rank("prompts", prompts, 2, "[M, P]")
    _checks.shape("prompt_lengths", prompt_lengths, prompts.shape[:1], "[M]")
    _checks.shape("prompt_ids", prompt_ids, prompts.shape[:1], "[M]")
    if 0 in prompts.shape:
        raise ValueError(
            f"prompts has shape {list(prompts.shape)}, expected one prompt and one token or more"
        )
    in_range("group_size", group_size, low=1)
    length = prompts.shape[1] + sampling.max_tokens
    if length > network.max_length:
        raise ValueError(
            f"prompts of width {prompts.shape[1]} and max_tokens {sampling.max_tokens} need "
            f"{length} positions; the network has max_length {network.max_length}"
        )
    for token in sampling.stop_ids:
        if token >= network.vocab_size:
            raise ValueError(
                f"stop_ids holds {token}, expected ids under vocab_size {network.vocab_size}"
            )
    in_range("reference_weight", reference_weight, low=0.0, high=1.0)
    _checks.choice("weights", weights, ("full", "int8"))
    if weights == "int8" and not hasattr(network, "round_layers"):
        raise ValueError(
            f"weights is 'int8', expected 'full' for a {type(network).__name__}, which has no "
            "round_layers"
        )
    if reference_params is None and (is_traced(reference_weight) or reference_weight > 0):
        raise ValueError(
            f"reference_params is None, expected parameters for reference_weight {reference_weight}"
        )
    return prompts, prompt_lengths, prompt_ids


def is_traced(weight: Any) -> bool:
    """Whether the weight of a mixture is one of several under `jax.vmap`, or of a schedule."""
    return isinstance(weight, jax.core.Tracer)


class Plain(NamedTuple):
    """The decoder of a network that has none of its own: its parameters as they are."""

    network: Network
    params: PyTree
    compute_dtype: jnp.dtype

    def caches(self, cache):
        """A cache as `decode` takes it: as it is."""
        return cache

    def decode(self, tokens, positions, cache):
        """One step of the network."""
        return self.network.decode(
            self.params, tokens, positions, cache, compute_dtype=self.compute_dtype
        )


class Sampler(NamedTuple):
    """What every step needs: the policies (one, or two for a mixture) and how to sample."""

    network: Network
    policies: tuple[PyTree, ...]
    decoders: tuple[Any, ...]
    heads: tuple[Array | Rounded | CappedHead, ...]
    reference_weight: float
    sampling: Sampling
    compute_dtype: jnp.dtype

    def caches(self, batch: int, length: int) -> tuple[PyTree, ...]:
        """Empty caches, one a policy, split over a mesh by their rows: they are most of memory."""
        make = self.network.init_cache
        caches = tuple(make(batch, length, self.compute_dtype) for _ in self.policies)
        return jax.tree.map(lambda leaf: shard_batch(leaf, axis=1), caches)

    def ready(self, caches: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Caches of `caches` or `prefill` as `decode` takes them, their rows still the second axis."""
        return tuple(decoder.caches(cache) for decoder, cache in zip(self.decoders, caches))

    def draw(self, hidden, uniforms):
        """Hidden states `[B, D]`, one for each policy, and `[B, K]` uniforms to tokens and logp."""
        # As the trainer's head does it: products in the compute type, sums in float32.
        logits = [
            head_product(h.astype(self.compute_dtype), head) for h, head in zip(hidden, self.heads)
        ]
        if len(logits) == 2:
            logits = [geometric_mixture(*logits, reference_weight=self.reference_weight)]
        return draw(logits[0], uniforms, self.sampling)

    def prefill(self, tokens, lengths, keys):
        """`[b, P]` prompts and `[b, G]` keys to caches and the groups' first tokens and logp."""
        hidden, caches = zip(
            *(
                self.network.prefill(
                    params, tokens, lengths, cache, compute_dtype=self.compute_dtype
                )
                for params, cache in zip(self.policies, self.caches(*tokens.shape))
            )
        )
        uniforms = jax.vmap(token_uniforms, (0, None))(keys, jnp.zeros(keys.shape[1], jnp.int32))
        return caches, *self.draw(hidden, uniforms)

    def decode(self, tokens, positions, caches, keys, steps):
        """One token for each of `[B]` rows: feeds `tokens`, draws number `steps`."""
        hidden, caches = zip(
            *(
                decoder.decode(tokens, positions, cache)
                for decoder, cache in zip(self.decoders, caches)
            )
        )
        drawn, logp = self.draw(hidden, token_uniforms(keys, steps)[:, None])
        return drawn[:, 0], logp[:, 0], caches

    def stops(self, tokens):
        """Whether tokens are stop tokens, same shape."""
        return jnp.isin(tokens, jnp.array(self.sampling.stop_ids, jnp.int32))


def head_product(hidden, head):
    """Logits `[B, V]`, summed in float32 from products in the type of `hidden`, and capped."""
    matrix, cap = matrix_and_cap(head)
    values = matrix.values.astype(hidden.dtype) if isinstance(matrix, Rounded) else matrix
    logits = jnp.dot(hidden, values, preferred_element_type=jnp.float32)
    return soft_cap(logits * matrix.scales if isinstance(matrix, Rounded) else logits, cap)


def make_sampler(
    network, params, reference_params, *, reference_weight, sampling, compute_dtype, weights="full"
) -> Sampler:
    """Everything that is made once, before the loop: heads, rounded and joined matrices."""
    # A mixture of weight 0 or 1 is one policy: exactly, and at the price of one.
    policies = (params, reference_params)
    if not is_traced(reference_weight) and reference_weight in (0, 1):
        policies = (policies[int(reference_weight)],)
    dtype = jnp.dtype(compute_dtype)
    # Outside the loop, so that a tied embedding is transposed once and not for each token.
    heads = tuple(network.head(policy) for policy in policies)
    prepare = getattr(network, "decoder", None)
    settings = {"compute_dtype": dtype}
    if weights == "int8":
        settings["weights"] = weights
        heads = jax.tree.map(round_matrix, heads)
    else:
        heads = jax.tree.map(lambda matrix: matrix.astype(dtype), heads)
    made = [prepare and prepare(policy, **settings) for policy in policies]
    if weights == "int8":
        # The prompts are read by the same policy that decodes.
        policies = tuple(network.round_layers(policy) for policy in policies)
    decoders = tuple(d or Plain(network, p, dtype) for d, p in zip(made, policies))
    return Sampler(network, policies, decoders, heads, reference_weight, sampling, dtype)


def place(cache: PyTree, update: PyTree, row: Int[Array, ""]) -> PyTree:
    """Writes `update`'s leaves `[layers, b, ...]` into `cache`'s from batch row `row`, in place."""
    # All of one type, also where plain integers have 64 bits.
    zero = jnp.zeros((), row.dtype)
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice(
            leaf, new, (zero, row) + (zero,) * (leaf.ndim - 2)
        ),
        cache,
        update,
    )


def take(cache: PyTree, row: Int[Array, ""]) -> PyTree:
    """One batch row of a cache, leaves `[layers, 1, ...]`."""

    def of_leaf(leaf):
        if batch_devices() == 1:
            return jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis=1)
        # Cut out at an index, the row would be made by gathering all of them.
        here = jnp.arange(leaf.shape[1]).reshape(-1, *(1,) * (leaf.ndim - 2)) == row
        return jnp.where(here, leaf, 0).sum(axis=1, keepdims=True, dtype=leaf.dtype)

    return jax.tree.map(of_leaf, cache)


def _prefill(sampler: Sampler, prompts, lengths, keys):
    """All prompts, once each: caches `[layers, M, P, ...]`, first tokens and logp `[M, G]`."""
    (count, width), devices = prompts.shape, batch_devices()
    chunks = -(-count * width // (_PREFILL_TOKENS * devices))
    # As many prompts on each device: what does not divide would be read whole by all of them.
    size = -(-count // (chunks * devices)) * devices
    if size == count:
        return sampler.prefill(prompts, lengths, keys)
    chunks = -(-count // size)
    # The last chunk is filled up with repetitions of the last prompt, cut off below.
    index = jnp.minimum(jnp.arange(chunks * size), count - 1)
    index = rearrange(index, "(chunks size) -> chunks size", size=size)

    def body(caches, chunk):
        start, rows = chunk
        part, tokens, logp = sampler.prefill(prompts[rows], lengths[rows], keys[rows])
        return place(caches, part, start), (tokens, logp)

    starts = jnp.arange(chunks, dtype=jnp.int32) * size
    caches, drawn = jax.lax.scan(body, sampler.caches(chunks * size, width), (starts, index))
    rows = "chunks size samples -> (chunks size) samples"
    tokens, logp = (rearrange(x, rows)[:count] for x in drawn)
    return caches, tokens, logp


class Start(NamedTuple):
    """Where every sampler begins: the prompts are read, and each sample has its first token.

    Attributes:
        sampler: the policies and how to sample from them.
        caches: of the prompts, leaves `[layers, M or more, P, ...]`, one cache for each policy.
        prompt_lengths: `[N]`, of each sample's prompt.
        keys: `[N]`, of each sample.
        token: `[N]`, the first tokens.
        logp: `[N]`, their log-probabilities.
        lengths: `[N]`, 1, or 0 for a sample of an absent prompt.
        stopped: `[N]`, whether the first token is a stop token.
        done: `[N]`, whether no further token follows.
    """

    sampler: Sampler
    caches: tuple[PyTree, ...]
    prompt_lengths: Int[Array, " N"]
    keys: Array
    token: Int[Array, " N"]
    logp: Float[Array, " N"]
    lengths: Int[Array, " N"]
    stopped: Bool[Array, " N"]
    done: Bool[Array, " N"]


def begin(
    network,
    params,
    reference_params,
    prompts,
    prompt_lengths,
    prompt_ids,
    key,
    *,
    sampling,
    group_size,
    **settings,
) -> Start:
    """Makes the sampler, reads all prompts and draws the first token of each sample.

    The arrays are those of `check`; `settings` are further ones of `make_sampler`.
    """
    sampler = make_sampler(network, params, reference_params, sampling=sampling, **settings)
    keys = sample_keys(key, prompt_ids, group_size)
    caches, token, logp = _prefill(sampler, prompts, prompt_lengths, keys)
    token, logp = token.reshape(-1), logp.reshape(-1)
    row_lengths = jnp.repeat(prompt_lengths, group_size)
    present = jnp.repeat(prompt_lengths > 0, group_size)
    stopped = sampler.stops(token) & present
    done = stopped | ~present | (sampling.max_tokens == 1)
    keys = keys.reshape(len(token), *keys.shape[2:])
    lengths = present.astype(jnp.int32)
    return Start(sampler, caches, row_lengths, keys, token, logp, lengths, stopped, done)


def assemble(prompts, prompt_lengths, prompt_ids, group_size, tokens, logp, lengths, stopped):
    """Assembles the result; whatever lies beyond a completion's length becomes 0."""
    inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
    samples = jnp.arange(group_size, dtype=jnp.uint32)
    return Rollout(
        prompts=jnp.repeat(prompts, group_size, axis=0),
        prompt_lengths=jnp.repeat(prompt_lengths, group_size),
        completions=jnp.where(inside, tokens, 0),
        completion_lengths=lengths,
        mask=inside.astype(jnp.float32),
        behavior_logp=jnp.where(inside, logp, 0.0),
        stopped=stopped,
        prompt_ids=jnp.repeat(prompt_ids, group_size),
        sample_ids=jnp.tile(samples, prompts.shape[0]),
    )
