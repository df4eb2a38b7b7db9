"""Which tokens of a batch a loss treats differently, or leaves out: boolean arrays, without gradient.

`token_covariance`, `covariance_band`, `covariance_top` and `high_entropy` look at the whole batch (its
means, its ranking): they run before any split into micro-batches or shards, once an optimiser
update. `rejection_mask` and `off_policy_sequence_mask` look at one sequence at a time.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.divergences import kl_estimate
from polgrad.masking import masked_mean, sequence_sum
from polgrad.ratios import log_ratio


def token_covariance(
    logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Each token's share in the covariance of log-probability and advantage.

        c = (logp - mean logp) (A - mean A),   means over all valid tokens

    The mean of c over the valid tokens is the sample covariance (divided by N). A policy-gradient
    step lowers the entropy in proportion to it.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      advantages: [B, T] or [B, 1].
      mask: 1 where a token counts, [B, T].

    Returns:
      [B, T], stopped, float32 or wider; minus infinity where masked. A token whose
      log-probability is minus infinity counts as masked.

    Raises:
      ValueError: shapes that do not match.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 10.
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    logp, advantages = jax.lax.stop_gradient((accumulate(logp), accumulate(advantages)))
    valid = _valid(logp, mask)
    advantages = jnp.where(valid, advantages, 0.0)
    logp = jnp.where(valid, logp, 0.0)
    product = (logp - masked_mean(logp, valid)) * (advantages - masked_mean(advantages, valid))
    return jnp.where(valid, product, -jnp.inf)


def covariance_band(
    logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    noise: Float[Array, "B T"],
    *,
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    exclude: Bool[Array, "B T"] | None = None,
) -> Bool[Array, "B T"]:
    """Clip-Cov's choice: random tokens among those whose covariance lies in a band.

    Candidates have low < c < high (c of `token_covariance`); n = max(1, floor(fraction N)) of
    them are taken, N the number of valid tokens: those with the smallest noise. With fewer than
    n candidates all are taken, with none, none.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      advantages: [B, T] or [B, 1].
      mask: 1 where a token counts, [B, T].
      noise: uniform numbers, [B, T], drawn by sample id (not by position in the batch) so that
        the choice does not depend on the order of the rows.
      fraction: share of the valid tokens to take, in (0, 1].
      low: lower end of the band. The defaults suit advantages of unit variance and policies with
        a long tail; in small worlds use a lower band and a larger fraction.
      high: upper end of the band.
      exclude: True for tokens that must not be taken, such as those PPO clips already, [B, T];
        they still count in N and in the means. None for none.

    Returns:
      True for the tokens taken, [B, T]. Equal noise at the n-th place takes all of the equals.

    Raises:
      ValueError: shapes that do not match; fraction outside (0, 1]; low not below high.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equations 11-12.
    """
    _check_fraction(fraction)
    in_range("low", low, high=high, below=True, high_name="high")
    _checks.same_shape("[B, T]", logp=logp, noise=noise)
    covariance = token_covariance(logp, advantages, mask)
    candidate = (covariance > low) & (covariance < high)
    if exclude is not None:
        _checks.same_shape("[B, T]", logp=logp, exclude=exclude)
        candidate &= jnp.asarray(exclude) == 0
    score = jnp.where(candidate, -accumulate(noise), -jnp.inf)
    return _largest(score, _quota(fraction, _valid(logp, mask)))


def covariance_top(
    logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    fraction: float = 2e-4,
) -> Bool[Array, "B T"]:
    """KL-Cov's choice: the tokens of largest covariance.

    Takes the n = max(1, floor(fraction N)) largest c of `token_covariance`, N the number of
    valid tokens.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      advantages: [B, T] or [B, 1].
      mask: 1 where a token counts, [B, T].
      fraction: share of the valid tokens to take, in (0, 1]: a fraction, not a percentage.

    Returns:
      True for the tokens taken, [B, T]. Equal values at the n-th place are all taken, so that
      the order of the rows does not matter, but a covariance of exactly 0 never is: where the
      advantages are all equal nothing drives the entropy, and nothing is taken.

    Raises:
      ValueError: shapes that do not match; fraction outside (0, 1].

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 13.
    """
    _check_fraction(fraction)
    covariance = token_covariance(logp, advantages, mask)
    return _largest(covariance, _quota(fraction, _valid(logp, mask))) & (covariance != 0)


def high_entropy(
    entropy: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    fraction: float = 0.2,
) -> Bool[Array, "B T"]:
    """The tokens at which the policy decides: those of highest entropy in the batch.

    Takes the tokens whose entropy is at least the (1 - fraction) quantile of all valid ones.
    A policy-gradient loss on these forking tokens alone learns as much as on all.

    Args:
      entropy: of the policy at each token, in nats, [B, T].
      mask: 1 where a token counts, [B, T].
      fraction: share of the valid tokens to take, in (0, 1]; 1 takes all.

    Returns:
      True for the tokens taken, [B, T]: 1 + floor(fraction (N - 1)) of N valid ones. Equal
      values at the threshold are all taken. An entropy that is not finite counts as masked.

    Raises:
      ValueError: shapes that do not match; fraction outside (0, 1].

    References:
      Wang et al., Beyond the 80/20 rule, 2025 (arXiv:2506.01939).
    """
    _check_fraction(fraction)
    _checks.rank("entropy", entropy, 2, "[B, T]")
    _checks.same_shape("[B, T]", entropy=entropy, mask=mask)
    entropy = accumulate(entropy)
    valid = (jnp.asarray(mask) != 0) & jnp.isfinite(entropy)
    # The quantile interpolates at (1 - fraction)(N - 1) from below; what is not below it is
    # 1 + floor(fraction (N - 1)) tokens. The factor is that of `_quota`.
    count = 1 + jnp.floor(fraction * (1.0 + 1e-6) * (jnp.sum(valid) - 1)).astype(jnp.int32)
    return _largest(jnp.where(valid, entropy, -jnp.inf), count)


def _valid(logp, mask):
    return (jnp.asarray(mask) != 0) & (jnp.asarray(logp) != -jnp.inf)


def _quota(fraction, valid):
    # The factor keeps 0.1 * 30 at 3, whatever the rounding of 0.1 in float32.
    share = jnp.floor(fraction * (1.0 + 1e-6) * jnp.sum(valid))
    return jnp.maximum(share, 1).astype(jnp.int32)


def _largest(score, count):
    """True for the `count` largest finite scores (fewer if there are fewer, ties included)."""
    descending = -jnp.sort(-score, axis=None)
    threshold = descending[jnp.minimum(count, score.size) - 1]
    return (score >= threshold) & (score > -jnp.inf)


def _check_fraction(fraction):
    in_range("fraction", fraction, low=0.0, high=1.0, above=True)


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
