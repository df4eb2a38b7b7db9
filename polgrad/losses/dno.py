"""Direct Nash optimisation: a step of soft policy iteration as a classification of pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.ratios import finite

__all__ = ["dno"]


def dno(
    first_logratio: Float[Array, "B"],
    second_logratio: Float[Array, "B"],
    reward_gap: Float[Array, "B"],
    *,
    inverse_step: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """DNO: the policy's own preference between two answers, fitted to that of their win rates.

        loss = -p log sigmoid(z) - (1 - p) log sigmoid(-z)
        p = sigmoid(reward_gap),   z = s (first - second),   s = inverse_step

    On pairs of any full-support sampler the one minimiser is the soft policy iteration
    previous exp(win rate / s) / Z (`games.soft_policy_iteration` of step 1 / s), for preferences
    that no reward expresses too; the minimum is the entropy of the targets. Repeat with the
    minimiser as the previous policy: the average of the policies tends to the Nash policy, the last
    one may spiral away from it.

    The practical form, pairs of a large gap labelled by their order, is `dpo` with the previous
    policy as the reference and beta = s: a gap of plus infinity.

    Args:
      first_logratio: log(policy / previous) of the one answer, sums over tokens, in nats. Stop
        the gradient of the previous policy when forming it; for DNO with a KL to a reference it
        is the mixture `games.smoothed_policy` of the two.
      second_logratio: the same for the other answer.
      reward_gap: win rate of the first answer against the previous policy minus that of the
        second, in [-1, 1] (`ranking.win_rate_labels` of a pool of samples estimates them);
        stopped. Infinities are hard labels.
      inverse_step: s, the reciprocal of the step, > 0: the larger, the closer the policy stays
        (0.05 to 0.1 in the paper, which calls it eta, with hard labels).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. A pair whose gap is not a number has loss 0;
      an infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `inverse_step` is not positive.

    References:
      Rosset et al., Direct Nash Optimization: Teaching Language Models to Self-Improve with
      General Preferences, 2024 (arXiv:2404.03715), algorithm 1.
    """
    in_range("inverse_step", inverse_step, low=0.0, above=True)
    _checks.rank("first_logratio", first_logratio, 1, "[B], one value an answer")
    _checks.same_shape(
        "[B]",
        first_logratio=first_logratio,
        second_logratio=second_logratio,
        reward_gap=reward_gap,
    )
    gap = accumulate(jax.lax.stop_gradient(reward_gap))
    known = ~jnp.isnan(gap)
    target = jax.nn.sigmoid(jnp.where(known, gap, 0.0))
    margin = inverse_step * (finite(first_logratio) - finite(second_logratio))
    loss = target * softplus(-margin) + (1.0 - target) * softplus(margin)
    return jnp.where(known, loss, 0.0)
