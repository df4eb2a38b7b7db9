"""Losses of single answers that are labelled good or bad: [B].

`kto` values answers as gains and losses from a reference point, `bco_unpaired` classifies them,
`aot_unpaired` compares equally many good and bad ones by rank. Good and bad answers need not share
their prompts. `inputs.kto_reference_point` and `inputs.density_weight` make what they take.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses.pairs import by_rank, finite_pair
from polgrad.ratios import finite


def kto(
    logratio: Float[Array, "B"],
    desirable: Bool[Array, "B"],
    reference_point: Float[Array, ""] | float,
    *,
    beta: float = 0.1,
    lambda_desirable: float = 1.0,
    lambda_undesirable: float = 1.0,
) -> Float[Array, "B"]:
    """KTO (Kahneman-Tversky optimisation): single answers, good or bad, valued as gains and losses from a reference point.

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


def bco_unpaired(
    logratio: Float[Array, "B"],
    desirable: Bool[Array, "B"],
    reward_shift: Float[Array, ""] | float,
    *,
    beta: float = 0.01,
    weights: Float[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """BCO of single answers: a classifier of good and bad ones, whose logit is the reward.

        loss = -log sigmoid(r - shift) of good answers,
               -weight log sigmoid(shift - r) of bad ones, r = beta log-ratio

    Its sum over the two answers of a pair is `bco`.

    Args:
      logratio: log(policy / reference) of the answers, sums over tokens, in nats. Stop the
        gradient of the reference when forming it.
      desirable: whether an answer is good.
      reward_shift: delta, the value of `running.mean()` after this batch; stopped.
      beta: strength of the KL to the reference, > 0.
      weights: of bad answers, from `density_weight`, [B], >= 0; stopped. None for 1.

    Returns:
      Losses, [B], >= 0, to be averaged over all answers; log 2 at r = shift. An infinite log
      ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Jung et al., Binary Classifier Optimization, 2024 (arXiv:2404.04656).
    """
    _checks.rank("logratio", logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", logratio=logratio, desirable=desirable)
    in_range("beta", beta, low=0.0, above=True)
    gain = beta * finite(logratio) - jax.lax.stop_gradient(accumulate(reward_shift))
    good = jnp.asarray(desirable) != 0
    loss = softplus(jnp.where(good, -gain, gain))
    if weights is None:
        return loss
    _checks.same_shape("[B]", logratio=logratio, weights=weights)
    weights = jax.lax.stop_gradient(accumulate(weights))
    return jnp.where(good, loss, weights * loss)


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
    return by_rank(chosen, rejected, beta, label_smoothing, valid)
