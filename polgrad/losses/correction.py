"""Correction of a sampler that is not quite the trained policy.

A sampling engine computes in another precision, order or at other weights than the trainer, so
its log-probabilities differ from the trainer's for the same tokens. These functions compare the
two and say how much a token (or sequence) may still count. They return stopped weights that
multiply the policy term, never its KL penalty. Where the surrogate's own ratio is already taken
against the sampler, do not multiply a second time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._log_ratio import importance_ratio, impossible, log_ratio
from polgrad.masking import masked_mean, sequence_sum

__all__ = ["off_policy_sequence_mask", "truncated_importance_weights"]


def truncated_importance_weights(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    level: str = "token",
    mode: str = "truncate",
    floor: float = 0.0,
    cap: float = 2.0,
) -> Float[Array, "B T"]:
    """Importance weights of trainer over sampler, bounded.

        level "token":     w[b, t] = exp(logp - behavior_logp)
        level "sequence":  w[b, t] = exp(sum over valid tokens of (logp - behavior_logp))
        mode "truncate":   clip(w, floor, cap)                (TIS)
        mode "mask":       w where floor <= w <= cap, else 0  (IcePop, MIS)

    Args:
      logp: log-probabilities under the trainer's policy at sampling time, in nats, [B, T].
      behavior_logp: what the sampler reported for the same tokens, [B, T].
      mask: 1 where a token counts, [B, T].
      level: "token" or "sequence".
      mode: "truncate" or "mask".
      floor: smallest weight, non-negative.
      cap: largest weight.

    Returns:
      Weights [B, T], stopped, float32 or wider; 0 where masked. The sum of a sequence is clamped
      to +-20 nats.

    Raises:
      ValueError: shapes that differ; unknown level or mode; floor above cap.

    References:
      Yao et al., Your efficient RL framework secretly brings you off-policy RL training, 2025.
      Ling Team, Every step evolves (IcePop), 2025 (arXiv:2510.18855).
    """
    _checks.choice("level", level, ("token", "sequence"))
    _checks.choice("mode", mode, ("truncate", "mask"))
    if not 0.0 <= floor <= cap:
        raise ValueError(f"floor is {floor}, expected 0 <= floor <= cap = {cap}")
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    logp, behavior_logp = jax.lax.stop_gradient((logp, behavior_logp))
    valid = jnp.asarray(mask) != 0
    if level == "token":
        ratio = importance_ratio(logp, behavior_logp)
    else:
        total = sequence_sum(log_ratio(logp, behavior_logp), valid)
        excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
        ratio = jnp.where(excluded, 0.0, importance_ratio(total, jnp.zeros_like(total)))[:, None]
    if mode == "truncate":
        bounded = jnp.clip(ratio, floor, cap)
    else:
        bounded = jnp.where((ratio >= floor) & (ratio <= cap), ratio, 0.0)
    return jnp.where(valid, bounded, 0.0)


def off_policy_sequence_mask(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    threshold: float = 0.5,
) -> Bool[Array, "B"]:
    """Tells which sequences to keep: all but the bad ones that the policy has left behind.

        dropped where A < 0 and mean over valid tokens of (behavior_logp - logp) > threshold

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      advantages: one a sequence, [B].
      mask: 1 where a token counts, [B, T].
      threshold: largest mean log ratio, in nats a token.

    Returns:
      True for the sequences to keep, [B]; a row without a valid token is kept (it weighs 0).

    Raises:
      ValueError: shapes that do not match.

    References:
      DeepSeek-AI, DeepSeek-V3.2, 2025 (arXiv:2512.02556).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    _checks.shape("advantages", advantages, (jnp.shape(logp)[0],), "[B]")
    drift = -masked_mean(log_ratio(logp, behavior_logp), mask, axis=-1)
    return ~((jnp.asarray(advantages) < 0) & (drift > threshold))
