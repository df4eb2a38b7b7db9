"""The token sampler: prefill once for each prompt, decode in slots, refill the slots that finish.

One compiled program for a run. Its shapes are fixed by the prompt bucket, the number of slots and
the length of the cache; which sample sits in which slot is data. A sample's tokens depend on its
prompt and its addressed uniforms alone, never on its neighbours.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from polgrad.policies.distributions import geometric_mixture
from polgrad.policies.network import Network
from polgrad.rollouts.sampling import Sampling, draw, sample_keys, token_uniforms
from polgrad.rollouts.types import Rollout

# Prompts are prefilled in chunks of about this many tokens: activations stay bounded, and a chunk
# is still large enough to keep any device busy.
_PREFILL_TOKENS = 8192
# Decoding reads all weights once a step: more slots cost little until arithmetic dominates.
_DEFAULT_SLOTS = 128


class _Sampler(NamedTuple):
    """What every step needs: the policies (one, or two for a mixture) and how to sample."""

    network: Network
    policies: tuple[PyTree, ...]
    heads: tuple[Array, ...]
    reference_weight: float
    sampling: Sampling
    compute_dtype: jnp.dtype

    def caches(self, batch: int, length: int) -> tuple[PyTree, ...]:
        make = self.network.init_cache
        return tuple(make(batch, length, self.compute_dtype) for _ in self.policies)

    def draw(self, hidden, uniforms):
        """Hidden states `[B, D]`, one for each policy, and `[B, K]` uniforms to tokens and logp."""
        # As the trainer's head does it: products in the compute type, sums in float32.
        logits = [
            jnp.dot(h.astype(head.dtype), head, preferred_element_type=jnp.float32)
            for h, head in zip(hidden, self.heads)
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
                self.network.decode(
                    params, tokens, positions, cache, compute_dtype=self.compute_dtype
                )
                for params, cache in zip(self.policies, caches)
            )
        )
        drawn, logp = self.draw(hidden, token_uniforms(keys, steps)[:, None])
        return drawn[:, 0], logp[:, 0], caches

    def stops(self, tokens):
        """Whether tokens are stop tokens, same shape."""
        return jnp.isin(tokens, jnp.array(self.sampling.stop_ids, jnp.int32))


def _make_sampler(
    network, params, reference_params, *, reference_weight, sampling, compute_dtype
) -> _Sampler:
    # A mixture of weight 0 or 1 is one policy: exactly, and at the price of one.
    policies = (params, reference_params)
    if reference_weight in (0, 1):
        policies = (policies[int(reference_weight)],)
    # Outside the loop, so that a tied embedding is transposed once and not for each token.
    heads = tuple(network.head(policy).astype(compute_dtype) for policy in policies)
    return _Sampler(network, policies, heads, reference_weight, sampling, jnp.dtype(compute_dtype))


def _place(cache: PyTree, update: PyTree, row: Int[Array, ""]) -> PyTree:
    """Writes `update`'s leaves `[layers, b, ...]` into `cache`'s from batch row `row`, in place."""
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice(
            leaf, new, (0, row) + (0,) * (leaf.ndim - 2)
        ),
        cache,
        update,
    )


def _prefill(sampler: _Sampler, prompts, lengths, keys):
    """All prompts, once each: caches `[layers, M, P, ...]`, first tokens and logp `[M, G]`."""
    count, width = prompts.shape
    chunks = -(-count * width // _PREFILL_TOKENS)
    size = -(-count // chunks)
    if size == count:
        return sampler.prefill(prompts, lengths, keys)
    chunks = -(-count // size)

    def split(x):
        padding = ((0, chunks * size - count),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(chunks, size, *x.shape[1:])

    # Typed keys do not pad; their data does.
    data, implementation = jax.random.key_data(keys), jax.random.key_impl(keys)

    def body(caches, chunk):
        start, prompts, lengths, data = chunk
        keys = jax.random.wrap_key_data(data, impl=implementation)
        part, tokens, logp = sampler.prefill(prompts, lengths, keys)
        return _place(caches, part, start), (tokens, logp)

    starts = jnp.arange(chunks, dtype=jnp.int32) * size
    caches, drawn = jax.lax.scan(
        body,
        sampler.caches(chunks * size, width),
        (starts, split(prompts), split(lengths), split(data)),
    )
    tokens, logp = (x.reshape(chunks * size, -1)[:count] for x in drawn)
    return caches, tokens, logp


class _State(NamedTuple):
    """The decoding loop's state. A slot's token and position follow from its row's outputs."""

    caches: tuple[PyTree, ...]  # leaves [layers, slots, ...], one cache for each policy
    row: Int[Array, " slots"]  # the sample in each slot; N in an empty one
    waiting: Int[Array, ""]  # index in the queue of the next sample
    tokens: Int[Array, "N T"]
    logp: Float[Array, "N T"]
    lengths: Int[Array, " N"]
    stopped: Bool[Array, " N"]
    steps: Int[Array, ""]  # decoding steps so far


