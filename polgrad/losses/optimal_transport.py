"""Alignment via optimal transport: the distribution of margins, not each pair by itself.

Batch-level losses: the quantile of a pair is its rank in the WHOLE batch. Call them on the global
batch, before any split into micro-batches or shards.
"""

from jaxtyping import Array, Bool, Float

from polgrad.losses.pairs import by_rank as _matched
from polgrad.losses.pairs import finite_pair

__all__ = ["aot", "aot_unpaired"]


def aot_unpaired(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    valid: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """AOT without pairs: chosen log-ratios are to exceed rejected ones quantile by quantile.

    loss_i = dpo of chosen_i and the rejected log-ratio of the same rank

    For equally many good and bad answers that need not share their prompts.

    Args:
      chosen_logratio: log(policy / reference) of good answers, sums over tokens, in nats. Stop
        the gradient of the reference when forming it.
      rejected_logratio: the same of bad answers.
      beta: strength of the KL to the reference, > 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5].
      valid: False where both answers at a place only fill the batch; None for no such place.

    Returns:
      Losses, [B], >= 0, in the order of the good answers, to be averaged over the valid ones; 0
      for others. An infinite log ratio counts +-20 nats, an undefined one 0, both without
      gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `label_smoothing` is out of range.

    References:
      Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, 2024
      (arXiv:2406.05882).
    """
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return _matched(chosen, rejected, beta, label_smoothing, valid)
