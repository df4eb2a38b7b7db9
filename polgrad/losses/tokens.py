"""Policy-gradient losses of tokens: one number a token, [B, T].

`behavior_logp` and `advantages` are stopped inside every loss; the gradient flows through `logp`
alone. On-policy, where `behavior_logp` equals `logp`, `ppo_clip`, `cispo`, `sapo`, `dro`, `dppo_tv` and
`dppo_kl` have the gradient of `reinforce`. Choose by what happens to a ratio that has moved:

* `reinforce` has no ratio; `ppo_clip` clips it; `cispo` caps it and keeps the gradient; `sapo` lets
  it fade smoothly;
* `dppo_tv` and `dppo_kl` mask a token by the change of its probability, `dro` adds a square of the log
  ratio;
* `clip_cov` and `kl_cov` treat the tokens that `selection.covariance_band` and
  `selection.covariance_top` pick on the whole batch. Both are meant for the reduction mode "token",
  whose divisor counts the selected tokens too;
* `nft` fits right answers and, through the policy that they leave over, wrong ones.

`gspo_token` and `vespo`, whose ratio belongs to the whole answer, are in sequences.py, losses with a
teacher in distillation.py, terms beside the policy's loss in penalties.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import clip_widths, in_range
from polgrad.ratios import bounded, importance_ratio, penalty_log_ratio


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
    return -stopped(advantages) * _score(logp)


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
    fixed = stopped(advantages)
    surrogate = clip_surrogate(
        importance_ratio(logp, behavior_logp), fixed, clip_low=clip_low, clip_high=clip_high
    )
    if dual_clip is not None:
        surrogate = jnp.where((fixed < 0) & (surrogate > dual_clip), dual_clip, surrogate)
    return -surrogate * fixed


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
    return -jnp.clip(ratio, cap_low, cap_high) * stopped(advantages) * _score(logp)


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
    fixed = stopped(advantages)
    tau = jnp.where(fixed > 0, tau_positive, tau_negative)
    ratio = importance_ratio(logp, behavior_logp)
    return -(4.0 / tau) * jax.nn.sigmoid(tau * (ratio - 1.0)) * fixed


def stopped(x):
    """`x` without gradient, in float32 or wider."""
    return accumulate(jax.lax.stop_gradient(x))


def _score(logp):
    """logp, but 0 without gradient at minus infinity, where 0 * -inf would be NaN."""
    logp = accumulate(logp)
    return jnp.where(logp == -jnp.inf, 0.0, logp)


def clip_surrogate(ratio, advantages, *, clip_low, clip_high):
    """The ratio that PPO's min(r A, clip(r) A) / A keeps; advantages must be stopped.

    Written with `where`: `minimum` and `clip` give half of the gradient at exact ties.
    """
    above = (advantages > 0) & (ratio > 1.0 + clip_high)
    below = (advantages < 0) & (ratio < 1.0 - clip_low)
    return jnp.where(above, 1.0 + clip_high, jnp.where(below, 1.0 - clip_low, ratio))


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


# Success rates are kept away from 0 and 1, where the negative policy is undefined.
_RATES = (0.02, 0.98)


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
