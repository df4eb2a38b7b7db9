"""Losses of single answers that are labelled desirable or not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._log_ratio import finite
from polgrad._scalars import in_range
from polgrad.masking import masked_mean

__all__ = ["kto", "kto_reference_point"]


def kto_reference_point(
    mismatched_logratio: Float[Array, "B"], *, valid: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """What an answer is compared with in `kto`: an estimate of KL(policy || reference).

    z0 = max(0, mean of log(policy / reference) over mismatched answers)

    with answers paired with the prompts of others, for example `jnp.roll(answers, 1, axis=0)`. A
    statistic of the batch: compute it on the whole one, before any split.

    Args:
      mismatched_logratio: log(policy / reference) of mismatched answers, sums over tokens.
      valid: False for rows that only fill the batch; None for none.

    Returns:
      The reference point in nats, >= 0, a scalar without gradient; 0 without a valid row.

    Raises:
      ValueError: if shapes differ.

    References:
      Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024
      (arXiv:2402.01306).
    """
    _checks.rank("mismatched_logratio", mismatched_logratio, 1, "[B], one value an answer")
    ratios = jax.lax.stop_gradient(finite(mismatched_logratio))
    valid = jnp.ones(ratios.shape, bool) if valid is None else valid
    return jnp.maximum(masked_mean(ratios, valid), 0.0)


def kto(
    logratio: Float[Array, "B"],
    desirable: Bool[Array, "B"],
    reference_point: Float[Array, ""] | float,
    *,
    beta: float = 0.1,
    lambda_desirable: float = 1.0,
    lambda_undesirable: float = 1.0,
) -> Float[Array, "B"]:
    """KTO: single answers, good or bad, valued as gains and losses from a reference point.

    loss = lambda_D (1 - sigmoid(beta (u - z0))) of good answers,
           lambda_U (1 - sigmoid(beta (z0 - u))) of bad ones, u the log-ratio.

    With z0 = 0 it is APO-zero for answers without a partner.

    Args:
      logratio: log(policy / reference) of the answers, sums over tokens, in nats. Stop the
        gradient of the reference when forming it.
      desirable: whether an answer is good.
      reference_point: z0, from `kto_reference_point`; no gradient flows through it.
      beta: strength of the KL to the reference, > 0.
      lambda_desirable: weight of good answers, >= 0.
      lambda_undesirable: weight of bad ones, >= 0. Choose (lambda_D good) / (lambda_U bad) in
        [1, 4/3] for the numbers of each in the data.

    Returns:
      Losses, [B], >= 0, to be averaged over all answers. An infinite log ratio counts +-20 nats,
      an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or a number is out of range.

    References:
      Ethayarajh et al., KTO, 2024 (arXiv:2402.01306). D'Oosterlinck et al., Anchored Preference
      Optimization, 2024 (arXiv:2408.06266).
    """
    _checks.rank("logratio", logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", logratio=logratio, desirable=desirable)
    in_range("beta", beta, low=0.0, above=True)
    in_range("lambda_desirable", lambda_desirable, low=0.0)
    in_range("lambda_undesirable", lambda_undesirable, low=0.0)
    gain = beta * (finite(logratio) - jax.lax.stop_gradient(accumulate(reference_point)))
    good = lambda_desirable * jax.nn.sigmoid(-gain)
    bad = lambda_undesirable * jax.nn.sigmoid(gain)
    return jnp.where(jnp.asarray(desirable) != 0, good, bad)
