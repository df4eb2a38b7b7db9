"""Clip-Cov and KL-Cov: the losses that spare a policy's entropy.

Which tokens they treat is decided before, on the whole batch, by `selection.covariance_band`
and `selection.covariance_top`. Both are meant for reduction mode "token", whose divisor counts
the selected tokens too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.policy_gradient import ppo_clip
from polgrad.ratios import importance_ratio, penalty_log_ratio

__all__ = ["clip_cov", "kl_cov"]


def clip_cov(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    selected: Bool[Array, "B T"],
    *,
    clip_low: float = 1.0,
    clip_high: float = 1.0,
) -> Float[Array, "B T"]:
    """PPO's clipped loss without the selected tokens.

        loss = 0 where selected, else ppo_clip(logp, behavior_logp, A)

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      selected: True for the tokens to leave out, [B, T]; see `selection.covariance_band`.
      clip_low: how far the ratio may fall below 1, in [0, 1]; the paper opens the range to 1.
      clip_high: how far it may rise above 1, non-negative; the paper opens the range to 1.

    Returns:
      Token losses [B, T]; selected tokens have loss and gradient 0.

    Raises:
      ValueError: shapes that do not match; a clip out of range.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617).
    """
    _checks.same_shape("[B, T]", logp=logp, selected=selected)
    loss = ppo_clip(logp, behavior_logp, advantages, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(jnp.asarray(selected) != 0, 0.0, loss)


def kl_cov(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    selected: Bool[Array, "B T"],
    *,
    kl_coefficient: float = 1.0,
) -> Float[Array, "B T"]:
    """KL-Cov: the unclipped ratio loss, with a penalty on the selected tokens.

        loss = -r A + kl_coefficient |logp - behavior_logp| where selected,   r the ratio

    The slope of the absolute value at 0 is taken as 0: on the first inner update, where every
    log ratio is 0, the penalty then has no gradient and the loss is REINFORCE's.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      selected: True for the tokens with the penalty, [B, T]; see `selection.covariance_top`.
      kl_coefficient: strength of the penalty, non-negative.

    Returns:
      Token losses [B, T]. The ratio is clamped to exp(+-20) without gradient beyond; the value of
      the penalty to 20 nats, with its slope.

    Raises:
      ValueError: shapes that do not match; kl_coefficient below 0.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617).
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, selected=selected)
    in_range("kl_coefficient", kl_coefficient, low=0.0)
    fixed = accumulate(jax.lax.stop_gradient(advantages))
    difference = penalty_log_ratio(logp, behavior_logp)
    # jax differentiates abs at 0 to 1, which would push every selected token down.
    distance = difference * jnp.sign(difference)
    held = jnp.where(jnp.asarray(selected) != 0, kl_coefficient * distance, 0.0)
    return held - importance_ratio(logp, behavior_logp) * fixed
