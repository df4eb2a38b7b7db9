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
from polgrad._dtypes import accumulate
from polgrad._scalars import clip_widths, in_range
from polgrad.masking import masked_mean
from polgrad.ratios import importance_ratio, impossible, log_ratio

__all__ = ["cispo", "gspo", "gspo_token", "ppo_clip", "reinforce", "sapo"]


def reinforce(
    logp: Float[Array, "B T"], advantages: Float[Array, "B T"] | Float[Array, "B 1"]
) -> Float[Array, "B T"]:
    """The score-function loss: -A log pi(a | s).

    Its gradient is -A grad log pi; with samples of the current policy and an advantage that
    subtracts a baseline independent of the action, the expectation is minus the gradient of the
    expected return.

    Args:
      logp: log-probabilities of the sampled tokens under the current policy, in nats, [B, T].
      advantages: [B, T], or [B, 1] for one advantage a sequence; stopped.

    Returns:
      Token losses [B, T]. Where logp is minus infinity (the policy cannot make this token) the
      loss and its gradient are 0.

    Raises:
      ValueError: advantages that are neither [B, T] nor [B, 1].

    References:
      Williams, Simple statistical gradient-following algorithms, 1992.
    """
    _checks.token_advantages(advantages, logp)
    return -_stopped(advantages) * _score(logp)


def ppo_clip(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Array, "B T"]:
    """PPO's clipped surrogate, with separate bounds and the optional dual clip.

        r = exp(logp - behavior_logp)
        loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
        for A < 0 with dual_clip = c:  loss = min(loss, -c A)

    The gradient is 0 exactly where A > 0 and r > 1 + clip_high, or A < 0 and r < 1 - clip_low
    (or A < 0 and r > c); elsewhere, the bounds included, it is -r A grad logp.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      clip_low: how far the ratio may fall below 1, in [0, 1]: a distance, 0.2 for a lower bound of
        0.8.
      clip_high: how far it may rise above 1, non-negative: a distance, 0.2 for an upper bound of
        1.2 ("clip-higher" uses 0.28).
      dual_clip: largest ratio that counts for a negative advantage, above 1; None for no bound.

    Returns:
      Token losses [B, T]. Log-probabilities of minus infinity follow `ratios.log_ratio`:
      a token that the current policy excludes has ratio 0, one that the behaviour policy
      excludes exp(20), both without gradient.

    Raises:
      ValueError: shapes that do not match; a clip or dual_clip out of range; clips that look like
        bounds of the ratio itself, such as 0.8 and 1.2 (0.5 <= clip_low < 1 < clip_high < inf).

    References:
      Schulman et al., Proximal policy optimization algorithms, 2017 (arXiv:1707.06347).
      Ye et al., Mastering complex control in MOBA games, 2019 (arXiv:1912.09729): dual clip.
      Yu et al., DAPO, 2025 (arXiv:2503.14476): clip-higher.
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp)
    clip_widths(clip_low, clip_high)
    if dual_clip is not None:
        in_range("dual_clip", dual_clip, low=1.0, above=True)
    fixed = _stopped(advantages)
    surrogate = _clip_surrogate(
        importance_ratio(logp, behavior_logp), fixed, clip_low=clip_low, clip_high=clip_high
    )
    if dual_clip is not None:
        surrogate = jnp.where((fixed < 0) & (surrogate > dual_clip), dual_clip, surrogate)
    return -surrogate * fixed


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


def cispo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    cap_low: float = 0.0,
    cap_high: float = 5.0,
) -> Float[Array, "B T"]:
    """REINFORCE weighted by a capped, stopped importance ratio: no token loses its gradient.

        loss = -stop(clip(exp(logp - behavior_logp), cap_low, cap_high)) A logp

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      cap_low: smallest ratio (the ratio itself, not its distance from 1), in [0, cap_high].
      cap_high: largest ratio, non-negative.

    Returns:
      Token losses [B, T]; 0 without gradient where logp is minus infinity.

    Raises:
      ValueError: shapes that do not match; cap_high below 0; cap_low outside [0, cap_high].

    References:
      MiniMax, MiniMax-M1, 2025 (arXiv:2506.13585).
      Khatri et al., The art of scaling RL compute for LLMs, 2025 (arXiv:2510.13786): cap 5.
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp)
    in_range("cap_high", cap_high, low=0.0)
    in_range("cap_low", cap_low, low=0.0, high=cap_high, high_name="cap_high")
    ratio = jax.lax.stop_gradient(importance_ratio(logp, behavior_logp))
    return -jnp.clip(ratio, cap_low, cap_high) * _stopped(advantages) * _score(logp)


def sapo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Array, "B T"]:
    """Soft adaptive policy optimisation: a smooth gate in place of the clip.

        r = exp(logp - behavior_logp),  tau = tau_positive if A > 0 else tau_negative
        loss = -(4 / tau) sigmoid(tau (r - 1)) A

    The slope in r is 4 s (1 - s) with s the sigmoid: 1 at r = 1, falling off on both sides, and
    faster for negative advantages. Meant for reduction mode "sequence".

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      tau_positive: gate temperature for A > 0, positive.
      tau_negative: gate temperature for A <= 0, positive.

    Returns:
      Token losses [B, T].

    Raises:
      ValueError: shapes that do not match; a temperature that is not positive.

    References:
      Gao et al., Soft adaptive policy optimization, 2025 (arXiv:2511.20347).
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp)
    in_range("tau_positive", tau_positive, low=0.0, above=True)
    in_range("tau_negative", tau_negative, low=0.0, above=True)
    fixed = _stopped(advantages)
    tau = jnp.where(fixed > 0, tau_positive, tau_negative)
    ratio = importance_ratio(logp, behavior_logp)
    return -(4.0 / tau) * jax.nn.sigmoid(tau * (ratio - 1.0)) * fixed


def _stopped(x):
    return accumulate(jax.lax.stop_gradient(x))


def _score(logp):
    """logp, but 0 without gradient at minus infinity, where 0 * -inf would be NaN."""
    logp = accumulate(logp)
    return jnp.where(logp == -jnp.inf, 0.0, logp)


def _clip_surrogate(ratio, advantages, *, clip_low, clip_high):
    """The ratio that PPO's min(r A, clip(r) A) / A keeps; advantages must be stopped.

    Written with `where`: `minimum` and `clip` give half of the gradient at exact ties.
    """
    above = (advantages > 0) & (ratio > 1.0 + clip_high)
    below = (advantages < 0) & (ratio < 1.0 - clip_low)
    return jnp.where(above, 1.0 + clip_high, jnp.where(below, 1.0 - clip_low, ratio))


def _sequence_ratio(logp, behavior_logp, mask):
    """Geometric mean of the token ratios [B], and which rows have a valid token [B]."""
    valid = jnp.asarray(mask) != 0
    excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
    mean = masked_mean(log_ratio(logp, behavior_logp), valid, axis=-1)
    return jnp.where(excluded, 0.0, jnp.exp(mean)), jnp.any(valid, axis=-1)
