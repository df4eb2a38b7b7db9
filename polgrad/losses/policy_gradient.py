"""Policy-gradient losses on tokens: REINFORCE, clipped ratios and their relatives.

All are minimised, unreduced, and differentiable in `logp` alone; `behavior_logp` and
`advantages` are stopped inside. On-policy (`behavior_logp` equal to `logp`) every one of the
token losses has the gradient of `reinforce`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._scalars import clip_widths
from polgrad.losses.tokens import clip_surrogate as _clip_surrogate
from polgrad.losses.tokens import stopped as _stopped
from polgrad.masking import masked_mean
from polgrad.ratios import impossible, log_ratio

__all__ = ["cispo", "gspo", "gspo_token", "ppo_clip", "reinforce", "sapo"]


def gspo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Array, "B"]:
    """Group sequence policy optimisation: PPO's clip on a length-normalised sequence ratio.

        s = exp(mean over valid tokens of (logp - behavior_logp))
        loss = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    Reduce with mode "sequence" on a [B] mask: the mean over sequences.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: one a sequence, [B]; stopped.
      mask: 1 where a token counts, [B, T].
      clip_low: how far s may fall below 1, in [0, 1]. A ratio per token, much closer to 1 than
        that of a sequence.
      clip_high: how far s may rise above 1, non-negative.

    Returns:
      Sequence losses [B]; 0 for a row without a valid token. A sequence with a token that the
      current policy excludes has ratio 0 and no gradient.

    Raises:
      ValueError: shapes that do not match; a clip out of range.

    References:
      Zheng et al., Group sequence policy optimization, 2025 (arXiv:2507.18071).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    _checks.shape("advantages", advantages, (np.shape(logp)[0],), "[B]")
    clip_widths(clip_low, clip_high)
    ratio, valid = _sequence_ratio(logp, behavior_logp, mask)
    fixed = _stopped(advantages)
    surrogate = _clip_surrogate(ratio, fixed, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(valid, -surrogate * fixed, 0.0)


def gspo_token(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Array, "B T"]:
    """GSPO with one advantage a token: the sequence ratio as value, the token as gradient.

        s[b, t] = stop(s[b]) exp(logp[b, t] - stop(logp[b, t])),   s[b] as in `gspo`
        loss = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    Reduce with mode "sequence" (mean over sequences of token means). With an advantage that is
    constant along a sequence, value and gradient are then those of `gspo`.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      mask: 1 where a token counts, [B, T].
      clip_low: how far s may fall below 1, in [0, 1]. A ratio per token, much closer to 1 than
        that of a sequence.
      clip_high: how far s may rise above 1, non-negative.

    Returns:
      Token losses [B, T]; 0 where masked.

    Raises:
      ValueError: shapes that do not match; a clip out of range.

    References:
      Zheng et al., Group sequence policy optimization, 2025 (arXiv:2507.18071).
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    clip_widths(clip_low, clip_high)
    ratio, _ = _sequence_ratio(logp, behavior_logp, mask)
    # log_ratio(logp, logp) is 0 with gradient 1, and 0 with gradient 0 at minus infinity.
    ratio = jax.lax.stop_gradient(ratio)[:, None] * jnp.exp(log_ratio(logp, logp))
    fixed = _stopped(advantages)
    surrogate = _clip_surrogate(ratio, fixed, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(jnp.asarray(mask) != 0, -surrogate * fixed, 0.0)


def _sequence_ratio(logp, behavior_logp, mask):
    """Geometric mean of the token ratios [B], and which rows have a valid token [B]."""
    valid = jnp.asarray(mask) != 0
    excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
    mean = masked_mean(log_ratio(logp, behavior_logp), valid, axis=-1)
    return jnp.where(excluded, 0.0, jnp.exp(mean)), jnp.any(valid, axis=-1)