def _refill(state: _State, prompt_caches, queue, queued, group_size) -> _State:
    """Gives every empty slot the next sample of the queue, by copying its prompt's cache rows.

    A loop over the empty slots, not a masked copy of all: most steps refill nothing, and then the
    loop's body does not run and the cache is not touched.
    """
    empty = state.tokens.shape[0]

    def unfilled(carry):
        _, row, waiting = carry
        return (waiting < queued) & (row == empty).any()

    def fill(carry):
        caches, row, waiting = carry
        slot = jnp.argmax(row == empty).astype(jnp.int32)
        new = queue[waiting]
        rows = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, new // group_size, 1, axis=1),
            prompt_caches,
        )
        return _place(caches, rows, slot), row.at[slot].set(new), waiting + 1

    caches, row, waiting = jax.lax.while_loop(
        unfilled, fill, (state.caches, state.row, state.waiting)
    )
    return state._replace(caches=caches, row=row, waiting=waiting)


def _step(sampler: _Sampler, state: _State, prompt_lengths, keys) -> _State:
    """Decodes one token in every slot; outputs of empty slots are dropped."""
    count, width = state.tokens.shape
    active = state.row < count
    row = jnp.minimum(state.row, count - 1)
    step = jnp.where(active, state.lengths[row], 1)
    # The prompt fills positions 0 .. length-1; generated token t sits at length + t.
    positions = jnp.where(active, prompt_lengths[row] + step - 1, 0)
    token, logp, caches = sampler.decode(
        state.tokens[row, step - 1], positions, state.caches, keys[row], step
    )
    stopped = sampler.stops(token)
    return state._replace(
        caches=caches,
        # Row N of an empty slot lies outside the outputs, and its writes are dropped.
        tokens=state.tokens.at[state.row, step].set(token, mode="drop"),
        logp=state.logp.at[state.row, step].set(logp, mode="drop"),
        lengths=state.lengths.at[state.row].add(1, mode="drop"),
        stopped=state.stopped.at[state.row].set(stopped, mode="drop"),
        row=jnp.where(active & ~stopped & (step + 1 < width), state.row, count),
        steps=state.steps + 1,
    )


def _first_tokens(sampler, prompts, prompt_lengths, keys):
    """Prefills; returns caches and first tokens, logp, lengths (0 or 1), stopped, done `[N]`."""
    caches, token, logp = _prefill(sampler, prompts, prompt_lengths, keys)
    token, logp = token.reshape(-1), logp.reshape(-1)
    present = jnp.repeat(prompt_lengths > 0, keys.shape[1])
    stopped = sampler.stops(token) & present
    done = stopped | ~present | (sampler.sampling.max_tokens == 1)
    return caches, token, logp, present.astype(jnp.int32), stopped, done


def _rollout(prompts, prompt_lengths, prompt_ids, group_size, tokens, logp, lengths, stopped):
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


@functools.partial(
    jax.jit,
    static_argnames=(
        "network",
        "sampling",
        "group_size",
        "slots",
        "compute_dtype",
        "reference_weight",
    ),
)
def _generate(
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
    slots,
    compute_dtype,
    reference_weight,
) -> tuple[Rollout, Int[Array, ""]]:
    """The program: a rollout, and the number of decoding steps it took."""
    sampler = _make_sampler(
        network,
        params,
        reference_params,
        reference_weight=reference_weight,
        sampling=sampling,
        compute_dtype=compute_dtype,
    )
    width, count = sampling.max_tokens, prompts.shape[0] * group_size
    keys = sample_keys(key, prompt_ids, group_size)
    prompt_caches, token, logp, lengths, stopped, done = _first_tokens(
        sampler, prompts, prompt_lengths, keys
    )
    keys = keys.reshape(count, *keys.shape[2:])
    row_lengths = jnp.repeat(prompt_lengths, group_size)
    # Samples that ended with their first token never take a slot; the rest keep their order.
    queue, queued = jnp.argsort(done, stable=True).astype(jnp.int32), (~done).sum()
    state = _State(
        caches=sampler.caches(slots, prompts.shape[1] + width),
        row=jnp.full(slots, count, jnp.int32),
        waiting=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((count, width), jnp.int32).at[:, 0].set(token),
        logp=jnp.zeros((count, width), jnp.float32).at[:, 0].set(logp),
        lengths=lengths,
        stopped=stopped,
        steps=jnp.zeros((), jnp.int32),
    )

    def unfinished(state):
        return (state.waiting < queued) | (state.row < count).any()

    def body(state):
        state = _refill(state, prompt_caches, queue, queued, group_size)
        return _step(sampler, state, row_lengths, keys)

    state = jax.lax.while_loop(unfinished, body, state)
    rollout = _rollout(
        prompts,
        prompt_lengths,
        prompt_ids,
        group_size,
        state.tokens,
        state.logp,
        state.lengths,
        state.stopped,
    )
    return rollout, state.steps


