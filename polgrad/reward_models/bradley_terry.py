"""Reward models from preferences: their losses, and how far a preference is to be trusted.

An ensemble of reward models measures each pair by the mean of their margins, chosen - rejected:
where it is negative the label is probably wrong. Such pairs can be flipped (`flip_mask` and
`data.preferences.flip_pairs`), smoothed or given their mean as a margin, all in `bradley_terry`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.masking import masked_mean
from polgrad.ratios import finite

Params = TypeVar("Params")


def bradley_terry(
    chosen_scores: Float[Array, "..."],
    rejected_scores: Float[Array, "..."],
    *,
    margin: Float[Array, "..."] | float = 0.0,
    label_smoothing: Float[Array, "..."] | float = 0.0,
    center: float = 0.0,
    weights: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Negative log-likelihood of preferences under a reward model.

        loss = -(1 - a) log sigmoid(z) - a log sigmoid(-z) + center (chosen + rejected)^2
        z = chosen - rejected - margin

    With label smoothing a the minimiser is z = log((1 - a) / a). The loss is blind to what is
    added to both scores, any function of the prompt (or, in a model that compares with a
    reference trajectory, of the reference); `center` pins that.

    Args:
      chosen_scores: scores of the preferred answers, any shape; the gradient flows through both
        scores.
      rejected_scores: scores of the other answers, same shape.
      margin: by how much the chosen score is to lead, a number or one a pair; stopped. 1, 2/3,
        1/3, 0 by strength of the label in Llama 2, the mean of `preference_strength` in MOSS.
      label_smoothing: a, the probability that a label is wrong, in [0, 1], a number or one a
        pair; stopped. 1 is the flipped pair.
      center: weight of the squared sum of the two scores, >= 0 (0.01 where it is used).
      weights: of the pairs, >= 0, same shape; stopped. 1 by default.

    Returns:
      Losses, same shape, to be averaged over pairs; log 2 for equal scores. An infinite score or
      margin counts +-20, an undefined one 0, both without gradient; a pair of weight 0 is 0.

    Raises:
      ValueError: if shapes differ, or `label_smoothing` or `center` is out of range.

    References:
      Bradley and Terry, Rank analysis of incomplete block designs, 1952.
      Touvron et al., Llama 2, 2023 (arXiv:2307.09288): margin.
      Eisenstein et al., Helping or Herding?, 2023 (arXiv:2312.09244): centring.
      Wang et al., Secrets of RLHF in Large Language Models Part II: Reward Modeling, 2024
      (arXiv:2401.06080): margins and smoothing by strength.
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197): scores beside a reference trajectory.
    """
    shape = np.shape(chosen_scores)
    _checks.same_shape("...", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    for name, x in {"margin": margin, "label_smoothing": label_smoothing}.items():
        if np.ndim(x):
            _checks.shape(name, x, shape, "a number or one a pair")
    in_range("label_smoothing", label_smoothing, low=0.0, high=1.0)
    in_range("center", center, low=0.0)
    chosen, rejected = finite(chosen_scores), finite(rejected_scores)
    z = chosen - rejected - finite(jax.lax.stop_gradient(margin))
    smoothing = accumulate(jax.lax.stop_gradient(label_smoothing))
    # softplus(z) = softplus(-z) + z: one logarithm serves both labels.
    loss = softplus(-z) + smoothing * z
    loss += center * jnp.square(chosen + rejected)
    if weights is None:
        return loss
    _checks.same_shape("...", chosen_scores=chosen_scores, weights=weights)
    weights = accumulate(jax.lax.stop_gradient(weights))
    return jnp.where(weights > 0.0, loss * weights, 0.0)


class PreferenceStrength(NamedTuple):
    """How strongly an ensemble of reward models agrees with each label.

    Attributes:
      mean: of the margins chosen - rejected; negative where the label is probably wrong.
      deviation: their standard deviation over the models (divisor M).
    """

    mean: Float[Array, "..."]
    deviation: Float[Array, "..."]


def preference_strength(
    margins: Float[Array, "... M"], *, valid: Bool[Array, "... M"] | None = None
) -> PreferenceStrength:
    """Mean and standard deviation of an ensemble's margins for each pair.

    Fit the M models for an epoch or so, or on other folds: a model that has memorised a wrong
    label has a positive margin. The mean is in the models' own scale; bring their heads to one
    scale before using it as a margin.

    Args:
      margins: chosen score - rejected score under each of M models, [..., M].
      valid: False for models to leave out, same shape; margins that are not finite are left out
        in any case.

    Returns:
      `PreferenceStrength(mean, deviation)`, each [...], without gradient; 0 where no model is
      left.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Wang et al., Secrets of RLHF in Large Language Models Part II, 2024 (arXiv:2401.06080).
    """
    if np.ndim(margins) == 0:
        raise ValueError("margins has shape [], expected [..., M], the models on the last axis")
    margins = accumulate(jax.lax.stop_gradient(margins))
    known = jnp.isfinite(margins)
    if valid is not None:
        _checks.same_shape("[..., M]", margins=margins, valid=valid)
        known &= jnp.asarray(valid) != 0
    mean = masked_mean(margins, known, axis=-1)
    centred = jnp.where(known, margins, mean[..., None]) - mean[..., None]
    return PreferenceStrength(mean, jnp.sqrt(masked_mean(jnp.square(centred), known, axis=-1)))


def strength_groups(strength: Float[Array, "N"], *, groups: int = 20) -> Int[Array, "N"]:
    """Groups of pairs by strength, equal in size, from the weakest (0) to the strongest.

    Args:
      strength: of each pair of a data set, the mean of `preference_strength`.
      groups: number of groups, at least 1.

    Returns:
      Groups in 0..groups - 1, [N], whose sizes differ by one at most; equal strengths in the
      order of the data; -1 for a strength that is not finite.

    Raises:
      ValueError: if `strength` is not [N] or `groups` is below 1.

    References:
      Wang et al., 2024 (arXiv:2401.06080): the lowest fifth is mostly wrong, the next ambiguous.
    """
    if groups < 1:
        raise ValueError(f"groups is {groups}, expected at least 1")
    place, known, count = _places(strength)
    return jnp.where(known, place * groups // jnp.maximum(count, 1), -1)


def flip_mask(
    strength: Float[Array, "N"], *, threshold: float = 0.0, fraction: float | None = None
) -> Bool[Array, "N"]:
    """Which pairs to flip: those of a strength below a threshold, or the weakest ones.

    Args:
      strength: of each pair of a data set, the mean of `preference_strength`.
      threshold: pairs below it are flipped.
      fraction: share of the pairs to flip instead, the weakest, in [0, 1] (0.1 to 0.2 in the
        paper); None to go by the threshold.

    Returns:
      True where chosen and rejected change places, [N]; never for a strength that is not finite.

    Raises:
      ValueError: if `strength` is not [N] or `fraction` lies outside [0, 1].

    References:
      Wang et al., 2024 (arXiv:2401.06080).
    """
    place, known, count = _places(strength)
    if fraction is None:
        return known & (jnp.asarray(strength) < threshold)
    in_range("fraction", fraction, low=0.0, high=1.0)
    return known & (place < jnp.round(fraction * count))


def _places(strength):
    """Place from the weakest (0), which are known, and how many."""
    _checks.rank("strength", strength, 1, "[N], one value a pair of the whole data set")
    strength = accumulate(strength)
    known = jnp.isfinite(strength)
    order = jnp.argsort(jnp.where(known, strength, jnp.inf))
    return jnp.argsort(order), known, jnp.sum(known)


def difference_objective(
    scores: Float[Array, "... K"], *, valid: Bool[Array, "... K"] | None = None
) -> Float[Array, "..."]:
    """MetaRM's measure of how well a reward model tells the answers to one prompt apart.

        J = 2 / k^2 sum_{i < j} sigmoid(|s_i - s_j|),   k answers that count

    An objective, to be RAISED, that needs no labels: see `meta_gradient`. It grows with the
    scale of the scores, so a large step inflates rewards only.

    Args:
      scores: of K answers, usually samples of the current policy, [..., K]; the gradient flows
        through them.
      valid: False for answers to leave out, same shape; scores that are not finite are left out
        in any case.

    Returns:
      J, [...], from (k - 1) / 2k for equal scores up to (k - 1) / k; 0 for fewer than two. Equal
      scores have no gradient (they are a fixed point of the meta step).

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Wang et al., 2024 (arXiv:2401.06080), section 4.
    """
    if np.ndim(scores) == 0:
        raise ValueError("scores has shape [], expected [..., K] with the answers on the last axis")
    scores = accumulate(scores)
    known = jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        known &= jnp.asarray(valid) != 0
    scores = jnp.where(known, scores, 0.0)
    gaps = scores[..., :, None] - scores[..., None, :]
    # jax differentiates |x| at 0 as 1; the sign form gives 0 there.
    apart = jax.nn.sigmoid(gaps * jnp.sign(gaps))
    pairs = known[..., :, None] & known[..., None, :] & ~jnp.eye(scores.shape[-1], dtype=bool)
    count = jnp.maximum(jnp.sum(known, axis=-1), 1)
    return jnp.sum(jnp.where(pairs, apart, 0.0), axis=(-2, -1)) / jnp.square(count)


def meta_gradient(
    loss: Callable[[Params], Float[Array, ""]],
    objective: Callable[[Params], Float[Array, ""]],
    params: Params,
    *,
    step_size: float,
) -> Params:
    """Gradient of a loss where one step up another objective would lead (MetaRM).

        gradient of loss at params + step_size * gradient of objective(params)

    to be applied to `params` themselves. To first order that descends loss + step_size <gradient
    of loss, gradient of objective>: it looks for parameters whose loss stays low when they are
    moved to tell the current policy's samples apart.

    Args:
      loss: of the parameters, a scalar to be minimised: the mean of `bradley_terry` over
        labelled pairs.
      objective: of the parameters, a scalar to be raised: the mean of `difference_objective`
        over prompts.
      params: any tree of arrays.
      step_size: of the step up the objective; 0 gives the plain gradient.

    Returns:
      Gradients, a tree like `params`. The step itself is not differentiated through.

    References:
      Wang et al., 2024 (arXiv:2401.06080), section 4. Dou et al., MetaRM, 2024
      (arXiv:2405.00438).
    """
    uphill = jax.grad(objective)(params)
    moved = jax.tree.map(lambda p, g: p + step_size * g, params, uphill)
    return jax.grad(loss)(moved)
