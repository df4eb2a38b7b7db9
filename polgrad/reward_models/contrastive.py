"""Contrastive terms beside a reward model's loss: two views of the same answers belong together.

Two views are two passes with different dropout masks, or (`difference_views`) what tells the
chosen from the rejected answer and the reverse.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite


def info_nce(
    first: Float[Array, "B D"],
    second: Float[Array, "B D"],
    *,
    temperature: float = 0.05,
    valid: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """SimCSE: a view is to recognise the other view of the same sample among those of the batch.

        loss_i = -log(exp(cos(first_i, second_i) / tau) / sum_j exp(cos(first_i, second_j) / tau))

    Args:
      first: representations in one view, [B, D]; the gradient flows through both views.
      second: representations of the same samples in the other view, [B, D].
      temperature: tau, > 0 (0.05 in SimCSE).
      valid: False for samples to leave out, also as negatives, [B]; None for none.

    Returns:
      Losses, [B], >= 0, to be averaged over samples; 0 for samples left out, among them those
      with a representation that is not finite. A zero vector has cosine 0 with all, without
      gradient.

    Raises:
      ValueError: shapes that differ; a temperature that is not positive.

    References:
      Gao et al., SimCSE, 2021 (arXiv:2104.08821). Wang et al., Secrets of RLHF in Large Language
      Models Part II, 2024 (arXiv:2401.06080).
    """
    in_range("temperature", temperature, low=0.0, above=True)
    _checks.rank("first", first, 2, "[B, D]")
    _checks.same_shape("[B, D]", first=first, second=second)
    first, second = accumulate(first), accumulate(second)
    known = jnp.all(jnp.isfinite(first) & jnp.isfinite(second), axis=-1)
    if valid is not None:
        _checks.shape("valid", valid, known.shape, "[B]")
        known &= jnp.asarray(valid) != 0
    cosines = _unit(first) @ _unit(second).T / temperature
    # A sample always sees itself, so that the sum of one left out is not empty.
    seen = known[None, :] | jnp.eye(known.shape[0], dtype=bool)
    loss = jax.nn.logsumexp(cosines, axis=-1, where=seen) - jnp.diagonal(cosines)
    return jnp.where(known, loss, 0.0)


def sinkhorn(
    scores: Float[Array, "B K"], *, epsilon: float = 0.05, iterations: int = 3
) -> Float[Array, "B K"]:
    """Soft assignment of samples to prototypes that uses all prototypes equally.

    Alternately scales the columns of exp(scores / epsilon) to sum B / K and its rows to sum 1;
    in the limit it is the entropic optimal transport between uniform marginals.

    Args:
      scores: similarity of each sample to each prototype, [B, K].
      epsilon: entropy of the assignment, > 0; towards 0 it hardens.
      iterations: pairs of scalings, at least 1.

    Returns:
      Assignments, [B, K], without gradient: rows sum to 1, columns to about B / K. An infinite
      score counts +-20, an undefined one 0.

    Raises:
      ValueError: scores that are not [B, K]; epsilon not positive; no iteration.

    References:
      Cuturi, Sinkhorn distances, 2013 (arXiv:1306.0895). Caron et al., SwAV, 2020
      (arXiv:2006.09882).
    """
    in_range("epsilon", epsilon, low=0.0, above=True)
    _checks.rank("scores", scores, 2, "[B, K], a row a sample")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1")
    # The columns' own sum, B / K, is a constant that scaling the rows removes.
    logits = finite(jax.lax.stop_gradient(scores)) / epsilon
    scale = lambda _, x: jax.nn.log_softmax(jax.nn.log_softmax(x, axis=0), axis=1)  # noqa: E731
    return jnp.exp(jax.lax.fori_loop(0, iterations, scale, logits))


def swav(
    first: Float[Array, "B D"],
    second: Float[Array, "B D"],
    prototypes: Float[Array, "K D"],
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Float[Array, "B"]:
    """SwAV: each view is to predict which prototypes the other view is assigned to.

        loss = -sum_k q_k(second) log p_k(first) - sum_k q_k(first) log p_k(second)

    p is the softmax of the cosines with the prototypes over the temperature, q the assignment by
    `sinkhorn` of those cosines.

    Args:
      first: representations in one view, [B, D]; the gradient flows through both views and the
        prototypes, by p alone.
      second: representations of the same samples in the other view, [B, D].
      prototypes: learned directions, [K, D] (50 in the paper, 20 for `difference_views`).
      temperature: > 0 (0.1 in SwAV).
      epsilon: of `sinkhorn`.
      iterations: of `sinkhorn`.

    Returns:
      Losses, [B], >= 0, to be averaged over samples. A zero vector, or one that is not finite,
      has cosine 0 with all.

    Raises:
      ValueError: shapes that do not match; numbers out of range.

    References:
      Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
      2020 (arXiv:2006.09882). Wang et al., Secrets of RLHF in Large Language Models Part II,
      2024 (arXiv:2401.06080).
    """
    in_range("temperature", temperature, low=0.0, above=True)
    _checks.rank("first", first, 2, "[B, D]")
    _checks.same_shape("[B, D]", first=first, second=second)
    _checks.shape("prototypes", prototypes, (None, np.shape(first)[1]), "[K, D]")
    directions = _unit(prototypes).T
    cosines = [_unit(view) @ directions for view in (first, second)]
    logp = [jax.nn.log_softmax(x / temperature) for x in cosines]
    codes = [sinkhorn(x, epsilon=epsilon, iterations=iterations) for x in cosines]
    return -jnp.sum(codes[1] * logp[0] + codes[0] * logp[1], axis=-1)


def difference_views(
    chosen: Float[Array, "B D"], rejected: Float[Array, "B D"]
) -> Float[Array, "2*B D"]:
    """What tells each chosen answer from the rejected one, and the reverse.

        [chosen - rejected; rejected - chosen]

    Args:
      chosen: representations of the preferred answers, [B, D]; the gradient flows through both.
      rejected: representations of the other answers, [B, D].

    Returns:
      One view for `info_nce` or `swav`, [2B, D].

    Raises:
      ValueError: shapes that differ.

    References:
      Wang et al., Secrets of RLHF in Large Language Models Part II, 2024 (arXiv:2401.06080).
    """
    _checks.rank("chosen", chosen, 2, "[B, D]")
    _checks.same_shape("[B, D]", chosen=chosen, rejected=rejected)
    difference = accumulate(chosen) - accumulate(rejected)
    return jnp.concatenate([difference, -difference])


def _unit(x):
    """Rows scaled to length 1; 0 for a zero row and one that is not finite, without gradient."""
    x = accumulate(x)
    x = jnp.where(jnp.all(jnp.isfinite(x), axis=-1, keepdims=True), x, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    positive = largest > 0.0
    # The scale cancels; without it the squares of large and small vectors leave the range.
    x = x / jnp.where(positive, largest, 1.0)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(positive, x / jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
