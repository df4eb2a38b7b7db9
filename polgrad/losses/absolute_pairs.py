"""Losses of pairs that hold each answer to the reference, not their difference alone.

Where `dpo` lets the likelihood of both answers fall together, these look at the implicit rewards
r = beta log(policy / reference) one by one. They are not invariant to a shift of both log-ratios.
"""

import jax
from jaxtyping import Array, Float

from polgrad._dtypes import accumulate
from polgrad._softplus import softplus
from polgrad.losses._pairs import finite_pair

__all__ = ["apo_down", "apo_zero", "bco", "nca"]


def nca(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.01
) -> Float[Array, "B"]:
    """NCA: noise-contrastive alignment of a pair, which keeps the chosen likelihood up.

    loss = l(r_w) + l(-r_w) / 2 + l(-r_l) / 2, l(x) = -log sigmoid(x), r = beta log-ratio: both
    answers also stand for noise. An answer chosen with frequency c has sigmoid(r) = c / (c + 1/2)
    at the minimum.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 2 log 2 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, 2024
      (arXiv:2402.05369).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    # l(-r) = l(r) + r: two logarithms serve all three terms.
    return 1.5 * softplus(-chosen) + 0.5 * (chosen + softplus(rejected))


def bco(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.01,
    reward_shift: Float[Array, ""] | float = 0.0,
) -> Float[Array, "B"]:
    """BCO on pairs: a classifier of chosen and rejected answers whose logit is the reward.

    loss = l(r_w - delta) + l(-(r_l - delta)), l(x) = -log sigmoid(x), r = beta log-ratio. An
    answer chosen with frequency c has sigmoid(r - delta) = c at the minimum.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      reward_shift: delta, the mean of beta log-ratio over chosen and rejected answers so far;
        no gradient flows through it.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 2 log 2 where policy = reference without a
      shift. An infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Jung et al., Binary Classifier Optimization for Large Language Model Alignment, 2024
      (arXiv:2404.04656).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    shift = jax.lax.stop_gradient(accumulate(reward_shift))
    return softplus(shift - chosen) + softplus(rejected - shift)


def apo_zero(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """APO-zero: the chosen answer up, the rejected one down; for answers better than the model's.

    loss = 1 - sigmoid(r_w) + sigmoid(r_l), r = beta log-ratio. It saturates: outliers have hardly
    any gradient.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], in [0, 2], to be averaged over pairs; 1 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions, 2024
      (arXiv:2408.06266).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def apo_down(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """APO-down: both answers down, the rejected one more; for a model better than its data.

    loss = sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta log-ratio. At the reference the chosen
    answer has no gradient; it is pushed down once the rejected one has fallen.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], in [0, 2], to be averaged over pairs; 1 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions, 2024
      (arXiv:2408.06266).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


def _rewards(chosen_logratio: Array, rejected_logratio: Array, beta: float) -> tuple[Array, Array]:
    """Implicit rewards of both answers."""
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return beta * chosen, beta * rejected
