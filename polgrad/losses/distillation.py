"""Learning from a teacher on the policy's own samples, beside a reward.

The teacher scores the tokens that the student has drawn; it samples nothing. The term is a
reverse KL, in the loss (`kdrl`) or in the advantage (`distillation_advantages`); on-policy both
have the same expected gradient. Student and teacher must share the tokenizer and the temperature.
"""

import jax
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import log_ratio

__all__ = [
    "distillation_advantages",
    "distillation_mask",
    "kdrl",
    "teacher_log_ratio",
    "top_k_kl",
]


def teacher_log_ratio(
    logp: Float[Array, "..."], teacher_logp: Float[Array, "..."]
) -> Float[Array, "..."]:
    """What the teacher pays for a token: log teacher - log student.

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
    paid = beta * teacher_log_ratio(logp, teacher_logp)
    return jax.lax.stop_gradient(accumulate(advantages) + paid)
