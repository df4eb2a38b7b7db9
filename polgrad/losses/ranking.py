"""Places, gains and labels of the answers in a list: what listwise losses are made of."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad.masking import masked_mean

__all__ = ["discount", "gain", "lambda_weights", "rank_labels", "ranks", "win_rate_labels"]

_KINDS = ("lambda", "gain", "rank", "ndcg2")


def ranks(
    scores: Float[Array, "... K"], *, valid: Bool[Array, "... K"] | None = None
) -> Int[Array, "... K"]:
    """Place of each answer when the list is sorted by score, 1 for the highest.

    Equal scores are placed in the order of the list: shuffle lists whose answers were sorted by
    label. (Average places would leave `lipo` without a gradient at the reference, where all
    scores are 0.)

    Args:
      scores: one an answer, [..., K].
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Places in 1..n, [..., K], of the n answers that count; 0 for the others. No gradient.

    Raises:
      ValueError: shapes that differ; a scalar.
    """
    scores, valid = answers(valid, scores=scores)
    mine, theirs = scores[..., :, None], scores[..., None, :]
    listed_before = jnp.tril(jnp.ones((scores.shape[-1],) * 2, bool), -1)
    ahead = (theirs > mine) | ((theirs == mine) & listed_before)
    return jnp.where(valid, 1 + jnp.sum(ahead & valid[..., None, :], axis=-1), 0)


def gain(labels: Float[Array, "..."]) -> Float[Array, "..."]:
    """What an answer adds to the discounted cumulative gain, undiscounted: 2^label - 1.

    Args:
      labels: of any shape, in [0, 1]; the gain of a label above explodes, and is cut at 2^60.

    Returns:
      Gains, same shape, stopped, float32 or wider.
    """
    return jnp.exp2(jnp.minimum(accumulate(jax.lax.stop_gradient(labels)), 60.0)) - 1.0


def discount(places: Int[Array, "..."]) -> Float[Array, "..."]:
    """What divides the gain of the answer at a place: log(1 + place).

    Args:
      places: of any shape, 1 for the first; smaller ones count as 1.

    Returns:
      Discounts, same shape, >= log 2, float32 or wider.
    """
    return jnp.log1p(jnp.maximum(accumulate(places), 1.0))


def lambda_weights(
    scores: Float[Array, "... K"],
    labels: Float[Array, "... K"],
    *,
    kind: str = "lambda",
    ideal: bool = False,
    top: int | None = None,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "... K K"]:
    """What each pair of a list weighs in `lipo`.

        "lambda"  |G_i - G_j| |1 / D(place_i) - 1 / D(place_j)|
        "gain"    |G_i - G_j|
        "rank"    |1 / D(place_i) - 1 / D(place_j)|
        "ndcg2"   |G_i - G_j| |1 / D(d) - 1 / D(d + 1)|,   d = |place_i - place_j|

    with G = `gain`, D = `discount` and the places those of the scores. The first is how much the
    discounted cumulative gain sum G / D changes when i and j exchange places; "ndcg2" is the
    tighter bound of LambdaLoss; the other two are ablations.

    Args:
      scores: one an answer, [..., K].
      labels: how good each is, [..., K], in [0, 1].
      kind: one of the four above.
      ideal: whether to divide by the largest discounted cumulative gain of the list.
      top: places beyond it count nothing (1 / D = 0), at least 1; for "lambda" and "rank".
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Symmetric weights, [..., K, K], >= 0, without gradient; 0 on the diagonal, for answers that
      are left out and, with `ideal`, for lists whose labels are all 0.

    Raises:
      ValueError: shapes that differ; unknown kind; `top` below 1 or with another kind.

    References:
      Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, 2018.
      Liu et al., LiPO: Listwise Preference Optimization through Learning-to-Rank, 2024
      (arXiv:2402.01878).
    """
    _checks.choice("kind", kind, _KINDS)
    if top is not None and (top < 1 or kind not in ("lambda", "rank")):
        raise ValueError(
            f"top is {top} with kind {kind!r}, expected None, or at least 1 with 'lambda' or 'rank'"
        )
    scores, labels, valid = answers(valid, scores=scores, labels=labels)
    places, gains = ranks(scores, valid=valid), gain(labels)
    gaps = _distances(gains)
    if kind == "ndcg2":
        apart = _distances(places)
        steps = 1.0 / discount(apart) - 1.0 / discount(apart + 1)
    else:
        steps = _distances(_share(places, top))
    weights = {"gain": gaps, "rank": steps}.get(kind, gaps * steps)
    if ideal:
        best = jnp.sum(gains * _share(ranks(labels, valid=valid), top), axis=-1)[..., None, None]
        weights = weights / jnp.where(best > 0.0, best, jnp.inf)
    return jnp.where(valid[..., :, None] & valid[..., None, :], weights, 0.0)


def win_rate_labels(
    preference: Float[Array, "... K K"], *, valid: Bool[Array, "... K"] | None = None
) -> Float[Array, "... K"]:
    """Labels from a pairwise ranker: how often an answer beats the others of its list.

        label_i = mean_{j != i} preference_ij

    Args:
      preference: P(i beats j) in [0, 1], or 0 / 1 comparisons, [..., K, K]; the diagonal is not
        read, and a comparison that is not finite counts as not made.
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Labels in [0, 1], [..., K], without gradient; 0 for an answer without a comparison.

    Raises:
      ValueError: if the last two axes differ, or `valid` has another shape.

    References:
      Liu et al., LiPO, 2024 (arXiv:2402.01878). Rosset et al., Direct Nash Optimization, 2024
      (arXiv:2404.03715): the pool of a prompt's samples.
    """
    preference = accumulate(jax.lax.stop_gradient(preference))
    if preference.ndim < 2 or preference.shape[-1] != preference.shape[-2]:
        raise ValueError(f"preference has shape {list(preference.shape)}, expected [..., K, K]")
    made = jnp.isfinite(preference) & ~jnp.eye(preference.shape[-1], dtype=bool)
    if valid is not None:
        _checks.same_shape("[..., K]", label=preference[..., 0], valid=valid)
        counted = jnp.asarray(valid) != 0
        made &= counted[..., :, None] & counted[..., None, :]
    return masked_mean(preference, made, axis=-1)


def rank_labels(
    places: Int[Array, "... K"], *, valid: Bool[Array, "... K"] | None = None
) -> Float[Array, "... K"]:
    """Labels from places: 1 for the first of a list, 0 for the last, evenly spaced between.

        label = 1 - (place - 1) / (n - 1),   n answers that count

    Args:
      places: 1 for the best answer, n for the worst, [..., K].
      valid: False for answers to leave out, [..., K]; None for none.

    Returns:
      Labels in [0, 1], [..., K]; 1 for the only answer of a list, 0 for answers left out.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Liu et al., LiPO, 2024 (arXiv:2402.01878).
    """
    places, valid = answers(valid, places=places)
    last = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True) - 1, 1)
    return jnp.where(valid, 1.0 - (places - 1.0) / last, 0.0)


def answers(valid, **arrays):
    """The arrays with 0 in place of answers that do not count, and which do."""
    (name, first), *_ = arrays.items()
    if np.ndim(first) == 0:
        raise ValueError(f"{name} has shape [], expected [..., K] with the list on the last axis")
    _checks.same_shape("[..., K]", **arrays, **({} if valid is None else {"valid": valid}))
    counted = jnp.ones(np.shape(first), bool) if valid is None else jnp.asarray(valid) != 0
    values = [accumulate(x) for x in arrays.values()]
    for x in values:
        counted &= jnp.isfinite(x)
    return *(jnp.where(counted, x, 0.0) for x in values), counted


def _distances(x):
    return jnp.abs(x[..., :, None] - x[..., None, :])


def _share(places, top):
    """1 / discount, and 0 beyond the first `top` places."""
    share = 1.0 / discount(places)
    return share if top is None else jnp.where(places <= top, share, 0.0)
