"""Filters of a next-token distribution: temperature, top-k, top-p and min-p."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad.distributions.categorical import log_softmax

__all__ = ["check_filters", "filter_logits"]


def filter_logits(
    logits: Float[Array, "... V"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Array, "... V"]:
    """Temperature, then top-k, top-p and min-p, in this order, each on what the last one left.

    - temperature: `z / temperature`; 0 is the limit: the first largest logit alone remains.
    - top-k: the `top_k` largest logits remain (0: all).
    - top-p: the smallest set of most likely tokens whose mass reaches `top_p` remains (1: all).
    - min-p: tokens of at least `min_p` times the largest probability remain (0: all).

    Tokens of equal logit are kept or dropped together, so the result does not depend on how the
    vocabulary is ordered (temperature 0 excepted). The most likely token always remains.

    Args:
      logits: `[..., V]`, finite or minus infinity.
      temperature: at least 0.
      top_k: at least 0; a value above `V` keeps all.
      top_p: in `(0, 1]`.
      min_p: in `[0, 1]`.

    Returns:
      Filtered logits `[..., V]` in `promote_types(dtype, float32)`, minus infinity where a
      token was dropped. They are not normalised.

    Raises:
      ValueError: a number outside its range.

    References:
      Fan, Lewis and Dauphin, 2018 (top-k), arXiv:1805.04833; Holtzman et al., 2020 (top-p),
      arXiv:1904.09751; Nguyen et al., 2024 (min-p), arXiv:2407.01082.
    """
    check_filters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = accumulate(logits)
    size = logits.shape[-1]
    if temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(size) == best, 0.0, -jnp.inf).astype(logits.dtype)
    logits = logits / temperature
    if 0 < top_k < size:
        logits = _drop_below(logits, jax.lax.top_k(logits, top_k)[0][..., -1:])
    if top_p < 1:
        ranked = -jnp.sort(-logits, axis=-1)
        mass = jnp.exp(log_softmax(ranked))
        kept = jnp.cumsum(mass, axis=-1) - mass < top_p
        logits = _drop_below(logits, jnp.min(jnp.where(kept, ranked, jnp.inf), -1, keepdims=True))
    if min_p > 0:
        peak = jnp.max(logits, axis=-1, keepdims=True)
        logits = _drop_below(logits, peak + jnp.log(jnp.asarray(min_p, logits.dtype)))
    return logits


def check_filters(*, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """ValueError naming the first of the four numbers that is outside its range."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 keeps all), got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1] (1 keeps all), got {top_p}")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must lie in [0, 1] (0 keeps all), got {min_p}")


def _drop_below(logits, threshold):
    return jnp.where(logits >= threshold, logits, -jnp.inf)
