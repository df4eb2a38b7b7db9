"""BLEU and ROUGE-L of token ids, under jit and vmap: text metrics inside of a compiled program.

`from polgrad.rewards import bleu` loads jax; the rewards of texts, which run in worker processes,
are in `polgrad.rewards.text_metrics`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "BleuComponents",
    "NgramMatches",
    "bleu_components",
    "harmonic_mean",
    "ngram_matches",
    "rouge_l",
    "sentence_bleu",
]


class NgramMatches(NamedTuple):
    """Counts of n-grams, n = 1..N on the last axis.

    Attributes:
      matched: how many of the hypothesis are in a reference, clipped to the most in any one.
      possible: how many the hypothesis has.
    """

    matched: Float[Array, "*B N"]
    possible: Float[Array, "*B N"]


class BleuComponents(NamedTuple):
    """What a sentence BLEU is made of.

    Attributes:
      precisions: of n-grams, n = 1..N on the last axis.
      brevity_penalty: in [0, 1].
    """

    precisions: Float[Array, "*B N"]
    brevity_penalty: Float[Array, "*B"]


def ngram_matches(
    tokens: Int[Array, "*B T"],
    mask: Num[Array, "*B T"] | Bool[Array, "*B T"],
    references: Int[Array, "*B K R"],
    reference_mask: Num[Array, "*B K R"] | Bool[Array, "*B K R"],
    *,
    max_order: int = 4,
) -> NgramMatches:
    """Counts the n-grams of a hypothesis, and those that its references have too.

        matched_n = sum over n-grams g of min(count in hypothesis, max_k count in reference k)
        possible_n = max(length - n + 1, 0)

    The i-th occurrence of g in the hypothesis matches where some reference has at least i. This
    needs O(T (T + K R)) comparisons an order, and no table of n-grams.

    Args:
      tokens: ids of the hypothesis, [..., T].
      mask: 1 where a token counts, [..., T]; tokens on both sides of a hole are neighbours.
      references: ids of K references, [..., K, R].
      reference_mask: 1 where a token counts; a reference without one is absent.
      max_order: N, at least 1.

    Returns:
      Whole numbers as floats.

    Raises:
      ValueError: shapes that do not match; max_order below 1.

    References:
      Papineni et al., BLEU: a method for automatic evaluation of machine translation, 2002.
    """
    in_range("max_order", max_order, low=1)
    tokens, valid = _packed("tokens", tokens, mask)
    references, present = _packed("references", references, reference_mask)
    own = _equal(tokens, valid, tokens, valid)
    shared = _equal(tokens[..., None, :], valid[..., None, :], references, present)
    length = jnp.sum(valid, axis=-1)
    earlier = jnp.tril(jnp.ones((tokens.shape[-1],) * 2, bool))
    ours, theirs, matched = own, shared, []
    for _ in range(max_order):
        rank = jnp.sum(ours & earlier, axis=-1)
        most = jnp.max(jnp.sum(theirs, axis=-1), axis=-2, initial=0)
        # Where no n-gram starts, the rank is 0.
        matched.append(jnp.sum((rank > 0) & (rank <= most), axis=-1))
        ours, theirs = own & _next(ours), shared & _next(theirs)
    possible = jnp.maximum(length[..., None] - jnp.arange(max_order), 0)
    return NgramMatches(accumulate(jnp.stack(matched, axis=-1)), accumulate(possible))


def bleu_components(
    tokens: Int[Array, "*B T"],
    mask: Num[Array, "*B T"] | Bool[Array, "*B T"],
    references: Int[Array, "*B K R"],
    reference_mask: Num[Array, "*B K R"] | Bool[Array, "*B K R"],
    *,
    max_order: int = 4,
    smoothing: str = "add-one",
    reference_length: str = "shortest",
) -> BleuComponents:
    """Smoothed precisions and brevity penalty.

        precision_n = (matched_n + 1) / (possible_n + 1)         "add-one", for all n
        precision_n = matched_n / possible_n, 0 for possible 0   "none"
        brevity_penalty = 1 if length > l else exp(1 - l / length)

    Args:
      tokens: ids of the hypothesis, [..., T].
      mask: 1 where a token counts.
      references: ids of K references, [..., K, R].
      reference_mask: 1 where a token counts; a reference without one is absent.
      max_order: N, at least 1.
      smoothing: "add-one" or "none".
      reference_length: l is the length of the "shortest" reference, or of the one "closest" to
        that of the hypothesis, the shorter of two.

    Returns:
      The components. The penalty is 0 without a token or without a reference.

    Raises:
      ValueError: shapes that do not match; an unknown name; max_order below 1.

    References:
      Chang et al., BLEUBERI, 2025 (arXiv:2505.11080). Lin and Och, ORANGE, 2004.
    """
    _checks.choice("smoothing", smoothing, ("add-one", "none"))
    _checks.choice("reference_length", reference_length, ("shortest", "closest"))
    counts = ngram_matches(tokens, mask, references, reference_mask, max_order=max_order)
    if smoothing == "add-one":
        precisions = (counts.matched + 1.0) / (counts.possible + 1.0)
    else:
        precisions = counts.matched / jnp.maximum(counts.possible, 1.0)
    length = counts.possible[..., 0]
    wanted = accumulate(jnp.sum(jnp.asarray(reference_mask) != 0, axis=-1))
    # An absent reference is farther than any other.
    wanted = jnp.where(wanted > 0.0, wanted, jnp.inf)
    shortest = jnp.min(wanted, axis=-1, initial=jnp.inf)
    if reference_length == "closest":
        distance = jnp.abs(wanted - length[..., None])
        nearest = distance == jnp.min(distance, axis=-1, keepdims=True, initial=jnp.inf)
        shortest = jnp.min(jnp.where(nearest, wanted, jnp.inf), axis=-1, initial=jnp.inf)
    ratio = shortest / jnp.maximum(length, 1.0)
    penalty = jnp.exp(jnp.minimum(1.0 - ratio, 0.0))
    return BleuComponents(precisions, jnp.where(length > 0.0, penalty, 0.0))


def sentence_bleu(
    tokens: Int[Array, "*B T"],
    mask: Num[Array, "*B T"] | Bool[Array, "*B T"],
    references: Int[Array, "*B K R"],
    reference_mask: Num[Array, "*B K R"] | Bool[Array, "*B K R"],
    *,
    max_order: int = 4,
    smoothing: str = "add-one",
    reference_length: str = "shortest",
) -> Float[Array, "*B"]:
    """BLEU of each hypothesis: brevity penalty times the geometric mean of the precisions.

    A free reward where good references exist and no verifier does.

    Args:
      tokens: ids of the hypothesis, [..., T].
      mask: 1 where a token counts.
      references: ids of K references, [..., K, R].
      reference_mask: 1 where a token counts; a reference without one is absent.
      max_order: longest n-grams, at least 1.
      smoothing: "add-one" or "none"; without it one precision of 0 makes the whole 0.
      reference_length: "shortest" or "closest", as in `bleu_components`.

    Returns:
      Scores in [0, 1], [...]; 0 without a token or without a reference.

    Raises:
      ValueError: as `bleu_components`.

    References:
      Papineni et al., 2002. Chang et al., BLEUBERI: BLEU is a surprisingly effective reward for
      instruction following, 2025 (arXiv:2505.11080).
    """
    precisions, penalty = bleu_components(
        tokens,
        mask,
        references,
        reference_mask,
        max_order=max_order,
        smoothing=smoothing,
        reference_length=reference_length,
    )
    # exp(log 0) is 0.
    return penalty * jnp.exp(jnp.mean(jnp.log(precisions), axis=-1))


def rouge_l(
    tokens: Int[Array, "*B T"],
    mask: Num[Array, "*B T"] | Bool[Array, "*B T"],
    references: Int[Array, "*B K R"],
    reference_mask: Num[Array, "*B K R"] | Bool[Array, "*B K R"],
) -> Float[Array, "*B"]:
    """ROUGE-L: F1 of the longest common subsequence, the best over the references.

        2 LCS / (length + reference length)

    Args:
      tokens: ids of the hypothesis, [..., T].
      mask: 1 where a token counts.
      references: ids of K references, [..., K, R].
      reference_mask: 1 where a token counts.

    Returns:
      Scores in [0, 1], [...]; 0 without a common token.

    Raises:
      ValueError: shapes that do not match.

    References:
      Lin, ROUGE: a package for automatic evaluation of summaries, 2004.
    """
    tokens, valid = _packed("tokens", tokens, mask)
    references, present = _packed("references", references, reference_mask)
    equal = _equal(tokens[..., None, :], valid[..., None, :], references, present)

    def step(row, same):
        # row[j]: longest common subsequence with the first j + 1 tokens of the reference.
        before = jnp.pad(row[..., :-1], [(0, 0)] * (row.ndim - 1) + [(1, 0)])
        longer = jnp.maximum(row, before + same)
        return jax.lax.cummax(longer, axis=longer.ndim - 1), None

    start = jnp.zeros(references.shape, jnp.int32)
    row, _ = jax.lax.scan(step, start, jnp.moveaxis(equal, -2, 0).astype(jnp.int32))
    common = accumulate(jnp.max(row, axis=-1, initial=0))
    total = jnp.sum(valid, axis=-1)[..., None] + jnp.sum(present, axis=-1)
    return jnp.max(2.0 * common / jnp.maximum(total, 1), axis=-1, initial=0.0)


def harmonic_mean(
    first_scores: Float[Array, "..."], second_scores: Float[Array, "..."]
) -> Float[Array, "..."]:
    """2 a b / (a + b): high only where both scores are.

    Args:
      first_scores: non-negative, any shape.
      second_scores: non-negative, same shape.

    Returns:
      Same shape, float32 or wider; 0 where both are 0.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("one a sample", first_scores=first_scores, second_scores=second_scores)
    first, second = accumulate(first_scores), accumulate(second_scores)
    total = first + second
    some = total > 0.0
    return jnp.where(some, 2.0 * first * second / jnp.where(some, total, 1.0), 0.0)


def _packed(name, tokens, mask):
    """Valid tokens moved to the front, in order, and where they are."""
    tokens, valid = jnp.asarray(tokens), jnp.asarray(mask) != 0
    _checks.same_shape("one mask entry a token", **{name: tokens, "mask": valid})
    order = jnp.argsort(~valid, axis=-1, stable=True)
    return tuple(jnp.take_along_axis(x, order, axis=-1) for x in (tokens, valid))


def _equal(first, first_valid, second, second_valid):
    """[..., i, j]: token i of the first is there and equals token j of the second."""
    same = first[..., :, None] == second[..., None, :]
    return same & first_valid[..., :, None] & second_valid[..., None, :]


def _next(equal):
    """The same one position later in both sequences; False behind their ends."""
    return jnp.pad(equal[..., 1:, 1:], [(0, 0)] * (equal.ndim - 2) + [(0, 1), (0, 1)])
