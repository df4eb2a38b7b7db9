"""What happens to rewards before they become advantages: length penalties, group filters."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate

__all__ = ["dynamic_sampling_filter", "overlong_penalty"]


def overlong_penalty(
    lengths: Num[Array, "..."], *, max_length: int, buffer: int
) -> Float[Array, "..."]:
    """DAPO's soft punishment of overlong completions, to be added to the reward.

        0                                    n <= max_length - buffer
        ((max_length - buffer) - n) / buffer    up to n = max_length
        -1                                   beyond

    Args:
      lengths: completion lengths in tokens, any shape.
      max_length: longest wanted completion, in tokens.
      buffer: tokens over which the penalty grows to 1, in 1..max_length.

    Returns:
      Penalties in [-1, 0], same shape, float32 or wider.

    Raises:
      ValueError: buffer not within 1..max_length.

    References:
      Yu et al., DAPO, 2025 (arXiv:2503.14476), equation 13.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer is {buffer}, expected 1 <= buffer <= max_length = {max_length}")
    return jnp.clip((max_length - buffer - accumulate(lengths)) / buffer, -1.0, 0.0)


def dynamic_sampling_filter(
    metric: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Bool[Array, "..."]:
    """Tells which groups DAPO's dynamic sampling keeps: those whose metric is not all equal.

    A group whose samples are all right or all wrong has group-relative advantage 0 and only
    dilutes the batch.

    Args:
      metric: what must vary, usually accuracy or the reward, [..., G].
      valid: True where the metric exists, same shape; None for all. Entries that are not finite
        are invalid in any case.

    Returns:
      True for the groups to keep, [...]; False with fewer than two valid samples.

    Raises:
      ValueError: shapes that differ; a scalar.

    References:
      Yu et al., DAPO, 2025 (arXiv:2503.14476).
    """
    metric = accumulate(metric)
    if metric.ndim == 0:
        raise ValueError("metric has shape [], expected [..., G] with the group on the last axis")
    present = jnp.isfinite(metric)
    if valid is not None:
        _checks.same_shape("[..., G]", metric=metric, valid=valid)
        present &= jnp.asarray(valid) != 0
    largest = jnp.max(jnp.where(present, metric, -jnp.inf), axis=-1, initial=-jnp.inf)
    smallest = jnp.min(jnp.where(present, metric, jnp.inf), axis=-1, initial=jnp.inf)
    return largest > smallest
