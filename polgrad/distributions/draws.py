"""Draws from probabilities with given noise."""

import math

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate


def inverse_cdf(
    weights: Float[Array, "B V"], uniforms: Float[Array, "B K"]
) -> tuple[Int[Array, "B K"], Float[Array, " B"]]:
    """Inverts the cumulative distribution: the first token whose cumulative mass exceeds `u`.

    `token = min{i : sum_{j <= i} w_j > u * sum_j w_j}` over tokens with `w_i > 0`, in two levels:
    the sums of blocks of about `sqrt(V)` tokens, then the tokens of the one block that holds `u`.
    A float32 running sum over a whole vocabulary would lose the tail to rounding; here no sum
    has more than about `sqrt(V)` terms. Where rounding leaves `u` above all sums, the last token
    with positive weight is taken: a token of weight zero is never drawn.

    Args:
      weights: `[B, V]` float32, unnormalised probabilities, at least 0, not all 0.
      uniforms: `[B, K]` float32 in `[0, 1)`, `K` draws from each row.

    Returns:
      `(tokens[B, K], totals[B])`: the tokens, int32, and the sum of each row's weights.
    """
    _checks.rank("weights", weights, 2, "[B, V]")
    _checks.shape("uniforms", uniforms, (weights.shape[0], None), "[B, K]")
    weights = accumulate(weights)
    vocabulary = weights.shape[1]
    size = 2 ** round(math.log2(max(vocabulary, 1)) / 2)
    count = -(-vocabulary // size)
    padded = jnp.pad(weights, ((0, 0), (0, count * size - vocabulary)))
    blocks = rearrange(padded, "batch (count size) -> batch count size", size=size)

    sums = blocks.sum(-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    totals = cumulative[:, -1]
    target = uniforms * totals[:, None]
    positive = (sums > 0)[:, None]
    block = _first((cumulative[:, None] > target[..., None]) & positive, positive)

    below = jnp.pad(cumulative, ((0, 0), (1, 0)))
    rest = target - jnp.take_along_axis(below, block, axis=1)
    inner = jnp.take_along_axis(blocks, block[..., None], axis=1)
    positive = inner > 0
    # A running sum in a tree need not be monotone to the last bit: hence `& positive`.
    within = _first((jnp.cumsum(inner, axis=-1) > rest[..., None]) & positive, positive)
    return block * size + within, totals


def _first(hit: Bool[Array, "... n"], allowed: Bool[Array, "... n"]) -> Int[Array, "..."]:
    """The first index with `hit`, or the last one with `allowed` where nothing hits."""
    last = allowed.shape[-1] - 1 - jnp.argmax(allowed[..., ::-1], axis=-1)
    return jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)
