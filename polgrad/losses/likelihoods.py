"""What pair losses are fed with, other than plain sums: f-DPO's scores, LD-DPO's, WPO's weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.divergences import FDivergence
from polgrad.masking import masked_mean
from polgrad.ratios import finite

__all__ = ["desensitized_logp", "f_dpo_score", "wpo_weight"]


def f_dpo_score(
    logratio: Float[Array, "..."], *, divergence: FDivergence, clip: float = 40.0
) -> Float[Array, "..."]:
    """f-DPO: what takes the log-ratio's place in a pair loss for another divergence.

        score = f'(policy / reference),   the divergence D_f(policy || reference)

    reverse KL: log-ratio + 1, so that `dpo` of the scores is `dpo`; forward KL: -reference /
    policy; Jensen-Shannon: log sigmoid(log-ratio) + log 2. Constants cancel in a pair.

    Args:
      logratio: log(policy / reference) of answers, sums over tokens, in nats, any shape.
      divergence: a generator from `polgrad.divergences`.
      clip: bound on |log-ratio| before f', > 0 and at most 80.

    Returns:
      Scores, same shape, float32 or wider; beyond the bound without gradient.

    Raises:
      ValueError: if `clip` is out of range.

    References:
      Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
      Divergence Constraints, 2023 (arXiv:2309.16240).
    """
    in_range("clip", clip, low=0.0, high=80.0, above=True)
    ratio = accumulate(logratio)
    undefined = jnp.isnan(ratio)
    inside = jnp.abs(ratio) <= clip
    edge = jnp.where(undefined, 0.0, jnp.sign(ratio) * clip)
    return divergence.f_prime_log(jnp.where(inside, ratio, edge))


def desensitized_logp(
    logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    common_length: Num[Array, "B"],
    *,
    alpha: float = 0.5,
) -> Float[Array, "B"]:
    """LD-DPO: log-probability of an answer whose surplus tokens count less.

        sum of logp over the first common_length tokens + alpha times that over the others

    In a pair of different lengths the longer answer's surplus alone decides much of the margin;
    alpha = 1 is the plain sum, alpha = 0 compares equal lengths.

    Args:
      logp: log-probabilities of the tokens, in nats, [B, T].
      mask: 1 where a token counts, [B, T].
      common_length: tokens of the shorter answer of the pair, [B]; stopped.
      alpha: weight of the surplus, in [0, 1].

    Returns:
      [B], float32 or wider; 0 for a row without a valid token. Minus infinity counts -20 nats,
      without gradient.

    Raises:
      ValueError: if shapes differ or `alpha` is out of range.

    References:
      Liu et al., Length Desensitization in Direct Preference Optimization, 2024
      (arXiv:2409.06411).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    _checks.shape("common_length", common_length, np.shape(logp)[:1], "[B]")
    in_range("alpha", alpha, low=0.0, high=1.0)
    valid = jnp.asarray(mask) != 0
    place = jnp.cumsum(valid, axis=-1)
    weight = jnp.where(place <= jnp.asarray(common_length)[:, None], 1.0, alpha)
    return jnp.sum(jnp.where(valid, weight * finite(logp), 0.0), axis=-1)


def wpo_weight(
    logp: Float[Array, "B T"],
    logits: Float[Array, "B T V"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
) -> Float[Array, "B"]:
    """WPO: how on-policy an answer of an offline pair is; multiplies the pair's loss.

        weight = exp(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2])

    1 on average for a token that the policy itself would sample. The weight of a pair is the
    product of its two, at most 1: `jnp.minimum(w_chosen * w_rejected, 1.0)`.

    Args:
      logp: log-probabilities of the answer's tokens under the current policy, in nats, [B, T];
        stopped.
      logits: of the current policy at these tokens, [B, T, V]; stopped. Chunk over B where
        they are large.
      mask: 1 where a token counts, [B, T].

    Returns:
      Weights > 0, [B], without gradient; 1 for a row without a valid token. A token of
      probability 0 counts -20 nats.

    Raises:
      ValueError: if shapes differ.

    References:
      Zhou et al., WPO: Enhancing RLHF with Weighted Preference Optimization, 2024
      (arXiv:2406.11827).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    _checks.rank("logits", logits, 3, "[B, T, V]")
    _checks.shape("logits", logits, (*np.shape(logp), np.shape(logits)[-1]), "[B, T, V]")
    logp, logits = jax.lax.stop_gradient((finite(logp), accumulate(logits)))
    collision = jax.nn.logsumexp(2.0 * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return jnp.exp(masked_mean(logp - collision, mask, axis=-1))
