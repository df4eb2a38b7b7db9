"""Which of the samples of a prompt a data set keeps."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from polgrad import _checks

__all__ = ["anna_karenina_select"]


def anna_karenina_select(
    correct: Bool[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Bool[Array, "... G"]:
    """Keeps all wrong samples of a prompt and the first right one.

    Right answers resemble each other, wrong ones are each wrong in their own way. Without the
    cut, prompts that are nearly solved flood an off-policy data set with positives.

    Args:
      correct: whether each of the G samples of a prompt is right.
      valid: whether each sample could be scored; all by default.

    Returns:
      Which samples to keep, same shape. Invalid samples are never kept.

    Raises:
      ValueError: rank 0 or 1.

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    _checks.groups("correct", correct)
    correct = jnp.asarray(correct, bool)
    valid = jnp.ones(correct.shape, bool) if valid is None else jnp.asarray(valid, bool)
    right = correct & valid
    first = right & (jnp.cumsum(right, axis=-1) == 1)
    return valid & (~correct | first)
