"""The order in which a recorded stream of batches is trained on again."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._scalars import in_range

__all__ = ["replay_order"]


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
