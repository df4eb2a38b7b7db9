"""Resets: rollouts that start inside of a recorded answer instead of from scratch.

Text can be reset to any prefix. One step, with references z of M prompts:

    prefix = prefix_lengths(lengths, noise, beta=1.0)
    reset = reset_prompts(prompts, prompt_lengths, references, prefix)
    rollout = rollouts.generate(network, params, *reset, ids, key, sampling=sampling)
    answer = join_prefix(references, prefix, rollout.completions, rollout.completion_lengths)

Score the whole `answer.tokens` under `answer.mask`; the policy loss counts `answer.generated`
alone. The prefix states come from the data and are start states: they need no importance weight.
Measure a policy from the prompts, never from resets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "ForcedTokens",
    "JoinedAnswers",
    "ResetPrompts",
    "forced_tokens",
    "join_prefix",
    "prefix_lengths",
    "reset_prompts",
    "reset_states",
]


class ForcedTokens(NamedTuple):
    """What a sampler is made to say first.

    Attributes:
      tokens: of the reference, 0 where nothing is forced.
      mask: True where a token is forced (the roll-in), which the policy loss leaves out.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]


class ResetPrompts(NamedTuple):
    """Prompts that end inside of a reference answer, as a sampler takes them.

    Attributes:
      prompts: prompt and prefix, right-padded with 0.
      prompt_lengths: tokens of both.
    """

    prompts: Int[Array, "B S"]
    prompt_lengths: Int[Array, "B"]


class JoinedAnswers(NamedTuple):
    """Whole answers: a prefix from the data and what the policy made of it.

    Attributes:
      tokens: prefix and continuation, right-padded with 0.
      mask: 1 on the tokens of the answer: what a reward, a KL and a critic see.
      generated: 1 on those that the policy sampled: what the policy loss sees.
    """

    tokens: Int[Array, "B S"]
    mask: Float[Array, "B S"]
    generated: Float[Array, "B S"]


def prefix_lengths(
    reference_lengths: Int[Array, "B"],
    noise: Float[Array, "B"],
    *,
    beta: float = 1.0,
    min_prefix: int = 1,
) -> Int[Array, "B"]:
    """How much of each reference is given: nothing, or a uniform admissible number of tokens.

    With probability beta uniform on {min_prefix, ..., length - 1}, else 0. The last token of a
    reference is never given. beta = 0 is rollouts from scratch.

    Args:
      reference_lengths: tokens of each reference, [B].
      noise: uniform in [0, 1), one a sample, [B].
      beta: share of samples that are reset, in [0, 1]; 1 in the paper's main results.
      min_prefix: shortest prefix, >= 0; 1 in the released code. With 1 and beta = 1 the first
        token is never generated, so the policy's start of an answer stays what it was.

    Returns:
      Prefix lengths, [B]; 0 for a reference with no admissible prefix (length <= min_prefix).

    Raises:
      ValueError: shapes that differ; numbers out of range.

    References:
      Chang et al., Dataset Reset Policy Optimization for RLHF, 2024 (arXiv:2404.08495).
    """
    _checks.rank("reference_lengths", reference_lengths, 1, "[B]")
    _checks.same_shape("[B]", reference_lengths=reference_lengths, noise=noise)
    in_range("beta", beta, low=0.0, high=1.0)
    in_range("min_prefix", min_prefix, low=0)
    admissible = jnp.asarray(reference_lengths) - min_prefix
    # Below beta the same number is uniform again.
    place, reset = _place(noise, admissible, beta)
    return jnp.where(reset & (admissible > 0), min_prefix + place, 0)


def forced_tokens(references: Int[Array, "B T"], prefix: Int[Array, "B"]) -> ForcedTokens:
    """The first tokens of each reference, and where they are forced.

    Args:
      references: right-padded, [B, T].
      prefix: how many tokens are forced, [B].

    Returns:
      Tokens and mask, [B, T].

    Raises:
      ValueError: shapes that do not match.
    """
    _check_rows(references=references, prefix=prefix)
    mask = jnp.arange(jnp.shape(references)[1]) < jnp.asarray(prefix)[:, None]
    return ForcedTokens(jnp.where(mask, references, 0), mask)


def reset_prompts(
    prompts: Int[Array, "B P"],
    prompt_lengths: Int[Array, "B"],
    references: Int[Array, "B T"],
    prefix: Int[Array, "B"],
) -> ResetPrompts:
    """Appends the prefix of each reference to its prompt, for a sampler to go on from.

    Args:
      prompts: right-padded, [B, P].
      prompt_lengths: [B], in 0..P; 0 marks an absent prompt.
      references: right-padded, [B, T].
      prefix: tokens of the reference that are given, [B], in 0..T.

    Returns:
      Prompts [B, P + T], right-padded; an absent prompt stays absent.

    Raises:
      ValueError: shapes that do not match.

    References:
      Chang et al., 2024 (arXiv:2404.08495).
    """
    _check_rows(
        prompts=prompts, prompt_lengths=prompt_lengths, references=references, prefix=prefix
    )
    prompt_lengths = jnp.asarray(prompt_lengths)
    given = jnp.where(prompt_lengths > 0, jnp.asarray(prefix), 0)
    joined = _append(prompts, prompt_lengths, references, given)
    return ResetPrompts(joined, prompt_lengths + given)


