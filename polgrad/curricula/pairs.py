"""Which pairs, and triples, of a prompt's samples a preference loss learns from."""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.data.augmentation import SelectedPair

__all__ = [
    "Triple",
    "judge_scores",
    "knockout_pair",
    "large_margin_pairs",
    "mix_replay",
    "policy_pairs",
    "reference_triples",
]

Tree = TypeVar("Tree")


def judge_scores(
    first_scores: Float[Array, "..."],
    second_scores: Float[Array, "..."],
    noise: Float[Array, "..."],
) -> Bool[Array, "..."]:
    """Labels as a noisy judge gives them: the first answer wins by Bradley-Terry.

        noise < sigmoid(first - second)

    `jnp.where(wins, first, second)` is then the chosen answer. Of tabular games `games.judge_pairs`
    does the same.

    Args:
      first_scores: true rewards of one answer of each pair, any shape.
      second_scores: the same of the other.
      noise: uniform in [0, 1), same shape, addressed by the pair.

    Returns:
      Whether the first is preferred, same shape. Between two equal scores a coin decides; one
      that is not finite loses against one that is.

    Raises:
      ValueError: shapes that differ.

    References:
      Bradley and Terry, Rank analysis of incomplete block designs, 1952.
    """
    _checks.same_shape(
        "one a pair", first_scores=first_scores, second_scores=second_scores, noise=noise
    )
    first, second = accumulate(first_scores), accumulate(second_scores)
    has_first, has_second = jnp.isfinite(first), jnp.isfinite(second)
    gap = jnp.where(has_first & has_second, first - second, 0.0)
    drawn = accumulate(noise) < jax.nn.sigmoid(gap)
    return jnp.where(has_first == has_second, drawn, has_first)


def large_margin_pairs(
    scores: Float[Array, "... K"],
    *,
    margin: float,
    floor: float = -math.inf,
    teacher: Bool[Array, "... K"] | None = None,
    student_margin: float | None = None,
    valid: Bool[Array, "... K"] | None = None,
) -> Bool[Array, "... K K"]:
    """All pairs of a pool whose scores lie far enough apart (DNO's practical form).

    The pool holds the policy's samples and, if there is one, a teacher's answer. Pairs of every
    kind count, students over the teacher too: they grow to most of the data, and without them
    the student is bounded by the teacher (`& teacher[:, None] & ~teacher[None, :]` is that
    ablation).

    Args:
      scores: one an answer, [..., K]: win rates in the pool (`losses.ranking.win_rate_labels`)
        or a judge's scores. Minus infinity marks an answer that may only be rejected, such as
        one that repeats itself.
      margin: least difference of scores, > 0 (2 of 6 points in the paper, 0.4 for win rates).
      floor: least score of a chosen answer (5 of 6 points in the paper).
      teacher: which answers are the teacher's, [..., K]; needed for `student_margin` alone.
      student_margin: least difference where the chosen answer is the policy's own sample, > 0 (1
        in the paper); None for `margin`.
      valid: False for answers to leave out, [..., K]; answers without a score are left out too.

    Returns:
      Entry i, j is True where answer i is to be preferred to answer j, [..., K, K].

    Raises:
      ValueError: shapes that differ; margins that are not positive; `student_margin` without
        `teacher`.

    References:
      Rosset et al., Direct Nash Optimization, 2024 (arXiv:2404.03715), algorithm 2.
    """
    in_range("margin", margin, low=0.0, above=True)
    if jnp.ndim(scores) == 0:
        raise ValueError("scores has shape [], expected [..., K] with the pool on the last axis")
    scores = jnp.asarray(scores)
    known = ~jnp.isnan(scores) & (scores < jnp.inf)
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        known &= jnp.asarray(valid) != 0
    least = margin
    if student_margin is not None:
        in_range("student_margin", student_margin, low=0.0, above=True)
        if teacher is None:
            raise ValueError(f"student_margin is {student_margin} without teacher, expected both")
        _checks.same_shape("[..., K]", scores=scores, teacher=teacher)
        least = jnp.where(jnp.asarray(teacher) != 0, margin, student_margin)[..., :, None]
    positive = known & (scores >= floor) & (scores > -jnp.inf)
    better = jnp.where(positive, scores, 0.0)[..., :, None] - scores[..., None, :]
    return positive[..., :, None] & known[..., None, :] & (better >= least)


