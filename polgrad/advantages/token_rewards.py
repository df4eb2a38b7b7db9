"""Rewards of tokens: a score at the end, the price of the KL, dense terms, and where they are paid.

All carry no gradient and give arrays [B, T] with 0 where masked, for `gae` or `discounted_returns`.
A reward that is not finite counts 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import log_ratio

__all__ = [
    "delay_to_delimiters",
    "delay_to_last",
    "dpo_token_rewards",
    "kl_shaped_rewards",
    "kl_token_rewards",
    "missing_eos_reward",
    "place_at_last",
    "rto_rewards",
    "shape_to_zero",
]


def place_at_last(
    rewards: Float[Array, "B"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Puts the reward of each sequence on its last valid token.

        r[b, t] = reward[b] where t is the last position with mask 1, else 0

    Args:
      rewards: one a sequence, [B].
      mask: 1 where a token counts, [B, T]; may have holes.

    Returns:
      Token rewards [B, T], float32 or wider, stopped. A row without a valid token has none to
      carry the reward, and a reward that is not finite is none: such rows are 0.

    Raises:
      ValueError: shapes that do not match.
    """
    _checks.rank("mask", mask, 2, "[B, T]")
    _checks.shape("rewards", rewards, (np.shape(mask)[0],), "[B]")
    rewards = accumulate(jax.lax.stop_gradient(rewards))
    paid = _last(jnp.asarray(mask) != 0) & jnp.isfinite(rewards)[:, None]
    return jnp.where(paid, rewards[:, None], 0.0)


def missing_eos_reward(
    rewards: Float[Array, "..."],
    stopped: Num[Array, "..."] | Bool[Array, "..."],
    *,
    value: float = -10.0,
) -> Float[Array, "..."]:
    """Replaces the reward of a completion that was cut off before its end token.

        reward where stopped, else value

    Args:
      rewards: one a completion, any shape.
      stopped: whether a completion ends with its stop token (`Rollout.stopped`), same shape.
      value: of a completion that does not: -10 in Ivison et al., -1 in Chang et al.

    Returns:
      Rewards, same shape, float32 or wider, stopped.

    Raises:
      ValueError: shapes that differ.

    References:
      Ivison et al., Unpacking DPO and PPO, 2024 (arXiv:2406.09279).
      Chang et al., Dataset Reset Policy Optimization for RLHF, 2024 (arXiv:2404.08495).
    """
    _checks.same_shape("one flag a completion", rewards=rewards, stopped=stopped)
    rewards = accumulate(jax.lax.stop_gradient(rewards))
    return jnp.where(jnp.asarray(stopped) != 0, rewards, value)


def kl_token_rewards(
    behavior_logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    beta: float,
) -> Float[Array, "B T"]:
    """The penalty of each token for its distance from the reference.

        -beta (log behavior - log reference)        (the estimator k1)

    Summed over a sequence and averaged over samples it is -beta KL(behavior || reference).

    Args:
      behavior_logp: log-probabilities under the policy that sampled, in nats, [B, T].
      reference_logp: the same under the reference.
      mask: 1 where a token counts, [B, T].
      beta: strength of the KL, non-negative.

    Returns:
      Token rewards [B, T], float32 or wider, stopped; log ratios are clamped to +-20 nats.

    Raises:
      ValueError: shapes that differ; beta below 0.

    References:
      Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019
        (arXiv:1909.08593).
    """
    in_range("beta", beta, low=0.0)
    return -beta * _stopped_ratio(mask, reference_logp, behavior_logp=behavior_logp)


def kl_shaped_rewards(
    rewards: Float[Array, "B"],
    behavior_logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    beta: float = 0.05,
) -> Float[Array, "B T"]:
    """PPO's rewards in RLHF: a score at the last token, the price of the KL at every token.

        r_t = -beta (log behavior - log reference)_t + 1[t is last] reward

    The regularised objective, written as a token reward; its bandit optimum is
    reference exp(reward / beta) / Z.

    Args:
      rewards: score of each whole sequence, [B].
      behavior_logp: log-probabilities under the policy that sampled, in nats, [B, T].
      reference_logp: the same under the reference.
      mask: 1 where a token counts, [B, T].
      beta: strength of the KL, non-negative.

    Returns:
      Token rewards [B, T], float32 or wider, stopped; 0 where masked.

    Raises:
      ValueError: shapes that do not match; beta below 0.

    References:
      Ziegler et al., 2019 (arXiv:1909.08593). Ivison et al., Unpacking DPO and PPO, 2024
        (arXiv:2406.09279): beta 0.05.
    """
    price = kl_token_rewards(behavior_logp, reference_logp, mask, beta=beta)
    return price + place_at_last(rewards, mask)


