"""Pairs of answers: made of samples and scores, flipped, mixed with older ones, cut out of trajectories.

From the samples of a prompt: `ordered_pairs` (all), `large_margin_pairs` (those far enough apart),
`select_pair` (the best and a random one), `knockout_pair` (best and worst by a tournament). `judge_scores`
labels as a noisy judge does, `flip_pairs` exchanges doubtful ones, `mix_replay` keeps a few of earlier
iterations, `replay_order` shuffles a recorded stream in windows, `sample_segments` cuts windows of
trajectories that are to be compared. Pairs that a policy is told its score of are in augmentation.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.data.augmentation import Tree
from polgrad.losses.ranking import answers

__all__ = [
    "OrderedPairs",
    "Segments",
    "SelectedPair",
    "flip_pairs",
    "judge_scores",
    "knockout_pair",
    "large_margin_pairs",
    "mix_replay",
    "ordered_pairs",
    "replay_order",
    "sample_segments",
    "select_pair",
]


class OrderedPairs(NamedTuple):
    """All pairs of a group, the better answer first, for `dpo`, `ipo` and their relatives.

    Attributes:
      chosen_logratio: of the answers with the higher reward, M = G (G - 1) / 2 pairs.
      rejected_logratio: of the others.
      valid: 1 where the rewards differ by enough.
    """

    chosen_logratio: Float[Array, "... M"]
    rejected_logratio: Float[Array, "... M"]
    valid: Float[Array, "... M"]


def ordered_pairs(
    logratio: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    threshold: float = 0.0,
    valid: Bool[Array, "... G"] | None = None,
) -> OrderedPairs:
    """All pairs of the samples of a prompt whose rewards differ by more than a threshold.

    For the pairwise losses on groups; the logistic one of a whole list is `pairwise_logistic`.

    Args:
      logratio: log(policy / reference) of the G samples, sums over tokens, in nats; the gradient
        flows through them.
      rewards: what orders them; no gradient flows through an order.
      threshold: smallest gap that makes a pair, exclusive, >= 0; 0.2 in the paper's offline runs.
      valid: False for samples to leave out; None for none.

    Returns:
      Pairs on the last axis. A pair that is not valid holds zeros, without gradient.

    Raises:
      ValueError: shapes that differ; rank 0 or 1; threshold below 0.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367).
    """
    in_range("threshold", threshold, low=0.0)
    _checks.groups("logratio", logratio)
    logratio, rewards, counted = answers(valid, logratio=logratio, rewards=rewards)
    first, second = jnp.triu_indices(rewards.shape[-1], k=1)
    gap = rewards[..., first] - rewards[..., second]
    made = (jnp.abs(gap) > threshold) & counted[..., first] & counted[..., second]
    swap = gap < 0.0
    chosen = jnp.where(swap, logratio[..., second], logratio[..., first])
    rejected = jnp.where(swap, logratio[..., first], logratio[..., second])
    kept = [jnp.where(made, x, 0.0) for x in (chosen, rejected)]
    return OrderedPairs(*kept, made.astype(rewards.dtype))


class SelectedPair(NamedTuple):
    """A pair out of the samples of a prompt.

    Attributes:
      chosen: index of the best sample.
      rejected: index of another one.
      usable: whether there are two samples to choose from.
    """

    chosen: Int[Array, "..."]
    rejected: Int[Array, "..."]
    usable: Bool[Array, "..."]


def select_pair(
    scores: Float[Array, "... K"],
    noise: Float[Array, "... K"],
    *,
    valid: Bool[Array, "... K"] | None = None,
) -> SelectedPair:
    """The best sample of a prompt and a random other one: how UltraFeedback makes its pairs.

    Args:
      scores: one a sample, [..., K].
      noise: uniform numbers in [0, 1), same shape; the largest of the others is taken.
      valid: False for samples to leave out; those with a score that is not finite are left out
        in any case.

    Returns:
      `SelectedPair(chosen, rejected, usable)`, each [...]; of equal best samples the first. The
      rejected sample may have the chosen one's score.

    Raises:
      ValueError: shapes that differ; fewer than two samples.

    References:
      Cui et al., UltraFeedback, 2023 (arXiv:2310.01377). Zhang et al., Reward-Augmented Data,
      2024 (arXiv:2410.08067).
    """
    _checks.same_shape("[..., K]", scores=scores, noise=noise)
    if jnp.ndim(scores) == 0 or jnp.shape(scores)[-1] < 2:
        raise ValueError(
            f"scores has shape {list(jnp.shape(scores))}, expected [..., K] with K of at least 2"
        )
    known = jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        known &= jnp.asarray(valid) != 0
    chosen = jnp.argmax(jnp.where(known, scores, -jnp.inf), axis=-1)
    others = known & (jnp.arange(jnp.shape(scores)[-1]) != chosen[..., None])
    rejected = jnp.argmax(jnp.where(others, noise, -jnp.inf), axis=-1)
    return SelectedPair(chosen, rejected, jnp.any(others, axis=-1))


def flip_pairs(chosen: Tree, rejected: Tree, flip: Bool[Array, "N"]) -> tuple[Tree, Tree]:
    """Exchanges the answers of those pairs whose label is believed to be wrong.

    Args:
      chosen: a tree of arrays with N rows.
      rejected: a tree like it.
      flip: which pairs to exchange, [N], such as `reward_models.flip_mask`.

    Returns:
      (chosen, rejected) with those rows exchanged.

    Raises:
      ValueError: if `flip` is not [N] or the trees' arrays differ in shape.

    References:
      Wang et al., Secrets of RLHF in Large Language Models Part II: Reward Modeling, 2024
      (arXiv:2401.06080).
    """
    _checks.rank("flip", flip, 1, "[N], one a pair")
    flip = jnp.asarray(flip) != 0

    def pick(there, here):
        _checks.same_shape("the same for both answers", chosen=here, rejected=there)
        _checks.shape("flip", flip, jnp.shape(here)[:1], "[N]")
        return jnp.where(flip.reshape(-1, *[1] * (jnp.ndim(here) - 1)), there, here)

    return jax.tree.map(pick, rejected, chosen), jax.tree.map(pick, chosen, rejected)


Tree = TypeVar("Tree")


def judge_scores(
    first_scores: Float[Array, "..."],
    second_scores: Float[Array, "..."],
    noise: Float[Array, "..."],
) -> Bool[Array, "..."]:
    """Labels as a noisy judge gives them: the first answer wins by Bradley-Terry.

        noise < sigmoid(first - second)

    `jnp.where(wins, first, second)` is then the chosen answer. Of tabular games `tabular.judge_pairs`
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


