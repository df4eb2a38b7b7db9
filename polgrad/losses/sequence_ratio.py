"""Policy gradients whose importance ratio belongs to a whole sequence.

The ratio of a sequence is the product of its tokens' ratios. It is exact where a token's ratio is
only a part, and its variance grows with the length: the methods here differ in how they tame it.
`gspo` and `gspo_token` stand in policy_gradient.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.inputs import _check, _totals, vespo_weights
from polgrad.losses.policy_gradient import gspo
from polgrad.losses.tokens import ppo_clip, reinforce
from polgrad.masking import masked_mean
from polgrad.ratios import impossible, log_ratio

__all__ = ["gmpo", "luspo", "ppo_clip_sequence", "vespo", "vespo_weights"]


def ppo_clip_sequence(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "B"]:
    """PPO's clip on the ratio of the whole sequence: RLOO off-policy.

        W = exp(sum over valid tokens of (logp - behavior_logp))
        loss = -min(W A, clip(W, 1 - clip_low, 1 + clip_high) A)

    For completions taken as one action; `gspo` divides the sum by the length. On-policy the
    gradient is that of REINFORCE on the sum of the tokens. Reduce with mode "sequence" on a [B]
    mask: the mean over sequences.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: one a sequence, [B]; stopped.
      mask: 1 where a token counts, [B, T].
      clip_low: how far W may fall below 1, in [0, 1].
      clip_high: how far it may rise above 1, non-negative.

    Returns:
      Sequence losses [B]; 0 for a row without a valid token. The sum is clamped to +-20 nats
      without gradient beyond; a sequence with a token that the current policy excludes has ratio
      0 and no gradient.

    Raises:
      ValueError: shapes that do not match; a clip out of range.

    References:
      Ahmadian et al., Back to basics, 2024 (arXiv:2402.14740); the clip as in TRL's trainer.
    """
    _check(logp, behavior_logp, advantages, mask)
    total, present = _totals(logp, behavior_logp, mask)
    column = jnp.asarray(advantages)[:, None]
    loss = ppo_clip(
        total[:, None],
        jnp.zeros_like(total)[:, None],
        column,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    return jnp.where(present, loss[:, 0], 0.0)


def gmpo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> Float[Array, "B"]:
    """Geometric-mean policy optimisation: clipped tokens, then their geometric mean.

        x = logp - behavior_logp;  min(x, clip_high) where A > 0, max(x, -clip_low) where A < 0
        loss = -A exp(mean over valid tokens of the clipped x)

    One outlier among the tokens moves a geometric mean less than GRPO's arithmetic one, and a
    clipped token stops alone, where `gspo` stops the sequence. Reduce with mode "sequence" on a
    [B] mask.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: one a sequence, [B]; stopped.
      mask: 1 where a token counts, [B, T].
      clip_low: how far a token's log ratio may fall, in nats, non-negative.
      clip_high: how far it may rise, in nats, non-negative.

    Returns:
      Sequence losses [B]; 0 for a row without a valid token. For A > 0 a sequence with a token
      that the current policy excludes has ratio 0 and no gradient; for A < 0 that token is
      clipped like any other.

    Raises:
      ValueError: shapes that do not match; a bound below 0.

    References:
      Zhao et al., Geometric-mean policy optimization, 2025 (arXiv:2507.20673).
    """
    _check(logp, behavior_logp, advantages, mask)
    in_range("clip_low", clip_low, low=0.0)
    in_range("clip_high", clip_high, low=0.0)
    fixed = accumulate(jax.lax.stop_gradient(advantages))
    up, down = (fixed > 0)[:, None], (fixed < 0)[:, None]
    x = log_ratio(logp, behavior_logp)
    x = jnp.where(up & (x > clip_high), clip_high, jnp.where(down & (x < -clip_low), -clip_low, x))
    valid = jnp.asarray(mask) != 0
    excluded = jnp.any(valid & up & impossible(logp, behavior_logp), axis=-1)
    ratio = jnp.where(excluded, 0.0, jnp.exp(masked_mean(x, valid, axis=-1)))
    return jnp.where(jnp.any(valid, axis=-1), -fixed * ratio, 0.0)


def luspo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 2e-3,
    clip_high: float = 2.5e-3,
) -> Float[Array, "B"]:
    """Length-unbiased sequence policy optimisation: `gspo` times the length.

        loss = n gspo(logp, behavior_logp, A),   n valid tokens

    GSPO's gradient is a mean over tokens, so that a token of a long completion counts less; here
    every token counts the same. Reduce with mode "sequence" on a [B] mask.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: one a sequence, [B]; stopped.
      mask: 1 where a token counts, [B, T].
      clip_low: how far the length-normalised ratio may fall below 1, in [0, 1].
      clip_high: how far it may rise above 1, non-negative.

    Returns:
      Sequence losses [B]; 0 for a row without a valid token.

    Raises:
      ValueError: shapes that do not match; a clip out of range.

    References:
      Liu et al., Length-unbiased sequence policy optimization, 2026 (arXiv:2602.05261).
    """
    loss = gspo(logp, behavior_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high)
    return loss * jnp.sum(jnp.asarray(mask) != 0, axis=-1)


def vespo(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Array, "B T"]:
    """VESPO: REINFORCE on tokens, weighted by the soft weight of their sequence.

        loss = -weight A logp,   weight of `vespo_weights`, stopped

    For samples of a much older policy, where a clip would silence whole sequences. On-policy it
    is `reinforce`.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: one a sequence, [B]; stopped.
      mask: 1 where a token counts, [B, T].
      positive: (k, lambda) for A >= 0.
      negative: (k, lambda) for A < 0.

    Returns:
      Token losses [B, T]; 0 where masked or where logp is minus infinity.

    Raises:
      ValueError: shapes that do not match; a k or lambda below 0.

    References:
      Shen et al., VESPO: Variational sequence-level soft policy optimization, 2026
        (arXiv:2602.10693).
    """
    weights = vespo_weights(
        logp, behavior_logp, advantages, mask, positive=positive, negative=negative
    )
    loss = reinforce(logp, (weights * accumulate(advantages))[:, None])
    return jnp.where(jnp.asarray(mask) != 0, loss, 0.0)
