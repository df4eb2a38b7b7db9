"""The sampler of small worlds: a scan of fixed length, to be inlined in a training loop."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree, UInt32

from polgrad.policies.network import Network
from polgrad.rollouts.decoding import STATIC, assemble, begin, check, is_traced, place
from polgrad.rollouts.sampling import Sampling
from polgrad.rollouts.types import Rollout


@functools.partial(jax.jit, static_argnames=STATIC)
def _generate_fixed(
    network, params, reference_params, prompts, prompt_lengths, prompt_ids, key, **settings
) -> Rollout:
    start = begin(
        network, params, reference_params, prompts, prompt_lengths, prompt_ids, key, **settings
    )
    sampler, group_size = start.sampler, settings["group_size"]
    width, count = sampler.sampling.max_tokens, len(start.token)
    rows = jax.tree.map(lambda x: jnp.repeat(x[:, : len(prompts)], group_size, 1), start.caches)
    caches = sampler.caches(count, prompts.shape[1] + width)
    caches = sampler.ready(place(caches, rows, jnp.int32(0)))

    def body(carry, step):
        caches, token, lengths, stopped, done = carry
        steps, positions = jnp.full(count, step, jnp.int32), start.prompt_lengths + step - 1
        token, logp, caches = sampler.decode(token, positions, caches, start.keys, steps)
        lengths = lengths + ~done
        stopped = stopped | (sampler.stops(token) & ~done)
        return (caches, token, lengths, stopped, done | stopped), (token, logp)

    carry = caches, start.token, start.lengths, start.stopped, start.done
    (_, _, lengths, stopped, _), (tokens, logps) = jax.lax.scan(
        body, carry, jnp.arange(1, width, dtype=jnp.int32)
    )
    tokens = jnp.concatenate([start.token[:, None], tokens.T], axis=1)
    logps = jnp.concatenate([start.logp[:, None], logps.T], axis=1)
    return assemble(
        prompts, prompt_lengths, prompt_ids, group_size, tokens, logps, lengths, stopped
    )


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
    reference_params: PyTree | None = None,
    reference_weight: float = 0.0,
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
        compute_dtype: of activations, cache and head products (summed in float32); static.
        reference_params: parameters of the reference policy, of the same network.
        reference_weight: `w` in [0, 1], the reference's share of the mixture; static, or traced
            where several weights run in one program.

    Returns:
        A `Rollout` of `N = M * G` rows, prompt-major, as from `generate`.

    Raises:
        ValueError: shapes that do not fit; `P + max_tokens > network.max_length`; a stop id outside
            the vocabulary; `group_size < 1`; `reference_weight` outside [0, 1], or above 0 without
            `reference_params`.
    """
    settings = {
        "sampling": sampling,
        "group_size": group_size,
        "reference_weight": reference_weight,
    }
    arrays = check(
        network, prompts, prompt_lengths, prompt_ids, reference_params=reference_params, **settings
    )
    traced = is_traced(reference_weight)
    # A traced weight is part of a program that is being built: there is nothing to compile apart.
    generate = _generate_fixed.__wrapped__ if traced else _generate_fixed
    reference = reference_params if traced or reference_weight != 0 else None
    return generate(
        network, params, reference, *arrays, key, compute_dtype=compute_dtype, **settings
    )
