"""DisCO: right and wrong answers of a question as positives and negatives of a ranking problem.

A score of each answer is raised for the right ones over the wrong ones, every question counts the
same, and the policy is held near the one that drew the answers by a hinge on their divergence:

  scores = sequence_score(logp, behavior_logp, mask)        [B], reshaped to [Q, G]
  loss = masking.reduce(disco(scores, rewards), ...) + kl_hinge(mean over tokens of behavior_kl)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import log_sigmoid
from polgrad.masking import masked_mean

__all__ = ["behavior_kl", "disco", "disco_b", "kl_hinge", "sequence_score"]

# Non-decreasing functions of the gap. `where` rather than `maximum`: no half slopes at the kink.
_SURROGATES = {
    "identity": lambda gap: gap,
    "logistic": log_sigmoid,
    "hinge": lambda gap: jnp.where(gap < 1.0, gap - 1.0, 0.0),
    "squared_hinge": lambda gap: -jnp.square(jnp.where(gap < 1.0, gap - 1.0, 0.0)),
}


def disco(
    scores: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    tau: float = 10.0,
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """DisCO: right answers over wrong ones, of which the highest-scored weigh most.

        loss = tau log mean_N exp(s / tau) - mean_P s

    P are the answers with reward exactly 1 and N those with reward exactly 0; any other reward
    is in neither. A gradient step lowers the wrong answers by softmax_N(s / tau) (the robust
    form of the gap between them); tau to infinity is `disco_b`, tau to 0 sees the best-scored
    wrong answer alone.

    Args:
      scores: one an answer, [..., G], from `sequence_score`; the gradient flows through them.
      rewards: 0 or 1, [..., G]. An answer whose score is not finite is in neither class.
      tau: temperature in units of the score, > 0 and finite; 10 for "log_l", 1 for "l_ratio".
      valid: False for answers in neither class, such as empty ones, [..., G]; None for none.

    Returns:
      Losses of the questions [...]; 0 without gradient where P or N is empty. The paper averages
      over all questions, empty or not; a reduction over `advantages.dynamic_sampling_filter`
      averages over the others.

    Raises:
      ValueError: shapes that differ; tau out of range.

    References:
      Li et al., 2025 (arXiv:2505.12366), section 4.
    """
    in_range("tau", tau, low=0.0, high=1e30, above=True)
    scores, positive, negative, both = _classes(scores, rewards, valid)
    # log mean exp around the largest: exact for large tau too, where log sum exp is all rounding.
    largest = jnp.max(jnp.where(negative, scores, -jnp.inf), axis=-1, keepdims=True, initial=-1e30)
    largest = jax.lax.stop_gradient(jnp.where(both[..., None], largest, 0.0))
    excess = jnp.where(negative & both[..., None], (scores - largest) / tau, 0.0)
    mean = largest[..., 0] + tau * jnp.log1p(masked_mean(jnp.expm1(excess), negative, axis=-1))
    return jnp.where(both, mean - masked_mean(scores, positive, axis=-1), 0.0)


def disco_b(
    scores: Float[Array, "... G"],
    rewards: Float[Array, "... G"],
    *,
    surrogate: str = "identity",
    valid: Bool[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """DisCO-b: the mean over pairs of a surrogate of the gap between right and wrong answers.

        loss = -mean_{i in P, j in N} l(s_i - s_j)

        "identity"       l(x) = x
        "logistic"       l(x) = log sigmoid(x)
        "hinge"          l(x) = -max(1 - x, 0)
        "squared_hinge"  l(x) = -max(1 - x, 0)^2

    Args:
      scores: one an answer, [..., G], from `sequence_score`; the gradient flows through them.
      rewards: 0 or 1, [..., G]; other values are in neither class.
      surrogate: one of the four above.
      valid: False for answers in neither class, [..., G]; None for none.

    Returns:
      Losses of the questions [...]; 0 without gradient where P or N is empty.

    Raises:
      ValueError: shapes that differ; unknown surrogate.

    References:
      Li et al., 2025 (arXiv:2505.12366), section 4.
    """
    _checks.choice("surrogate", surrogate, tuple(_SURROGATES))
    scores, positive, negative, both = _classes(scores, rewards, valid)
    pairs = positive[..., :, None] & negative[..., None, :]
    gaps = jnp.where(pairs, scores[..., :, None] - scores[..., None, :], 0.0)
    gain = masked_mean(_SURROGATES[surrogate](gaps), pairs, axis=(-2, -1))
    return jnp.where(both, -gain, 0.0)


def _classes(scores, rewards, valid):
    """Scores with 0 outside of both classes, the classes, and which questions have both."""
    _checks.same_shape("[..., G]", scores=scores, rewards=rewards)
    _checks.groups("scores", scores)
    rewards = accumulate(rewards)
    positive, negative = rewards == 1.0, rewards == 0.0
    if valid is not None:
        _checks.same_shape("[..., G]", scores=scores, valid=valid)
        present = jnp.asarray(valid) != 0
        positive, negative = positive & present, negative & present
    scores = accumulate(scores)
    known = jnp.isfinite(scores)
    positive, negative = positive & known, negative & known
    scores = jnp.where(positive | negative, scores, 0.0)
    both = jnp.any(positive, axis=-1) & jnp.any(negative, axis=-1)
    return scores, positive, negative, both