def dpo_token_rewards(
    teacher_logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    beta: float = 0.05,
    clip: float | None = 0.05,
) -> Float[Array, "B T"]:
    """The dense reward that a preference-trained policy is: its log ratio to the reference.

        d_t = clip(beta (log teacher - log reference)_t, -clip, clip)

    Unclipped, its sum over a sequence is the reward that the teacher is optimal for, up to a
    function of the prompt. The clip acts after the scaling: with clip = beta a single token is
    worth one nat at most.

    Args:
      teacher_logp: log-probabilities of the sampled tokens under a policy trained with
        `losses.dpo` (or another preference loss), frozen, in nats, [B, T].
      reference_logp: the same under the reference it was trained from.
      mask: 1 where a token counts, [B, T].
      beta: weight of the term (beta_1 in the paper: 0.05, 0.1 for summaries), non-negative.
      clip: largest absolute reward of a token, positive; None for none. The bound is that of the
        released code; the paper does not mention it.

    Returns:
      Token rewards [B, T], float32 or wider, stopped; 0 where masked. Log ratios are clamped to
      +-20 nats.

    Raises:
      ValueError: shapes that differ; beta below 0; a clip that is not positive.

    References:
      Zhong et al., DPO Meets PPO: Reinforced Token Optimization for RLHF, 2024
        (arXiv:2404.18922). Rafailov et al., From r to Q*, 2024 (arXiv:2404.12358).
    """
    in_range("beta", beta, low=0.0)
    dense = beta * _stopped_ratio(mask, reference_logp, teacher_logp=teacher_logp)
    if clip is None:
        return dense
    in_range("clip", clip, low=0.0, above=True)
    return jnp.clip(dense, -clip, clip)


