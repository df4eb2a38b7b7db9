"""Direct preference optimisation, for pairs and for rankings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._softplus import softplus
from polgrad.ratios import finite

__all__ = ["dpo", "implicit_reward", "ipo", "plackett_luce", "preference_margin"]


_ABSENT = -1e30


def plackett_luce(
    scores: Float[Array, "B K"], *, valid: Bool[Array, "B K"] | None = None
) -> Float[Array, "B"]:
    """Negative log-likelihood of rankings: DPO for more than two answers.

    loss = -sum_k (s_k - log sum_{j >= k} exp s_j), for answers in ranked order. With two answers
    and scores `implicit_reward` it is `dpo`.

    Args:
      scores: scores of the K answers of a prompt, BEST FIRST, for example implicit rewards.
      valid: which answers exist, [B, K]; None for all.

    Returns:
      Losses, [B], >= 0; 0 for a row with fewer than two answers.

    Raises:
      ValueError: if `scores` is not of rank 2 or `valid` has another shape.

    References:
      Plackett, The analysis of permutations, 1975. Rafailov et al., 2023 (arXiv:2305.18290),
      appendix A.3.
    """
    _checks.rank("scores", scores, 2, "[B, K], answers of a prompt on the last axis")
    scores = finite(scores)
    valid = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid, bool)
    _checks.same_shape("[B, K]", scores=scores, valid=valid)
    return _ranking(scores, valid)


@jax.custom_jvp
def _ranking(scores: Array, valid: Array) -> Array:
    rest = _running(scores, valid, reverse=True)
    return jnp.sum(jnp.where(valid, rest - scores, 0.0), axis=-1)


@_ranking.defjvp
def _slope(primals, tangents):
    """Derivative in s_k: the expected number of selections of answer k in rounds 1..k, minus 1.

    Automatic differentiation of the loop would keep three arrays of its steps.
    """
    (scores, valid), (direction, _) = primals, tangents
    rounds = _running(-_running(scores, valid, reverse=True), valid)
    chosen = jnp.exp(jnp.where(valid, scores + rounds, -jnp.inf))
    slope = jnp.where(valid, chosen - 1.0, 0.0)
    return _ranking(scores, valid), jnp.sum(slope * direction, axis=-1)


def _running(scores: Array, valid: Array, *, reverse: bool = False) -> Array:
    """log of the sum of exponentials of an answer and all before it, or behind it."""

    def step(total, answer):
        score, exists = answer
        larger, smaller = jnp.maximum(total, score), jnp.minimum(total, score)
        total = jnp.where(exists, larger + softplus(smaller - larger), total)
        return total, total

    # Minus infinity would make the gradient of an empty sum NaN. Answer by answer because XLA's
    # running log-sum-exp is a sum over all the others for each of them on a CPU.
    empty = jnp.full(scores.shape[:1], _ABSENT, scores.dtype)
    return jax.lax.scan(step, empty, (scores.T, valid.T), reverse=reverse)[1].T