def replay_order(noise: Float[Array, "N"], *, window: int | None = None) -> Int[Array, "N"]:
    """Shuffles the batches of an online run inside of windows, to train on them offline.

    Replayed in order from the same start, the stream reproduces the online run; shuffled, it
    keeps the coverage of the data and loses that each batch was drawn by the policy it meets.

    Args:
      noise: uniform, one a batch, [N].
      window: batches that are shuffled among themselves, >= 1; 1 keeps the order, None shuffles
        all.

    Returns:
      Which batch comes when, [N]: a permutation that never leaves a window.

    Raises:
      ValueError: noise not [N]; window below 1.

    References:
      Tang et al., Understanding the performance gap between online and offline alignment
      algorithms, 2024 (arXiv:2405.08448): windows of 4 and 500 batches.
    """
    _checks.rank("noise", noise, 1, "[N], one a batch")
    if window is None:
        return jnp.argsort(noise)
    in_range("window", window, low=1)
    return jnp.lexsort((jnp.asarray(noise), jnp.arange(jnp.shape(noise)[0]) // window))


class Segments(NamedTuple):
    """Windows of trajectories.

    Attributes:
      steps: the trajectories' leaves, [B, length, ...].
      trajectory: which one each is of, [B].
      start: its first step, [B].
    """

    steps: PyTree
    trajectory: Int[Array, "B"]
    start: Int[Array, "B"]


def sample_segments(
    trajectories: PyTree, lengths: Int[Array, "N"], noise: Float[Array, "B"], *, length: int
) -> Segments:
    """Segments of one length, each window of the data equally likely.

    A trajectory of n steps has n - length + 1 windows: long ones are drawn more often, and one
    that is shorter than a segment never.

    Args:
      trajectories: a tree of arrays [N, L, ...].
      lengths: valid steps of each, [N].
      noise: uniform in [0, 1), addressed by the segment, [B].
      length: steps of a segment, from 1 to L.

    Returns:
      The segments.

    Raises:
      ValueError: leaves that do not match `lengths`; a length out of range; concrete lengths of
        which none holds a segment.

    References:
      Christiano et al., Deep reinforcement learning from human preferences, 2017
      (arXiv:1706.03741). Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639).
    """
    leaves = jax.tree.leaves(trajectories)
    _checks.rank("lengths", lengths, 1, "[N], one a trajectory")
    for leaf in leaves:
        _checks.shape(
            "trajectories",
            leaf,
            (jnp.shape(lengths)[0], *jnp.shape(leaf)[1:]),
            "leaves [N, L, ...]",
        )
    longest = min(jnp.shape(leaf)[1] for leaf in leaves)
    if not 1 <= length <= longest:
        raise ValueError(f"length is {length}, expected 1 to {longest}, the steps of a trajectory")
    windows = jnp.maximum(jnp.asarray(lengths) - length + 1, 0)
    until = jnp.cumsum(windows)
    if not isinstance(until, jax.core.Tracer) and int(until[-1]) == 0:
        raise ValueError(f"lengths has no trajectory of {length} steps, expected at least one")
    # A noise of almost 1 may round up to the number of windows.
    place = jnp.floor(jnp.asarray(noise) * until[-1]).astype(until.dtype)
    place = jnp.minimum(place, until[-1] - 1)
    trajectory = jnp.searchsorted(until, place, side="right")
    start = place - (until - windows)[trajectory]
    steps = start[:, None] + jnp.arange(length)
    return Segments(
        jax.tree.map(lambda x: jnp.asarray(x)[trajectory[:, None], steps], trajectories),
        trajectory,
        start,
    )
