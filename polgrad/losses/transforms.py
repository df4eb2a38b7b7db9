"""Label noise in pair losses: undone, smoothed, and what it does to probabilities."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = ["debias_flips", "flipped_probability", "smooth_labels", "unflipped_probability"]


def debias_flips(pair_loss: Callable[..., Array], *, flip_rate: float) -> Callable[..., Array]:
    """Any pair loss, made unbiased for labels that are flipped at a known rate.

    loss(w, l) = [(1 - e) pair_loss(w, l) - e pair_loss(l, w)] / (1 - 2 e), e the flip rate

    whose mean over flips is `pair_loss` on the clean labels. Of `dpo` it is `robust_dpo`. It may
    have no lower bound.

    Args:
      pair_loss: a function of (chosen, rejected, ...), such as `ipo` or `hinge`.
      flip_rate: probability that a label is reversed, in [0, 0.5).

    Returns:
      A function with the same arguments.

    Raises:
      ValueError: if `flip_rate` is out of range.

    References:
      Ray Chowdhury et al., Provably Robust DPO, 2024 (arXiv:2403.00409).
    """
    in_range("flip_rate", flip_rate, low=0.0, high=0.5, below=True)

    @functools.wraps(pair_loss)
    def debiased(chosen, rejected, *args, **kwargs):
        right = pair_loss(chosen, rejected, *args, **kwargs)
        wrong = pair_loss(rejected, chosen, *args, **kwargs)
        return ((1.0 - flip_rate) * right - flip_rate * wrong) / (1.0 - 2.0 * flip_rate)

    return debiased


def smooth_labels(
    pair_loss: Callable[..., Array], *, label_smoothing: float
) -> Callable[..., Array]:
    """Any pair loss under the belief that a label is wrong with some probability.

    loss(w, l) = (1 - s) pair_loss(w, l) + s pair_loss(l, w), s the label smoothing

    Of `dpo` it is conservative DPO, its own `label_smoothing`. Where `debias_flips` undoes flips,
    this one expects them: the margin stays finite, and shrinks.

    Args:
      pair_loss: a function of (chosen, rejected, ...), such as `ipo` or `hinge`.
      label_smoothing: s, in [0, 0.5].

    Returns:
      A function with the same arguments.

    Raises:
      ValueError: if `label_smoothing` is out of range.

    References:
      Mitchell, A note on DPO with noisy preferences and relationship to IPO, 2023.
    """
    in_range("label_smoothing", label_smoothing, low=0.0, high=0.5)

    @functools.wraps(pair_loss)
    def smoothed(chosen, rejected, *args, **kwargs):
        right = pair_loss(chosen, rejected, *args, **kwargs)
        wrong = pair_loss(rejected, chosen, *args, **kwargs)
        return (1.0 - label_smoothing) * right + label_smoothing * wrong

    return smoothed


def flipped_probability(
    probability: Float[Array, "*B"], *, flip_rate: float = 0.1
) -> Float[Array, "*B"]:
    """P(the noisy label prefers an answer) = (1 - e) p + e (1 - p).

    `dpo` on noisy labels learns this; with label smoothing e it flips once more.

    Args:
      probability: p, that the clean label prefers it, in [0, 1].
      flip_rate: e, in [0, 0.5).

    Returns:
      Probabilities, same shape.

    Raises:
      ValueError: if `flip_rate` is out of range.
    """
    in_range("flip_rate", flip_rate, low=0.0, high=0.5, below=True)
    p = accumulate(probability)
    return p + flip_rate * (1.0 - 2.0 * p)


def unflipped_probability(
    probability: Float[Array, "*B"], *, flip_rate: float = 0.1
) -> Float[Array, "*B"]:
    """The inverse of `flipped_probability`: what `robust_dpo` learns from noisy labels.

    Args:
      probability: that the noisy label prefers an answer, in [0, 1].
      flip_rate: e, the rate assumed, in [0, 0.5).

    Returns:
      (probability - e) / (1 - 2 e), same shape. Outside (0, 1), where the rate is overstated, the
      loss has no finite minimiser.

    Raises:
      ValueError: if `flip_rate` is out of range.
    """
    in_range("flip_rate", flip_rate, low=0.0, high=0.5, below=True)
    return (accumulate(probability) - flip_rate) / (1.0 - 2.0 * flip_rate)