def knockout_pair(preference: Float[Array, "... K K"]) -> SelectedPair:
    """Best and worst of a prompt's samples by a tournament: 3K/2 - 1 comparisons for all pairs.

    Neighbours meet, then winners meet winners for the best sample, and losers meet losers for
    the worst; a tie goes to the first of the two. 8 samples take 11 comparisons.

    Args:
      preference: P(i beats j), or 0 / 1 comparisons, [..., K, K], K a power of 2 of at least 2;
        only the entries of matches that take place are read.

    Returns:
      `SelectedPair(chosen, rejected, usable)`, each [...]; usable where the best beats the worst.

    Raises:
      ValueError: shapes other than that.

    References:
      Zhang et al., Iterative Nash Policy Optimization, 2024 (arXiv:2407.00617), appendix.
    """
    shape = jnp.shape(preference)
    size = shape[-1] if shape else 0
    if len(shape) < 2 or shape[-2] != size or size < 2 or size & (size - 1):
        raise ValueError(
            f"preference has shape {list(shape)}, expected [..., K, K] with K a power of 2"
        )
    preference = jnp.asarray(preference)

    def beats(first, second):
        rows = jnp.take_along_axis(preference, first[..., None], axis=-2)
        return jnp.take_along_axis(rows, second[..., None], axis=-1)[..., 0]

    def meet(players):
        first, second = players[..., 0::2], players[..., 1::2]
        won = beats(first, second) >= 0.5
        return jnp.where(won, first, second), jnp.where(won, second, first)

    best, worst = meet(jnp.broadcast_to(jnp.arange(size), shape[:-1]))
    while best.shape[-1] > 1:
        best, worst = meet(best)[0], meet(worst)[1]
    return SelectedPair(best[..., 0], worst[..., 0], (beats(best, worst) > 0.5)[..., 0])


def mix_replay(
    key: Key[Array, ""],
    new: Tree,
    older: Sequence[Tree],
    *,
    fraction: float = 0.3,
    decay: float = 0.5,
) -> Tree:
    """The pairs of this iteration, and a few of the iterations before.

    At most `fraction` times the number of new pairs from the last iteration, `fraction decay`
    times from the one before, and so on, drawn without replacement. Their reference
    log-probabilities are to be those of the CURRENT previous policy: recompute them.

    Args:
      key: for the draws; each older pool has its own stream.
      new: pairs of this iteration, a tree of arrays with as many rows.
      older: pools of the iterations before, the latest first, trees like it.
      fraction: in [0, 1].
      decay: in [0, 1].

    Returns:
      One tree: the new pairs, then the drawn ones.

    Raises:
      ValueError: numbers out of range.

    References:
      Rosset et al., Direct Nash Optimization, 2024 (arXiv:2404.03715): 30%, 15%, ...
    """
    in_range("fraction", fraction, low=0.0, high=1.0)
    in_range("decay", decay, low=0.0, high=1.0)
    size = jax.tree.leaves(new)[0].shape[0]
    parts = [new]
    for age, pool in enumerate(older):
        have = jax.tree.leaves(pool)[0].shape[0]
        # A tenth of 30 is 2.9999...: count it as 3.
        count = min(have, int(size * fraction * decay**age + 1e-9))
        rows = jax.random.permutation(jax.random.fold_in(key, age), have)[:count]
        parts.append(jax.tree.map(lambda x, rows=rows: jnp.asarray(x)[rows], pool))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
