"""Correction of a sampler that is not quite the trained policy.

A sampling engine computes in another precision, order or at other weights than the trainer, so
its log-probabilities differ from the trainer's for the same tokens. These functions compare the
two and say how much a token (or sequence) may still count. They return stopped weights that
multiply the policy term, never its KL penalty. Where the surrogate's own ratio is already taken
against the sampler, do not multiply a second time.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.divergences import kl_estimate
from polgrad.masking import masked_mean, sequence_sum
from polgrad.ratios import log_ratio

__all__ = [
    "normalized_weights",
    "off_policy_sequence_mask",
    "rejection_mask",
    "truncated_importance_weights",
]


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
    _checks.shape("advantages", advantages, (np.shape(logp)[0],), "[B]")
    drift = -masked_mean(log_ratio(logp, behavior_logp), mask, axis=-1)
    return ~((jnp.asarray(advantages) < 0) & (drift > threshold))


def rejection_mask(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    kind: str = "k1",
    level: str = "token",
    low: float = -math.log(2.0),
    high: float = math.log(2.0),
) -> Bool[Array, "B T"]:
    """Tells which tokens to keep: those where trainer and sampler agree, alone or as a sequence.

        kept where low <= s <= high
        s = k1 = -x, k2 = x^2 / 2 or k3 = exp(x) - 1 - x,   x = logp - behavior_logp
        level "token":        s of the token
        level "sum", "mean":  sum or mean of s over the sequence's tokens
        level "max":          every s of the sequence, the largest and the smallest

    With k1 the bounds are bounds of the ratio: low = -log c, high = log c keeps trainer / sampler
    within [1/c, c]. By default a token is kept if its ratio lies in [1/2, 2]. Tokens of a small
    ratio are rejected as well as tokens of a large one; `truncated_importance_weights` with mode
    "mask" rejects only the large ones (above 2), because a small ratio is a small weight.

    The estimators are those of KL(sampler || trainer) on the sampler's own tokens.

    Args:
      logp: log-probabilities under the trainer's policy at sampling time, in nats, [B, T].
      behavior_logp: what the sampler reported for the same tokens, [B, T].
      mask: 1 where a token counts, [B, T].
      kind: "k1", "k2" or "k3".
      level: "token", or "sum", "mean" or "max" to keep or reject whole sequences.
      low: smallest statistic that is kept, in nats: with k1 the ratio may rise to exp(-low).
        k2 and k3 are never negative.
      high: largest statistic that is kept, in nats, at least low: with k1 the ratio may fall to
        exp(-high).

    Returns:
      True for the tokens to keep, [B, T]; False where masked. A token that one of the two excludes
      has x = +-20.

    Raises:
      ValueError: shapes that differ; unknown kind or level; high below low.

    References:
      Yao et al., Your efficient RL framework secretly brings you off-policy RL training, 2025.
    """
    _checks.choice("level", level, ("token", "sum", "mean", "max"))
    in_range("high", high, low=low, low_name="low")
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    valid = jnp.asarray(mask) != 0
    statistic = kl_estimate(behavior_logp, logp, kind=kind)
    if level == "sum":
        statistic = sequence_sum(statistic, valid)[:, None]
    elif level == "mean":
        statistic = masked_mean(statistic, valid, axis=-1)[:, None]
    inside = (statistic >= low) & (statistic <= high)
    if level == "max":
        inside = jnp.all(inside | ~valid, axis=-1, keepdims=True)
    return valid & inside
