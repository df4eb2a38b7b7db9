"""Losses whose importance ratio, target or opponent belongs to a whole answer: [B], two of them [B, T].

* One importance ratio a sequence, from the log-probabilities of its tokens [B, T]: `gspo` clips its
  geometric mean, `luspo` is `gspo` times the length, `gmpo` clips tokens and then takes their geometric
  mean, `ppo_clip_sequence` clips the product. The product is exact where a token's ratio is only a
  part, and its variance grows with the length; the methods differ in how they bound it.
* The same ratio for one number a token, [B, T]: `gspo_token`, whose advantages may differ between the
  tokens of an answer, and `vespo`, whose weight falls smoothly.
* Log-probabilities of sequences [B]: `topr` on logged data, `f_dpg` to a target distribution,
  `nash_md` against an opponent.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import clip_widths, in_range
from polgrad.divergences import FDivergence
from polgrad.losses.inputs import f_dpg_pseudo_reward, topr_weights
from polgrad.losses.tokens import clip_surrogate, ppo_clip, reinforce, stopped
from polgrad.masking import masked_mean, sequence_sum
from polgrad.ratios import (
    LIMIT,
    finite,
    importance_ratio,
    impossible,
    log_ratio,
)


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
    fixed = stopped(advantages)
    surrogate = clip_surrogate(ratio, fixed, clip_low=clip_low, clip_high=clip_high)
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
    fixed = stopped(advantages)
    surrogate = clip_surrogate(ratio, fixed, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(jnp.asarray(mask) != 0, -surrogate * fixed, 0.0)


def _sequence_ratio(logp, behavior_logp, mask):
    """Geometric mean of the token ratios [B], and which rows have a valid token [B]."""
    valid = jnp.asarray(mask) != 0
    excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
    mean = masked_mean(log_ratio(logp, behavior_logp), valid, axis=-1)
    return jnp.where(excluded, 0.0, jnp.exp(mean)), jnp.any(valid, axis=-1)


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


def topr(
    logp: Float[Array, "B"],
    behavior_logp: Float[Array, "B"],
    rewards: Float[Array, "B"],
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "B"]:
    """TOPR: REINFORCE on logged sequences with asymmetrically truncated importance weights.

    loss = -sg[weight] reward logp, weight as in `topr_weights`. By default a good sample keeps
    weight 1 however rare it has become, and the push away from a bad one fades as the policy
    leaves it, so the objective is bounded and needs neither KL nor critic. On-policy it is
    REINFORCE; with positive rewards only it is supervised learning.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens.
      behavior_logp: the same under the policy that drew them, same temperature.
      rewards: rewards, +1 / -1 in the paper; any real numbers, minus a baseline if there is one
        (see `baseline_for_fraction`).
      positive: (low, high) limits of the ratio for positive rewards.
      negative: (low, high) limits of the ratio for negative rewards.

    Returns:
      Losses, [B], to be averaged over sequences. Reward 0 or NaN, an empty sequence (logp = 0)
      or logp = -inf contribute 0.

    Raises:
      ValueError: if shapes differ or a pair of limits is not 0 <= low <= high.

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286).
    """
    weights = topr_weights(logp, behavior_logp, rewards, positive=positive, negative=negative)
    logp, rewards = accumulate(logp), accumulate(rewards)
    known = jnp.isfinite(rewards)
    coefficient = jax.lax.stop_gradient(weights * jnp.where(known, rewards, 0.0))
    return -coefficient * jnp.where(jnp.isneginf(logp), 0.0, logp)


def f_dpg(
    logp: Float[Array, "B"],
    log_target: Float[Array, "B"],
    *,
    divergence: FDivergence,
    behavior_logp: Float[Array, "B"] | None = None,
    baseline: Float[Array, "..."] | float = 0.0,
    log_ratio_clip: float = 20.0,
) -> Float[Array, "B"]:
    """f-DPG: policy-gradient loss whose expected gradient is that of D_f(policy || target).

    loss = -sg[w (r - baseline)] logp, with the pseudo-reward r = -f'(policy / target) and the
    importance weight w = policy / behavior (1 when on-policy). Gradients flow through the last
    `logp` only; differentiating through r would give another, wrong, gradient.

    With a hard target (log_target = -inf somewhere) `reverse_kl` and `reverse_chi_squared` are
    infinite; the clip then turns the infinite penalty into a large one.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens with
        the end token, in nats (no length normalisation).
      log_target: NORMALISED log-probabilities of the same sequences under the target. Minus
        infinity: the target excludes the sequence. Plus infinity or NaN: the normaliser is not
        known yet (`distributions.normalize` with an empty partition function); the sample is skipped.
      divergence: a generator from `polgrad.divergences`.
      behavior_logp: log-probabilities under the policy that drew the samples; None on-policy.
      baseline: subtracted from the pseudo-reward, a scalar or one value a sequence, computed
        without the current samples.
      log_ratio_clip: bound on |log(policy / target)| before f', in nats, > 0.

    Returns:
      Losses, [B], to be averaged over sequences. A skipped sample or one with logp = -inf
      contributes 0 and no gradient.

    Raises:
      ValueError: if shapes differ or `log_ratio_clip` is not positive.

    References:
      Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
      2023 (arXiv:2302.08215).
    """
    reward = f_dpg_pseudo_reward(
        logp, log_target, divergence=divergence, log_ratio_clip=log_ratio_clip
    )
    if behavior_logp is None:
        weight = 1.0
    else:
        _checks.same_shape("[B]", logp=logp, behavior_logp=behavior_logp)
        weight = importance_ratio(logp, behavior_logp)
    logp, log_target = accumulate(logp), accumulate(log_target)
    known = ~(jnp.isnan(log_target) | jnp.isposinf(log_target) | jnp.isneginf(logp))
    coefficient = jax.lax.stop_gradient(jnp.where(known, weight * (reward - baseline), 0.0))
    return -coefficient * jnp.where(known, logp, 0.0)


def nash_md(
    logp: Float[Array, "B"],
    preference: Float[Array, "B"],
    reference_logratio: Float[Array, "B"],
    *,
    tau: float,
) -> Float[Array, "B"]:
    """Nash-MD-PG: loss for responses judged against those of another policy.

    loss = -sg[preference - 1/2 - tau reference_logratio] logp. The expected gradient is that of
    -(P(policy beats opponent) - tau KL(policy || reference)) with the opponent held fixed; the
    1/2 is a control variate only. The opponent makes the method: samples of
    `distributions.geometric_mixture` of policy and reference for Nash-MD, of the policy itself for
    self-play, of an averaged policy for Nash-EMA.

    Args:
      logp: log-probabilities of whole responses under the current policy, sums over tokens.
      preference: P(response beats the opponent's response), in [0, 1]; or 0 / 1 choices.
      reference_logratio: log(policy / reference) of the response, sums over tokens, in nats; an
        infinite one counts 20 nats.
      tau: strength of the KL to the reference, >= 0 (0.008 in the paper).

    Returns:
      Losses, [B], to be averaged over responses. An empty response (logp = 0) contributes 0,
      and so does logp = -inf, without gradient.

    Raises:
      ValueError: if shapes differ or `tau` is negative.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886).
    """
    in_range("tau", tau, low=0.0)
    _checks.rank("logp", logp, 1, "[B], one value a response (masking.sequence_sum)")
    _checks.same_shape(
        "[B]", logp=logp, preference=preference, reference_logratio=reference_logratio
    )
    logp = accumulate(logp)
    # The log ratio of an answer that the reference excludes is 20 nats, not infinity.
    advantage = accumulate(preference) - 0.5 - tau * finite(reference_logratio)
    return -jax.lax.stop_gradient(advantage) * jnp.where(jnp.isneginf(logp), 0.0, logp)


def vespo_weights(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Array, "B"]:
    """The soft weights of VESPO: a sequence's importance ratio, tapered on both sides.

        W = exp(sum over valid tokens of (logp - behavior_logp))
        weight = W^k exp(lambda (1 - W)),   (k, lambda) = positive where A >= 0, else negative

    1 at W = 1, largest at W = k / lambda, and falling to 0 for small and large W: no clip, and
    no length normalisation.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      advantages: one a sequence, [B]; only the sign counts.
      mask: 1 where a token counts, [B, T].
      positive: (k, lambda) for A >= 0, both non-negative.
      negative: (k, lambda) for A < 0, both non-negative.

    Returns:
      Weights [B], stopped, float32 or wider; 1 for a row without a valid token. log W is clamped
      to [log 1e-8, 20], so that a token which the current policy excludes gives about 0.

    Raises:
      ValueError: shapes that do not match; a k or lambda below 0.

    References:
      Shen et al., VESPO: Variational sequence-level soft policy optimization, 2026
        (arXiv:2602.10693).
    """
    _check(logp, behavior_logp, advantages, mask)
    for name, (k, slope) in (("positive", positive), ("negative", negative)):
        in_range(f"k of {name}", k, low=0.0)
        in_range(f"lambda of {name}", slope, low=0.0)
    total, _ = _totals(*jax.lax.stop_gradient((logp, behavior_logp)), mask)
    total = jnp.clip(total, _VESPO_FLOOR, LIMIT)
    power, slope = (
        jnp.where(jnp.asarray(advantages) >= 0, up, down) for up, down in zip(positive, negative)
    )
    return jnp.exp(power * total + slope * (1.0 - jnp.exp(total)))


# The weight of VESPO sees log ratios of sequences no smaller than this.
_VESPO_FLOOR = math.log(1e-8)


def _totals(logp, behavior_logp, mask):
    """Log ratios of the sequences [B], -inf where a token is excluded; which rows have a token."""
    valid = jnp.asarray(mask) != 0
    total = sequence_sum(log_ratio(logp, behavior_logp), valid)
    excluded = jnp.any(valid & impossible(logp, behavior_logp), axis=-1)
    return jnp.where(excluded, -jnp.inf, total), jnp.any(valid, axis=-1)


def _check(logp, behavior_logp, advantages, mask):
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    _checks.shape("advantages", advantages, (np.shape(logp)[0],), "[B]")
