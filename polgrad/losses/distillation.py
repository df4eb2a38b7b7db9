"""Learning from a teacher on the policy's own samples, beside a reward.

The teacher scores the tokens that the student has drawn; it samples nothing. The term is a
reverse KL, in the loss (`kdrl`) or in the advantage (`distillation_advantages`); on-policy both
have the same expected gradient. Student and teacher must share the tokenizer and the temperature.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.divergences import categorical_kl
from polgrad.ratios import log_ratio, penalty_log_ratio

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


def distillation_mask(
    correct: Bool[Array, "... G"],
    *,
    level: str = "response",
    valid: Bool[Array, "... G"] | None = None,
) -> Bool[Array, "... G"]:
    """Which samples the teacher still has something to say about: those that failed.

        "response":  the wrong ones          "group":  all of a group without a right one

    Args:
      correct: whether each sample of a prompt is right (the verdict, not a shaped reward).
      level: "response" or "group".
      valid: whether a sample could be scored; None for all.

    Returns:
      True where the teacher's term counts, [..., G]; False for invalid samples, which are not
      right ones either.

    Raises:
      ValueError: unknown level; shapes that differ; rank 0 or 1.

    References:
      Xu et al., KDRL, 2025 (arXiv:2506.02208), section 3.4.
    """
    _checks.choice("level", level, ("response", "group"))
    _checks.groups("correct", correct)
    right = jnp.asarray(correct) != 0
    valid = jnp.ones(right.shape, bool) if valid is None else jnp.asarray(valid) != 0
    _checks.same_shape("[..., G]", correct=right, valid=valid)
    right &= valid
    solved = right if level == "response" else jnp.any(right, axis=-1, keepdims=True)
    return valid & ~solved


def top_k_kl(
    logits: Float[Array, "... V"],
    teacher_logits: Float[Array, "... V"],
    *,
    k: int = 2,
    of: str = "student",
    renormalize: bool = False,
) -> Float[Array, "..."]:
    """Reverse KL to a teacher on the K most likely tokens.

        sum over the top K of p_v (log p_v - log q_v),   p student, q teacher

    Less noise than one sampled token, less memory than the whole vocabulary; with k = V it is
    `divergences.categorical_kl`.

    Args:
      logits: of the student, [..., V]; the gradient flows through them alone.
      teacher_logits: of the teacher, same shape; stopped.
      k: how many tokens, in 1..V.
      of: whose most likely tokens: "student" or "teacher".
      renormalize: whether both distributions are normalised on the K tokens first, which makes
        the result a divergence; without it the result may be negative.

    Returns:
      [...], in nats, float32 or wider. The value of a log ratio is clamped to +-20 nats, its
      gradient is not.

    Raises:
      ValueError: shapes that differ; k outside 1..V; an unknown `of`.

    References:
      Xu et al., KDRL, 2025 (arXiv:2506.02208).
    """
    _checks.choice("of", of, ("student", "teacher"))
    _checks.same_shape("[..., V]", logits=logits, teacher_logits=teacher_logits)
    if not 1 <= k <= np.shape(logits)[-1]:
        raise ValueError(f"k is {k}, expected 1 <= k <= V = {np.shape(logits)[-1]}")
    logits = accumulate(logits)
    teacher_logits = accumulate(jax.lax.stop_gradient(teacher_logits))
    chosen = logits if of == "student" else teacher_logits
    place = jax.lax.top_k(chosen, k)[1]
    if renormalize:
        kept = (jnp.take_along_axis(x, place, axis=-1) for x in (logits, teacher_logits))
        return categorical_kl(*kept)
    logp, teacher_logp = (
        jnp.take_along_axis(jax.nn.log_softmax(x), place, axis=-1) for x in (logits, teacher_logits)
    )
    return jnp.sum(jnp.exp(logp) * penalty_log_ratio(logp, teacher_logp), axis=-1)
