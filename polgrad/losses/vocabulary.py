"""Losses that read the whole vocabulary of a token: logits [..., V] in, one number a token out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad.divergences import categorical_kl
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
