"""Masked sums and weights: the only place where a loss is divided by a count.

A loss in polgrad is unreduced and never divides. What turns it into one number is a weight for
each token (or sequence) that depends on the mask alone and is computed *once on the global
batch*; micro-batches and shards then only add. A mean taken inside each micro-batch would give
the tokens of a short micro-batch more weight than those of a long one.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "masked_mean",
    "reduce",
    "sequence_sum",
    "weighted_sum",
    "weights",
]


_MODES = ("token", "sequence", "sequence_sum", "constant")


def weights(
    mask: Num[Array, "B *T"] | Bool[Array, "B *T"], *, mode: str, length: float | None = None
) -> Float[Array, "B *T"]:
    """Computes the weight of every token (or sequence) in a reduced loss.

    With m the mask, n_b = sum_t m[b, t] and S the number of rows with n_b > 0:

        "token"         m[b, t] / sum_b n_b       mean over all tokens (DAPO)
        "sequence"      m[b, t] / (n_b S)         mean over sequences of token means (GRPO)
        "sequence_sum"  m[b, t] / S               mean over sequences of token sums (RLOO)
        "constant"      m[b, t] / (B length)      sums over a constant (Dr. GRPO)

    A row without a valid token is not a sequence in "sequence" and "sequence_sum": S leaves it
    out. "constant" divides by all B rows, valid or not. If no token is valid, all weights are 0.
    Compute the weights on the global batch before any split into micro-batches or shards.

    Args:
      mask: 1 (or any non-zero value, or True) where a token counts, 0 elsewhere; [B, T], or [B]
        for losses that have one term a sequence (then "token", "sequence" and "sequence_sum"
        agree).
      mode: one of the four above.
      length: the constant of "constant", in tokens, positive; None for the other modes.

    Returns:
      Non-negative weights of the shape of `mask`, float32 (float64 for a float64 mask).

    Raises:
      ValueError: unknown mode; `length` missing, not positive, or given to another mode; a mask
        that is neither [B, T] nor [B].

    References:
      Shao et al., DeepSeekMath, 2024 (arXiv:2402.03300): "sequence".
      Yu et al., DAPO, 2025 (arXiv:2503.14476): "token".
      Liu et al., Understanding R1-Zero-Like Training, 2025 (arXiv:2503.20783): "constant".
    """
    _checks.choice("mode", mode, _MODES)
    if np.ndim(mask) not in (1, 2):
        raise ValueError(f"mask has shape {list(np.shape(mask))}, expected [B, T] or [B]")
    if (mode == "constant") != (length is not None):
        raise ValueError(f"length is {length}, expected a number exactly when mode is 'constant'")
    valid = _indicator(mask)
    if mode == "constant":
        in_range("length", length, low=0.0, above=True)
        return valid / (max(valid.shape[0], 1) * length)
    if mode == "token":
        return valid / jnp.maximum(jnp.sum(valid), 1)
    counts = valid if valid.ndim == 1 else jnp.sum(valid, axis=1, keepdims=True)
    sequences = jnp.maximum(jnp.sum(counts > 0), 1)
    if mode == "sequence":
        return valid / (jnp.maximum(counts, 1) * sequences)
    return valid / sequences


def reduce(
    loss: Float[Array, "B *T"],
    mask: Num[Array, "B *T"] | Bool[Array, "B *T"],
    *,
    mode: str,
    length: float | None = None,
) -> Float[Array, ""]:
    """Reduces an unreduced loss to one number: sum(where(w > 0, loss, 0) * w).

    w = `weights(mask, mode=mode, length=length)`. What stands under the mask, NaN included,
    reaches neither the value nor the gradient with respect to `loss`. For a batch that is split,
    compute `weights` once and use `weighted_sum` on each part.

    Args:
      loss: losses of tokens [B, T] or sequences [B].
      mask: same shape; 1 where a term counts.
      mode: see `weights`.
      length: see `weights`.

    Returns:
      A scalar, float32 or wider; 0 if nothing is valid.

    Raises:
      ValueError: as `weights`; or if the shapes differ.
    """
    _checks.same_shape("[B, T] or [B]", loss=loss, mask=mask)
    # The weights are formed in the precision of the loss: a float32 1/3 in a float64 sum costs
    # eight digits.
    valid = _indicator(mask).astype(accumulate(loss).dtype)
    return weighted_sum(loss, weights(valid, mode=mode, length=length))


def weighted_sum(loss: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """Computes sum(where(weights > 0, loss, 0) * weights), the reduction of a part of a batch.

    Args:
      loss: unreduced losses, any shape.
      weights: this part's slice of the global `masking.weights`, same shape, non-negative.

    Returns:
      A scalar, float32 or wider.

    Raises:
      ValueError: if the shapes differ.
    """
    _checks.same_shape("one weight a term", loss=loss, weights=weights)
    weights = jnp.asarray(weights)
    return jnp.sum(jnp.where(weights > 0, accumulate(loss), 0.0) * weights)


def sequence_sum(
    x: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """Sums the valid tokens of each sequence: sum_t where(mask, x, 0).

    The one way to make a sequence log-probability from token log-probabilities.

    Args:
      x: token values, [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      [B], float32 or wider; 0 for a row without a valid token.

    Raises:
      ValueError: if the shapes differ or are not [B, T].
    """
    _checks.rank("x", x, 2, "[B, T]")
    _checks.same_shape("[B, T]", x=x, mask=mask)
    return jnp.sum(jnp.where(jnp.asarray(mask) != 0, accumulate(x), 0.0), axis=-1)


def masked_mean(
    x: Float[Array, "..."],
    mask: Num[Array, "..."] | Bool[Array, "..."],
    *,
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Averages the valid entries along `axis`: sum(where(mask, x, 0)) / max(count, 1).

    For metrics and statistics; losses go through `weights`.

    Args:
      x: values, any shape.
      mask: 1 where an entry counts, same shape.
      axis: axis or axes to average over; None for all.

    Returns:
      Means, float32 or wider; 0 where nothing is valid.

    Raises:
      ValueError: if the shapes differ.
    """
    _checks.same_shape("one mask entry a value", x=x, mask=mask)
    valid = jnp.asarray(mask) != 0
    total = jnp.sum(jnp.where(valid, accumulate(x), 0.0), axis=axis)
    return total / jnp.maximum(jnp.sum(valid, axis=axis), 1)


def _indicator(mask):
    return (jnp.asarray(mask) != 0).astype(accumulate(mask).dtype)