def join_prefix(
    references: Int[Array, "B T"],
    prefix: Int[Array, "B"],
    completions: Int[Array, "B S"],
    completion_lengths: Int[Array, "B"],
    *,
    width: int | None = None,
) -> JoinedAnswers:
    """Puts the given prefix before what was sampled behind it.

    Args:
      references: right-padded, [B, T].
      prefix: tokens of the reference that were given, [B], in 0..T.
      completions: what the policy sampled, right-padded, [B, S].
      completion_lengths: [B], in 0..S.
      width: longest answer that is kept, in tokens; None for all, T + S.

    Returns:
      Answers with their two masks, [B, width].

    Raises:
      ValueError: shapes that do not match; width below 1.

    References:
      Chang et al., 2024 (arXiv:2404.08495).
    """
    _check_rows(
        references=references,
        prefix=prefix,
        completions=completions,
        completion_lengths=completion_lengths,
    )
    prefix, completion_lengths = jnp.asarray(prefix), jnp.asarray(completion_lengths)
    tokens = _append(references, prefix, completions, completion_lengths)
    if width is not None:
        in_range("width", width, low=1)
        tokens = tokens[:, :width]
    place = jnp.arange(tokens.shape[1])
    inside = place < (prefix + completion_lengths)[:, None]
    sampled = inside & (place >= prefix[:, None])
    return JoinedAnswers(tokens, *(x.astype(jnp.float32) for x in (inside, sampled)))


def reset_states(
    states: PyTree[Array], initial: PyTree[Array], noise: Float[Array, "B"], *, beta: float = 1.0
) -> PyTree[Array]:
    """Simulators set to states of demonstrations: with probability beta a uniform one of them.

    Args:
      states: recorded simulator states, leaves [N, ...].
      initial: ordinary start states, the same tree, leaves [B, ...].
      noise: uniform in [0, 1), one a simulator, [B].
      beta: share of simulators that are reset, in [0, 1].

    Returns:
      States, leaves [B, ...].

    Raises:
      ValueError: beta out of range; leaves that do not match.

    References:
      Chang et al., 2024 (arXiv:2404.08495).
    """
    in_range("beta", beta, low=0.0, high=1.0)
    leaf = jax.tree.leaves(states)[0]
    index, reset = _place(noise, jnp.full(jnp.shape(noise), jnp.shape(leaf)[0]), beta)

    def choose(recorded, start):
        _checks.shape(
            "initial", start, (*jnp.shape(noise), *jnp.shape(recorded)[1:]), "[B, ...] of states"
        )
        chosen = jnp.asarray(recorded)[index]
        return jnp.where(reset.reshape((-1,) + (1,) * (chosen.ndim - 1)), chosen, start)

    return jax.tree.map(choose, states, initial)


def _place(noise, count, beta):
    """A uniform index in 0..count - 1, and whether there is a reset at all, from one number."""
    noise = accumulate(noise)
    reset = noise < beta
    scaled = jnp.where(reset, noise, 0.0) / jnp.where(beta > 0.0, beta, 1.0)
    place = jnp.floor(scaled * count).astype(jnp.int32)
    return jnp.minimum(place, jnp.maximum(count - 1, 0)), reset


def _check_rows(**arrays):
    """Raises ValueError unless token arrays and their lengths, by turns, have one number of rows."""
    names = list(arrays)
    _checks.rank(names[0], arrays[names[0]], 2, "[B, any]")
    rows = jnp.shape(arrays[names[0]])[0]
    for tokens, lengths in zip(names[::2], names[1::2]):
        _checks.shape(tokens, arrays[tokens], (rows, None), "[B, any]")
        _checks.shape(lengths, arrays[lengths], (rows,), "[B]")


def _append(first, first_lengths, second, second_lengths):
    """Rows of the first, cut to their lengths, followed by those of the second; 0 behind."""
    first, second = jnp.asarray(first), jnp.asarray(second)
    place = jnp.arange(first.shape[1] + second.shape[1])
    behind = place - first_lengths[:, None]
    # Places outside of either array hold 0.
    head = jnp.pad(first, ((0, 0), (0, second.shape[1])))
    tail = jnp.take_along_axis(
        jnp.pad(second, ((0, 0), (0, first.shape[1]))), jnp.maximum(behind, 0), axis=1
    )
    tail = jnp.where(behind < second_lengths[:, None], tail, 0)
    return jnp.where(behind < 0, head, tail)