def _check(network, prompts, prompt_lengths, prompt_ids, sampling, group_size):
    """Static mistakes, at trace time."""
    chex.assert_rank(prompts, 2, custom_message="prompts must be [M, P]")
    chex.assert_shape(
        [prompt_lengths, prompt_ids],
        prompts.shape[:1],
        custom_message="prompt_lengths and prompt_ids must be [M]",
    )
    if 0 in prompts.shape:
        raise ValueError(f"prompts has shape {prompts.shape}; expected at least one prompt, token")
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; expected at least 1")
    length = prompts.shape[1] + sampling.max_tokens
    if length > network.max_length:
        raise ValueError(
            f"prompts of width {prompts.shape[1]} and max_tokens {sampling.max_tokens} need "
            f"{length} positions; the network has max_length {network.max_length}"
        )
    for token in sampling.stop_ids:
        if token >= network.vocab_size:
            raise ValueError(
                f"stop_ids holds {token}; expected ids under vocab_size {network.vocab_size}"
            )


def generate(
    network: Network,
    params: PyTree,
    prompts: Int[Array, "M P"],
    prompt_lengths: Int[Array, " M"],
    prompt_ids: UInt32[Array, " M"],
    key: Key[Array, ""],
    *,
    sampling: Sampling,
    group_size: int = 1,
    slots: int | None = None,
    compute_dtype: jnp.dtype = jnp.float32,
    reference_params: PyTree | None = None,
    reference_weight: float = 0.0,
) -> Rollout:
    """Samples `group_size` completions of each prompt, in one compiled program.

    `y_t ~ pi(. | x, y_<t)`, tempered and filtered by `sampling`; with a reference, from the
    geometric mixture `pi^(1 - w) ref^w / Z` of the two next-token distributions. Every prompt is
    prefilled once for its whole group. Samples then decode in `slots` rows; a row whose sample
    ends (stop token, or `max_tokens`) takes the next sample of the prompt-major queue, so a long
    sample holds nobody up, and the loop ends with the last sample.

    Token `t` of sample `g` of the prompt with id `p` is drawn with the one number
    `uniform(fold_in(fold_in(fold_in(key, p), g), t))`: within one program its value does not
    depend on the slot, the order of prompts or what else is in the queue. Programs of other shapes
    round differently, and a token may then differ where its number lies on a boundary.

    Args:
        network: the network; static.
        params: its parameters; sharded ones are fine.
        prompts: `[M, P]` token ids from index 0, right-padded.
        prompt_lengths: `[M]`, in `[0, P]`. A prompt of length 0 is absent: its samples are empty
            and cost nothing (padding of a ragged batch).
        prompt_ids: `[M]` below 2^32, the addresses of the randomness.
        key: the root key of this rollout.
        sampling: lengths, temperature, filters, stop tokens; static.
        group_size: `G`, samples of each prompt, at least 1; static.
        slots: rows decoded together, at least 2 (a matrix product of one row takes another path
            and rounds differently); by default all samples, up to 128; static.
        compute_dtype: of activations, cache and head products (summed in float32); static.
        reference_params: parameters of the reference policy, of the same network.
        reference_weight: `w` in [0, 1], the reference's share of the mixture: 0 is exactly the
            policy, 1 exactly the reference; static.

    Returns:
        A `Rollout` of `N = M * G` rows, prompt-major. `behavior_logp` is under the distribution
        really sampled from; greedy decoding is a point mass, so there it is 0.

    Raises:
        AssertionError: shapes that do not fit (chex).
        ValueError: `P + max_tokens > network.max_length`; a stop id outside the vocabulary;
            `group_size < 1`; `slots < 2`; `reference_weight` outside [0, 1], or above 0 without
            `reference_params`.

    References:
        Munos et al., Nash Learning from Human Feedback, arXiv:2312.00886 (the mixture).
    """
    _check(network, prompts, prompt_lengths, prompt_ids, sampling, group_size)
    count = prompts.shape[0] * group_size
    slots = max(2, min(count, _DEFAULT_SLOTS)) if slots is None else slots
    if slots < 2:
        raise ValueError(f"slots is {slots}; expected at least 2")
    if not 0 <= reference_weight <= 1:
        raise ValueError(f"reference_weight is {reference_weight}; expected in [0, 1]")
    if reference_weight > 0 and reference_params is None:
        raise ValueError(f"reference_weight is {reference_weight}, but reference_params is None")
    rollout, _ = _generate(
        network,
        params,
        None if reference_weight == 0 else reference_params,
        prompts,
        prompt_lengths,
        prompt_ids,
        key,
        sampling=sampling,
        group_size=group_size,
        slots=slots,
        compute_dtype=compute_dtype,
        reference_weight=reference_weight,
    )
    return rollout


