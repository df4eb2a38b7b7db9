"""The token sampler: prefill once for each prompt, decode in slots, refill the slots that finish.

One compiled program for a run. Its shapes are fixed by the prompt bucket, the number of slots and
the length of the cache; which sample sits in which slot is data. A sample's tokens depend on its
prompt and its addressed uniforms alone, never on its neighbours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from polgrad._scalars import in_range
from polgrad.policies.decoder import Weights
from polgrad.policies.network import Network
from polgrad.policies.sharding import batch_devices
from polgrad.rollouts.decoding import STATIC, Sampler, assemble, begin, check, place, take
from polgrad.rollouts.sampling import Sampling
from polgrad.rollouts.types import Rollout

# A device reads all weights once a step: more slots cost little until arithmetic dominates.
DEFAULT_SLOTS = 128


def default_slots(samples: int) -> int:
    """Rows decoded together where nothing else is said: all samples, up to 128 a device.

    At least 2, and as many on each device of the entered mesh: rows that do not divide would all be
    decoded by all of them.
    """
    devices = batch_devices()
    return max(2, -(-min(samples, DEFAULT_SLOTS * devices) // devices) * devices)


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
        rows = take(prompt_caches, new // group_size)
        return place(caches, rows, slot), row.at[slot].set(new), waiting + 1

    caches, row, waiting = jax.lax.while_loop(
        unfilled, fill, (state.caches, state.row, state.waiting)
    )
    return state._replace(caches=caches, row=row, waiting=waiting)


def _step(sampler: Sampler, state: _State, prompt_lengths, keys) -> _State:
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


@functools.partial(jax.jit, static_argnames=("slots", *STATIC))
def _generate(
    network,
    params,
    reference_params,
    prompts,
    prompt_lengths,
    prompt_ids,
    key,
    *,
    slots,
    **settings,
) -> tuple[Rollout, Int[Array, ""]]:
    """The program: a rollout, and the number of decoding steps it took."""
    start = begin(
        network, params, reference_params, prompts, prompt_lengths, prompt_ids, key, **settings
    )
    sampler, group_size = start.sampler, settings["group_size"]
    width, count = sampler.sampling.max_tokens, len(start.token)
    prompt_caches = sampler.ready(start.caches)
    # Samples that ended with their first token never take a slot; the rest keep their order.
    queue = jnp.argsort(start.done, stable=True).astype(jnp.int32)
    queued = (~start.done).sum()
    state = _State(
        caches=sampler.ready(sampler.caches(slots, prompts.shape[1] + width)),
        row=jnp.full(slots, count, jnp.int32),
        waiting=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((count, width), jnp.int32).at[:, 0].set(start.token),
        logp=jnp.zeros((count, width), jnp.float32).at[:, 0].set(start.logp),
        lengths=start.lengths,
        stopped=start.stopped,
        steps=jnp.zeros((), jnp.int32),
    )

    def unfinished(state):
        return (state.waiting < queued) | (state.row < count).any()

    def body(state):
        state = _refill(state, prompt_caches, queue, queued, group_size)
        return _step(sampler, state, start.prompt_lengths, start.keys)

    state = jax.lax.while_loop(unfinished, body, state)
    sampled = state.tokens, state.logp, state.lengths, state.stopped
    rollout = assemble(prompts, prompt_lengths, prompt_ids, group_size, *sampled)
    return rollout, state.steps


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
    weights: Weights = "full",
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
            and rounds differently); by default `default_slots`; static.
        compute_dtype: of activations, cache and head products (summed in float32); static.
        reference_params: parameters of the reference policy, of the same network.
        reference_weight: `w` in [0, 1], the reference's share of the mixture: 0 is exactly the
            policy, 1 exactly the reference; static.
        weights: `"int8"` samples from the policy with the matrices of its layers and its head
            rounded to eight bits (`policies.decoder.round_matrix`), a scale an output channel, made
            once before the loop; products are summed in float32. On more than one device the
            layers' rounded matrices are held in the parameters' own type; static.

    Returns:
        A `Rollout` of `N = M * G` rows, prompt-major. `behavior_logp` is under the distribution
        really sampled from; greedy decoding is a point mass, so there it is 0.

    Raises:
        ValueError: shapes that do not fit; `P + max_tokens > network.max_length`; a stop id outside
            the vocabulary; `group_size < 1`; `slots < 2`; `reference_weight` outside [0, 1], or
            above 0 without `reference_params`; unknown `weights`, or int8 of a network that cannot
            round.

    References:
        Munos et al., Nash Learning from Human Feedback, arXiv:2312.00886 (the mixture).
    """
    settings = {
        "sampling": sampling,
        "group_size": group_size,
        "reference_weight": reference_weight,
        "weights": weights,
    }
    arrays = check(
        network, prompts, prompt_lengths, prompt_ids, reference_params=reference_params, **settings
    )
    if slots is None:
        slots = default_slots(len(arrays[0]) * group_size)
    in_range("slots", slots, low=2)
    settings |= {"slots": slots, "compute_dtype": compute_dtype}
    reference = None if reference_weight == 0 else reference_params
    rollout, _ = _generate(network, params, reference, *arrays, key, **settings)
    return rollout