def rto_rewards(
    rewards: Float[Array, "B"],
    teacher_logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    dpo_weight: float = 0.05,
    kl_weight: float = 0.01,
    reward_weight: float = 1.0,
    clip: float | None = 0.05,
    teacher_reference_logp: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Reinforced token optimisation: DPO's token reward added to PPO's.

        r_t = clip(dpo_weight log(teacher / teacher_reference))
              - kl_weight log(behavior / reference) + 1[t is last] reward_weight reward

    The sum of `dpo_token_rewards` and `kl_shaped_rewards`. Unclipped, the optimum is
    reference (teacher / reference)^(dpo_weight / kl_weight) exp(reward_weight reward / kl_weight);
    with teacher = reference it is PPO's reward.

    Args:
      rewards: score of each whole sequence, standardised, [B].
      teacher_logp: log-probabilities under the preference-trained policy, in nats, [B, T].
      behavior_logp: the same under the policy that sampled.
      reference_logp: the same under the reference of the KL.
      mask: 1 where a token counts, [B, T].
      dpo_weight: beta_1, non-negative.
      kl_weight: beta_2, non-negative.
      reward_weight: beta_3; without it lengths run away.
      clip: as in `dpo_token_rewards`.
      teacher_reference_logp: under the reference that the teacher was trained from; None for
        `reference_logp`.

    Returns:
      Token rewards [B, T], float32 or wider, stopped; 0 where masked.

    Raises:
      ValueError: shapes that do not match; numbers out of range.

    References:
      Zhong et al., DPO Meets PPO: Reinforced Token Optimization for RLHF, 2024
        (arXiv:2404.18922).
    """
    in_range("dpo_weight", dpo_weight, low=0.0)
    in_range("kl_weight", kl_weight, low=0.0)
    if teacher_reference_logp is None:
        teacher_reference_logp = reference_logp
    dense = dpo_token_rewards(
        teacher_logp, teacher_reference_logp, mask, beta=dpo_weight, clip=clip
    )
    scaled = reward_weight * accumulate(rewards)
    return dense + kl_shaped_rewards(scaled, behavior_logp, reference_logp, mask, beta=kl_weight)


def delay_to_last(
    token_rewards: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Pays all rewards of a sequence at its last valid token: the sparse twin of a dense reward.

    Args:
      token_rewards: [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      Token rewards [B, T], stopped, with the same sum a row; 0 where masked.

    Raises:
      ValueError: shapes that differ.

    References:
      Zhong et al., 2024 (arXiv:2404.18922): "DDPO", the ablation without dense credit.
    """
    return place_at_last(jnp.sum(_finite(token_rewards, mask), axis=-1), mask)


def delay_to_delimiters(
    token_rewards: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    delimiter: Num[Array, "B T"] | Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Pays the rewards of each sentence at the delimiter that ends it.

    A sentence reaches from behind the last delimiter to the next one, itself included; what
    follows the last delimiter is paid at the last valid token.

    Args:
      token_rewards: [B, T].
      mask: 1 where a token counts, [B, T].
      delimiter: 1 at tokens that end a sentence, [B, T]; ignored where masked.

    Returns:
      Token rewards [B, T], stopped, with the same sum a row; 0 where masked. Every token a
      delimiter changes nothing; none is `delay_to_last`.

    Raises:
      ValueError: shapes that differ.

    References:
      Zhong et al., 2024 (arXiv:2404.18922): "Semi-RTO"; how it splits sentences is not released.
    """
    rewards = _finite(token_rewards, mask)
    _checks.same_shape("[B, T]", token_rewards=token_rewards, delimiter=delimiter)
    valid = jnp.asarray(mask) != 0
    ends = (valid & (jnp.asarray(delimiter) != 0)) | _last(valid)
    sentence = jnp.cumsum(ends, axis=-1) - ends
    width = rewards.shape[-1]
    sums = jax.vmap(lambda r, s: jax.ops.segment_sum(r, s, num_segments=width)[s])
    return jnp.where(ends, sums(rewards, sentence), 0.0)


def shape_to_zero(
    token_rewards: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Takes back at the last token what was paid on the way: pure reward shaping.

        r'_t = r_t - 1[t is last] sum_s r_s

    Every sequence sums to 0. What was paid before a token is a function of the state, so adding
    this to another reward changes no expected policy gradient, only its variance and a critic's
    task.

    Args:
      token_rewards: [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      Token rewards [B, T], stopped; 0 where masked.

    Raises:
      ValueError: shapes that differ.

    References:
      Ng, Harada and Russell, Policy invariance under reward transformations, 1999.
      Zhong et al., 2024 (arXiv:2404.18922): "RS-PPO".
    """
    return _finite(token_rewards, mask) - delay_to_last(token_rewards, mask)


def _last(valid: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at the last valid position of each row."""
    # In float32, exact below 2^24 steps: XLA's CPU backend is seven times as slow on whole numbers.
    step = jnp.arange(valid.shape[-1], dtype=jnp.float32)
    latest = jnp.max(jnp.where(valid, step, -1.0), axis=-1, keepdims=True, initial=-1.0)
    return step == latest


def _finite(token_rewards, mask):
    """The valid rewards, stopped; 0 where masked or not finite."""
    _checks.rank("token_rewards", token_rewards, 2, "[B, T]")
    _checks.same_shape("[B, T]", token_rewards=token_rewards, mask=mask)
    rewards = accumulate(jax.lax.stop_gradient(token_rewards))
    return jnp.where((jnp.asarray(mask) != 0) & jnp.isfinite(rewards), rewards, 0.0)


def _stopped_ratio(mask, reference_logp, **policy):
    """log(policy / reference) of the valid tokens, without gradient; 0 where masked."""
    _checks.rank("mask", mask, 2, "[B, T]")
    _checks.same_shape("[B, T]", mask=mask, reference_logp=reference_logp, **policy)
    (logp,) = policy.values()
    ratio = jax.lax.stop_gradient(log_ratio(logp, reference_logp))
    return jnp.where(jnp.asarray(mask) != 0, ratio, 0.0)


def teacher_log_ratio(
    logp: Float[Array, "..."], teacher_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The reward of a token from a teacher: log teacher - log student.

    Its mean over the student's samples is -KL(student || teacher).

    Args:
      logp: log-probabilities of the student's samples under the student, in nats, any shape.
      teacher_logp: the same under the teacher, same shape.

    Returns:
      Log ratios, same shape, stopped, clamped to +-20 nats; -20 where the teacher excludes the
      token, 0 where both do.

    Raises:
      ValueError: if the shapes differ.
    """
    _checks.same_shape("one teacher a sample", logp=logp, teacher_logp=teacher_logp)
    return jax.lax.stop_gradient(log_ratio(teacher_logp, logp))


def distillation_advantages(
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    logp: Float[Array, "B T"],
    teacher_logp: Float[Array, "B T"],
    *,
    beta: Float[Array, ""] | float = 1.0,
) -> Float[Array, "B T"]:
    """On-policy distillation as a reward: the teacher's log ratio added to the advantage.

        A[b, t] + beta (log teacher - log student)[b, t]

    For any surrogate. With advantages 0 and `reinforce` it is distillation alone; on-policy the
    gradient is that of the reward less beta times the KL to the teacher, token by token, without
    a token's effect on the later ones.

    Args:
      advantages: of the reward, [B, T] or [B, 1]; zeros for distillation alone.
      logp: log-probabilities under the student that sampled, in nats, [B, T].
      teacher_logp: the same tokens under the teacher, [B, T].
      beta: strength of the teacher, non-negative.

    Returns:
      Advantages [B, T], stopped, float32 or wider.

    Raises:
      ValueError: shapes that do not match; beta below 0.

    References:
      Xu et al., KDRL, 2025 (arXiv:2506.02208), reward shaping. Lu and Thinking Machines Lab,
        On-policy distillation, 2025.
    """
    _checks.token_advantages(advantages, logp)
    in_range("beta", beta, low=0.0)
    reward = beta * teacher_log_ratio(logp, teacher_logp)
    return jax.lax.stop_gradient(accumulate(advantages) + reward)