def generate_fixed(
    network: Network,
    params: PyTree,
    prompts: Int[Array, "M P"],
    prompt_lengths: Int[Array, " M"],
    prompt_ids: UInt32[Array, " M"],
    key: Key[Array, ""],
    *,
    sampling: Sampling,
    group_size: int = 1,
    compute_dtype: jnp.dtype = jnp.float32,
) -> Rollout:
    """Samples as `generate` does, by a scan of `max_tokens` steps over all samples at once.

    For small worlds, where a whole training loop is one program: no queue and no early stop, so it
    costs the same whatever is sampled and `vmap`s over parameters and seeds. The randomness has
    the same addresses, so the tokens are those of `generate`.

    Args:
        network: the network; static.
        params: its parameters.
        prompts: `[M, P]` token ids from index 0, right-padded.
        prompt_lengths: `[M]`, in `[0, P]`; 0 marks an absent prompt.
        prompt_ids: `[M]` below 2^32.
        key: the root key of this rollout.
        sampling: lengths, temperature, filters, stop tokens; static.
        group_size: `G`, samples of each prompt, at least 1; static.
        compute_dtype: of activations and cache; static.

    Returns:
        A `Rollout` of `N = M * G` rows, prompt-major, as from `generate`.

    Raises:
        AssertionError: shapes that do not fit (chex).
        ValueError: `P + max_tokens > network.max_length`; a stop id outside the vocabulary;
            `group_size < 1`.
    """
    _check(network, prompts, prompt_lengths, prompt_ids, sampling, group_size)
    sampler = _make_sampler(
        network,
        params,
        None,
        reference_weight=0.0,
        sampling=sampling,
        compute_dtype=compute_dtype,
    )
    width, count = sampling.max_tokens, prompts.shape[0] * group_size
    keys = sample_keys(key, prompt_ids, group_size)
    caches, token, logp, lengths, stopped, done = _first_tokens(
        sampler, prompts, prompt_lengths, keys
    )
    keys = keys.reshape(count, *keys.shape[2:])
    row_lengths = jnp.repeat(prompt_lengths, group_size)
    rows = jax.tree.map(lambda x: jnp.repeat(x[:, : prompts.shape[0]], group_size, 1), caches)
    caches = _place(sampler.caches(count, prompts.shape[1] + width), rows, jnp.int32(0))

    def body(carry, step):
        caches, token, lengths, stopped, done = carry
        steps = jnp.full(count, step, jnp.int32)
        token, logp, caches = sampler.decode(token, row_lengths + step - 1, caches, keys, steps)
        lengths = lengths + ~done
        stopped = stopped | (sampler.stops(token) & ~done)
        return (caches, token, lengths, stopped, done | stopped), (token, logp)

    (_, _, lengths, stopped, _), (tokens, logps) = jax.lax.scan(
        body, (caches, token, lengths, stopped, done), jnp.arange(1, width, dtype=jnp.int32)
    )
    tokens = jnp.concatenate([token[:, None], tokens.T], axis=1)
    logps = jnp.concatenate([logp[:, None], logps.T], axis=1)
    return _rollout(
        prompts, prompt_lengths, prompt_ids, group_size, tokens, logps, lengths, stopped
    )
