"""Token losses for samples of an older policy, without PPO's clip of the ratio.

All are minimised, unreduced, and differentiable in `logp` alone. On-policy each has the gradient
of `reinforce`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.policy_gradient import cispo, reinforce
from polgrad.ratios import penalty_log_ratio

__all__ = ["dppo_kl", "dppo_tv", "dro"]


def dro(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    beta: float,
) -> Float[Array, "B T"]:
    """Direct reward optimisation on tokens: REINFORCE with a squared log ratio as its penalty.

        loss = -A logp + beta / 2 (logp - behavior_logp)^2

    The square, rather than a ratio, corrects for old samples: the minimum of one term lies at
    logp = behavior_logp + A / beta, so that no sample can be pushed without end. For logged or
    very stale data.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      beta: strength of the square, in units of the advantage a nat, non-negative.

    Returns:
      Token losses [B, T]. Beyond 20 nats the square keeps the value and the slope that it has at
      20 nats. Where either log-probability is minus infinity it is constant (log ratio +-20, or 0
      where both are).

    Raises:
      ValueError: shapes that do not match; beta below 0.

    References:
      Richemond et al., Offline regularised reinforcement learning for large language models
        alignment, 2024 (arXiv:2405.19107).
    """
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp)
    in_range("beta", beta, low=0.0)
    held = 0.5 * beta * jnp.square(penalty_log_ratio(logp, behavior_logp))
    return reinforce(logp, advantages) + held


def dppo_tv(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 20.0,
) -> Float[Array, "B T"]:
    """DPPO with total variation: masks tokens whose probability (not ratio) has changed too much.

        loss = -stop(min(exp(logp - behavior_logp), cap)) A logp
        0 where A > 0 and pi - pi_behavior > clip_high, or A <= 0 and pi - pi_behavior < -clip_low

    |pi - pi_behavior| of the sampled token bounds the total variation from below. A clip on the
    ratio (`ppo_clip`) is too tight for rare tokens and too loose for frequent ones; a clip on the
    probability is neither.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      clip_low: how far the probability (not the ratio) of a bad token may fall, in [0, 1].
      clip_high: how far the probability of a good token may rise, in [0, 1].
      cap: largest ratio that weighs a token, positive.

    Returns:
      Token losses [B, T]; 0 without gradient where logp is minus infinity.

    Raises:
      ValueError: shapes that do not match; a bound out of range.

    References:
      Qi et al., Rethinking the trust region in LLM reinforcement learning, 2026
        (arXiv:2602.04879).
    """
    in_range("cap", cap, low=0.0, above=True)
    in_range("clip_low", clip_low, low=0.0, high=1.0)
    in_range("clip_high", clip_high, low=0.0, high=1.0)
    loss = cispo(logp, behavior_logp, advantages, cap_high=cap)
    moved = jnp.exp(accumulate(logp)) - jnp.exp(accumulate(behavior_logp))
    outside = jnp.where(accumulate(advantages) > 0, moved > clip_high, moved < -clip_low)
    return jnp.where(outside, 0.0, loss)


def dppo_kl(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 20.0,
) -> Float[Array, "B T"]:
    """DPPO with a KL: masks tokens whose choice against all others has diverged too much.

        d = q log(q / p) + (1 - q) log((1 - q) / (1 - p)),   q = pi_behavior, p = pi
        loss = -stop(min(p / q, cap)) A logp
        0 where the update would go on: A > 0, p > q and d > clip_high,
            or A <= 0, p < q and d > clip_low

    d, the KL of the two choices "this token" and "another", bounds KL(behaviour || policy) at
    that place from below.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped.
      advantages: [B, T] or [B, 1]; stopped.
      clip_low: largest d of a bad token that has become rarer, in nats, non-negative.
      clip_high: largest d of a good token that has become likelier, in nats, non-negative.
      cap: largest ratio that weighs a token, positive.

    Returns:
      Token losses [B, T]; 0 without gradient where logp is minus infinity.

    Raises:
      ValueError: shapes that do not match; a bound below 0.

    References:
      Qi et al., Rethinking the trust region in LLM reinforcement learning, 2026
        (arXiv:2602.04879).
    """
    in_range("cap", cap, low=0.0, above=True)
    in_range("clip_low", clip_low, low=0.0)
    in_range("clip_high", clip_high, low=0.0)
    loss = cispo(logp, behavior_logp, advantages, cap_high=cap)
    now, before = (jnp.minimum(accumulate(x), 0.0) for x in (logp, behavior_logp))
    # abs, because -expm1(0) is -0.0: dividing by it gives -inf and the logarithm NaN.
    others, others_now = jnp.abs(jnp.expm1(before)), jnp.abs(jnp.expm1(now))
    divergence = jnp.where(before == -jnp.inf, 0.0, jnp.exp(before) * (before - now))
    divergence += jnp.where(others == 0.0, 0.0, others * jnp.log(others / others_now))
    outside = jnp.where(
        accumulate(advantages) > 0,
        (now > before) & (divergence > clip_high),
        (now < before) & (divergence > clip_low),
    )
    return jnp.where(outside, 0.0, loss)
