"""Prompts chosen by a score that was taken once: the hardest, the easiest, those in between."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._scalars import in_range

__all__ = ["select_by_score"]

_WHICH = ("lowest", "middle", "highest")


def select_by_score(
    scores: Float[Array, "N"],
    *,
    count: int,
    which: str = "lowest",
    valid: Bool[Array, "N"] | None = None,
) -> Bool[Array, "N"]:
    """Keeps `count` prompts of a pool by their score, such as the base model's BLEU.

    "lowest" takes the hard prompts, "highest" the easy ones, "middle" the window around the
    median. With uniform noise for scores it is a random subset of the same size. A score from one
    sampled answer is noisy; the mean of several is less so.

    Args:
      scores: one a prompt, [N].
      count: how many to keep, >= 0.
      which: "lowest", "middle" or "highest".
      valid: prompts that may be taken; all by default. Scores that are not finite are invalid in
        any case.

    Returns:
      Which to keep, [N], stopped; all valid ones where there are not more than `count`. Of equal
      scores the earlier prompts are taken.

    Raises:
      ValueError: unknown name; shapes that differ; count below 0.

    References:
      Chang et al., BLEUBERI, 2025 (arXiv:2505.11080): the 5,000 lowest of 50,000.
    """
    _checks.choice("which", which, _WHICH)
    _checks.rank("scores", scores, 1, "[N], one a prompt")
    in_range("count", count, low=0)
    scores = jax.lax.stop_gradient(jnp.asarray(scores))
    usable = jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[N]", scores=scores, valid=valid)
        usable &= jnp.asarray(valid) != 0
    ordered = -scores if which == "highest" else scores
    # Two stable sorts turn scores into places, invalid prompts behind all others.
    order = jnp.argsort(jnp.where(usable, ordered, jnp.inf), stable=True)
    place = jnp.argsort(order)
    first = jnp.maximum(jnp.sum(usable) - count, 0) // 2 if which == "middle" else 0
    return usable & (place >= first) & (place < first + count)
