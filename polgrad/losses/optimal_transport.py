"""Alignment via optimal transport: the distribution of margins, not each pair by itself.

Batch-level losses: the quantile of a pair is its rank in the WHOLE batch. Call them on the global
batch, before any split into micro-batches or shards.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad.losses._pairs import finite_pair
from polgrad.losses.dpo import dpo
from polgrad.ratios import finite

__all__ = ["aot", "aot_unpaired"]


def aot(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    chosen_reference_logp: Float[Array, "B"],
    rejected_reference_logp: Float[Array, "B"],
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    valid: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """AOT: the policy's margins are to exceed the reference's quantile by quantile.

    loss_i = dpo of z_i = beta (m_i - reference margin of the same rank as m_i)

    with m = log policy(chosen) - log policy(rejected): first-order stochastic dominance over the
    reference, in place of `dpo`'s comparison pair by pair. With one pair it is `dpo`.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, sums over tokens.
      rejected_logp: the same of the other answers of the pairs.
      chosen_reference_logp: under the reference; no gradient flows through it.
      rejected_reference_logp: under the reference; no gradient flows through it.
      beta: strength of the KL to the reference, > 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5].
      valid: False for pairs that only fill the batch; they take no rank. None for no such pair.

    Returns:
      Losses, [B], >= 0, in the order of the pairs, to be averaged over the valid ones; 0 for
      others. An infinite margin counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `label_smoothing` is out of range.

    References:
      Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, 2024
      (arXiv:2406.05882).
    """
    _checks.rank("chosen_logp", chosen_logp, 1, "[B], one value an answer")
    _checks.same_shape(
        "[B]",
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        chosen_reference_logp=chosen_reference_logp,
        rejected_reference_logp=rejected_reference_logp,
    )
    policy = finite(chosen_logp) - finite(rejected_logp)
    reference = finite(chosen_reference_logp) - finite(rejected_reference_logp)
    return _matched(policy, jax.lax.stop_gradient(reference), beta, label_smoothing, valid)


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


def _matched(upper: Array, lower: Array, beta, label_smoothing, valid) -> Array:
    """`dpo` of each upper value and the lower value of its rank; invalid ones rank last."""
    if valid is None:
        valid = jnp.ones(upper.shape, bool)
    _checks.shape("valid", valid, upper.shape, "[B]")
    valid = jnp.asarray(valid) != 0
    last = lambda x: jnp.argsort(jnp.where(valid, x, jnp.inf))  # noqa: E731
    rank = jnp.argsort(last(upper))
    partner = lower[last(lower)][rank]
    return jnp.where(
        valid,
        dpo(upper, partner, beta=beta, label_smoothing=label_smoothing),
        0.0,
    )
