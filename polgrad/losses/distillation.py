"""Losses with a teacher, which scores the tokens that the student has drawn: one number a token.

`kdrl` adds the reverse KL to a teacher to `ppo_clip`, from the log-probabilities of the sampled tokens;
`top_k_kl` reads the logits [..., V] of both on the likeliest tokens. The teacher samples nothing. Student
and teacher must share the tokenizer and the temperature. On-policy `kdrl` has the same expected gradient
as `advantages.distillation_advantages`, which adds the teacher's log ratio to the advantages.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.divergences import categorical_kl
from polgrad.losses.penalties import kl_penalty
from polgrad.losses.tokens import ppo_clip
from polgrad.ratios import penalty_log_ratio


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


def kdrl(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    teacher_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    *,
    beta: Float[Array, ""] | float,
    distilled: Bool[Array, "B"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gradient: str = "k2",
    correct_ratio: bool = False,
) -> Float[Array, "B T"]:
    """KDRL: PPO's clipped loss plus a reverse KL to a teacher on the same samples.

        loss = ppo_clip(logp, behavior_logp, A) + beta distilled kl_penalty(logp, teacher_logp)

    For a student that rarely succeeds: the teacher shows the way, the reward lifts its cap.
    Reduce with mode "token", whose divisor counts the tokens that are not distilled too: masking
    then weakens the teacher's term instead of concentrating it.

    Args:
      logp: log-probabilities of the student's tokens under the student, in nats, [B, T].
      behavior_logp: the same under the student that sampled; stopped.
      teacher_logp: the same under the teacher; stopped. Where its tokenizer ends a text with
        another token than the student's, give the student's own log-probability there.
      advantages: [B, T] or [B, 1]; stopped.
      beta: strength of the teacher, non-negative; 0.005 falling to 0.001 in the paper
        (`annealed_coefficient`), 0.01 to 0.2 in small worlds. May be traced.
      distilled: sequences with the teacher's term (`distillation_mask`), [B]; None for all.
      clip_low: how far the ratio may fall below 1, in [0, 1].
      clip_high: how far it may rise above 1, non-negative.
      gradient: "k2", the gradient of the reverse KL, or "k3", of the forward one.
      correct_ratio: whether the teacher's term is multiplied by the stopped importance ratio,
        which makes it exact for samples of an older student.

    Returns:
      Token losses [B, T].

    Raises:
      ValueError: shapes that do not match; beta or a clip out of range; unknown gradient.

    References:
      Xu et al., KDRL: Post-training reasoning LLMs via unified knowledge distillation and
        reinforcement learning, 2025 (arXiv:2506.02208).
    """
    in_range("beta", beta, low=0.0)
    loss = ppo_clip(logp, behavior_logp, advantages, clip_low=clip_low, clip_high=clip_high)
    sampler = behavior_logp if correct_ratio else None
    term = kl_penalty(logp, teacher_logp, gradient=gradient, behavior_logp=sampler)
    if distilled is not None:
        _checks.shape("distilled", distilled, (np.shape(logp)[0],), "[B]")
        term = jnp.where(jnp.asarray(distilled)[:, None] != 0, term, 0.0)
    return loss + jax.lax.stop_gradient(jnp.asarray(beta)) * term
