"""Negative-aware fine-tuning: likelihood of right answers, and of wrong ones by what is left over.

The policy that drew the answers is a mixture of its right and its wrong conditional, weighted by
the success rate. So a model of the right one implies one of the wrong one, and both are fitted
by maximum likelihood on the model's own answers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.inputs import _RATES
from polgrad.ratios import bounded, importance_ratio, penalty_log_ratio

__all__ = ["implicit_negative_policy", "nft", "nft_prompt_weight"]


def nft(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    rewards: Float[Array, "B"],
    success_rate: Float[Array, "B"],
    *,
    epsilon: float = 1.0,
    negative_weight: float = 1.0,
) -> Float[Array, "B T"]:
    """NFT: log-likelihood of right answers and, through the implicit negative policy, of wrong ones.

        R = pi / behavior,   p the success rate of the answer's question
        loss = -r log R - negative_weight (1 - r) log max_v((1 - p R) / (1 - p), epsilon)

    max_v(x, epsilon) returns max(x, epsilon) and has the gradient of x everywhere (a
    straight-through estimator). The gradient of a right token is therefore -grad log pi for every
    R. That of a wrong token is p R / ((1 - p) max(x, epsilon)) grad log pi: it vanishes as R goes
    to 0, and epsilon bounds it where R is large. On-policy, times `nft_prompt_weight`, it is
    Dr. GRPO or GRPO; without negatives it is rejection fine-tuning.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      rewards: 1 for a right answer, 0 for a wrong one, [B]; between them, the two terms mix.
      success_rate: of the question's whole group, [B] (`advantages.success_rate`, repeated), in
        [0, 1]; taken as within 0.02..0.98.
      epsilon: smallest value under the logarithm, in (0, 1].
      negative_weight: of the wrong answers, >= 0; 0 leaves them out.

    Returns:
      Token losses [B, T], to be multiplied by `nft_prompt_weight` (0 for a group that is all
      right or all wrong) and reduced by mode "token". With epsilon = 1 the value of a wrong
      token with R >= 1 is 0 although its gradient is not: the value does not show progress. The
      value of a right token's log ratio is clamped to +-20 nats and keeps its gradient; the ratio
      of a wrong token is clamped to exp(+-20) without gradient beyond. A token that either policy
      excludes has no gradient. Where the reward or the success rate is NaN, 0.

    Raises:
      ValueError: shapes that do not match; epsilon or negative_weight out of range.

    References:
      Chen et al., Bridging Supervised Learning and Reinforcement Learning in Math Reasoning
      (NFT), 2025 (arXiv:2505.18116), equations 7, 8 and 10.
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp)
    rows = (np.shape(logp)[0],)
    _checks.shape("rewards", rewards, rows, "[B]")
    _checks.shape("success_rate", success_rate, rows, "[B]")
    in_range("epsilon", epsilon, low=0.0, high=1.0, above=True)
    in_range("negative_weight", negative_weight, low=0.0)
    rewards, rate = jax.lax.stop_gradient((accumulate(rewards), accumulate(success_rate)))
    known = jnp.isfinite(rewards) & jnp.isfinite(rate)
    rewards = jnp.where(known, rewards, 0.0)[:, None]
    rate = jnp.clip(jnp.where(known, rate, 0.5), *_RATES)[:, None]
    positive = penalty_log_ratio(logp, behavior_logp)
    left = (1.0 - rate * importance_ratio(logp, behavior_logp)) / (1.0 - rate)
    negative = jnp.log(bounded(left, low=epsilon, high=jnp.inf))
    loss = -rewards * positive - negative_weight * (1.0 - rewards) * negative
    return jnp.where(known[:, None], loss, 0.0)
