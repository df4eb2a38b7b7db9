"""What to watch during training. Separate from the losses: XLA removes the shared work.

All are stopped: a diagnostic that enters a loss by mistake changes no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks, divergences
from polgrad._dtypes import accumulate
from polgrad._log_ratio import importance_ratio
from polgrad.masking import masked_mean, reduce

__all__ = [
    "EntropyLaw",
    "RatioStatistics",
    "clip_fraction",
    "effective_sample_size",
    "entropy_change",
    "explained_variance",
    "fit_entropy_law",
    "kl",
    "mean_entropy",
    "ratio",
]


class RatioStatistics(NamedTuple):
    """Importance ratios over the valid tokens of a batch."""

    mean: Float[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]


def ratio(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
) -> RatioStatistics:
    """Mean, smallest and largest importance ratio exp(logp - behavior_logp).

    For samples of the behaviour policy the mean is 1 in expectation, whatever the policy.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      Three scalars, stopped; all 1 if nothing is valid.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    valid = jnp.asarray(mask) != 0
    ratios = jax.lax.stop_gradient(importance_ratio(logp, behavior_logp))
    some = jnp.any(valid)
    return RatioStatistics(
        mean=jnp.where(some, masked_mean(ratios, valid), 1.0),
        smallest=jnp.where(some, jnp.min(ratios, initial=jnp.inf, where=valid), 1.0),
        largest=jnp.where(some, jnp.max(ratios, initial=0.0, where=valid), 1.0),
    )


def clip_fraction(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, "B 1"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, ""]:
    """Share of the valid tokens whose gradient `losses.ppo_clip` cuts off.

    Counts A > 0 with ratio > 1 + clip_high, and A < 0 with ratio < 1 - clip_low; a ratio outside
    the range on the other side keeps its gradient and is not counted.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T].
      advantages: [B, T] or [B, 1].
      mask: 1 where a token counts, [B, T].
      clip_low: as in the loss.
      clip_high: as in the loss.

    Returns:
      A scalar in [0, 1], stopped; 0 if nothing is valid.

    Raises:
      ValueError: shapes that do not match.
    """
    _checks.token_advantages(advantages, logp)
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    ratios = jax.lax.stop_gradient(importance_ratio(logp, behavior_logp))
    advantages = jnp.asarray(advantages)
    above = (advantages > 0) & (ratios > 1.0 + clip_high)
    below = (advantages < 0) & (ratios < 1.0 - clip_low)
    return masked_mean(above | below, mask)


def kl(
    logp: Float[Array, "B T"],
    reference_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    kind: str = "k3",
) -> Float[Array, ""]:
    """Mean over the valid tokens of `divergences.kl_estimate`, in nats a token.

    Args:
      logp: log-probabilities under the policy that sampled, in nats, [B, T].
      reference_logp: the same tokens under the reference, [B, T].
      mask: 1 where a token counts, [B, T].
      kind: "k1", "k2" or "k3".

    Returns:
      A scalar, stopped; 0 if nothing is valid.

    Raises:
      ValueError: shapes that differ; unknown kind.
    """
    _checks.same_shape("[B, T]", logp=logp, reference_logp=reference_logp, mask=mask)
    return masked_mean(divergences.kl_estimate(logp, reference_logp, kind=kind), mask)


def mean_entropy(
    entropy: Float[Array, "B T"], mask: Num[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Token entropies averaged over each sequence, then over the sequences.

    Args:
      entropy: full-vocabulary entropy at each token, in nats, [B, T].
      mask: 1 where a token counts, [B, T].

    Returns:
      A scalar in nats a token, stopped; rows without a valid token do not count; 0 if none does.

    Raises:
      ValueError: shapes that differ.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 2.
    """
    return reduce(jax.lax.stop_gradient(entropy), mask, mode="sequence")


def effective_sample_size(
    log_weights: Float[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."]
) -> Float[Array, ""]:
    """How many equally weighted samples the importance weights are worth.

        (sum w)^2 / sum w^2,   w = exp(log_weights)

    Args:
      log_weights: log importance weights up to a common constant, any shape; minus infinity is
        weight 0.
      mask: 1 where a sample counts, same shape.

    Returns:
      A scalar between 1 and the number of valid samples, stopped; 0 if no weight is positive.

    Raises:
      ValueError: shapes that differ.

    References:
      Kish, Survey sampling, 1965.
    """
    _checks.same_shape("one mask entry a weight", log_weights=log_weights, mask=mask)
    valid = jnp.asarray(mask) != 0
    logs = accumulate(jax.lax.stop_gradient(log_weights))
    logs = jnp.where(valid, logs, -jnp.inf)
    largest = jnp.max(logs, initial=-jnp.inf)
    # The constant cancels; without it exp(100) would overflow in the square.
    w = jnp.exp(logs - jnp.where(jnp.isfinite(largest), largest, 0.0))
    squares = jnp.sum(jnp.square(w))
    return jnp.square(jnp.sum(w)) / jnp.where(squares > 0, squares, 1.0)


def explained_variance(
    values: Float[Array, "..."],
    targets: Float[Array, "..."],
    mask: Num[Array, "..."] | Bool[Array, "..."],
) -> Float[Array, ""]:
    """How much of the targets' variance a critic explains: 1 - Var(target - V) / Var(target).

    Args:
      values: predictions, any shape.
      targets: returns, same shape.
      mask: 1 where an entry counts, same shape.

    Returns:
      A scalar, at most 1, stopped; 0 where the targets do not vary.

    Raises:
      ValueError: shapes that differ.
    """
    _checks.same_shape("one a state", values=values, targets=targets, mask=mask)
    values, targets = jax.lax.stop_gradient((accumulate(values), accumulate(targets)))

    def variance(x):
        return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)

    total = variance(targets)
    unexplained = variance(targets - values) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, 1.0 - unexplained, 0.0)


def entropy_change(
    logits: Float[Array, "... A"], logit_change: Float[Array, "... A"]
) -> Float[Array, "..."]:
    """First-order change of a softmax policy's entropy when its logits change.

        dH = -Cov_{a ~ pi}(log pi(a), dz_a)

    With a policy-gradient step dz = eta pi A, with a natural one dz = eta A: likely good actions
    lower the entropy, rare good ones raise it.

    Args:
      logits: [..., A]; minus infinity excludes an action.
      logit_change: [..., A].

    Returns:
      [...], in nats, stopped.

    Raises:
      ValueError: shapes that differ.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), lemma 1.
    """
    _checks.same_shape("[..., A]", logits=logits, logit_change=logit_change)
    logits, change = jax.lax.stop_gradient((accumulate(logits), accumulate(logit_change)))
    logp = jax.nn.log_softmax(logits)
    possible = logp > -jnp.inf
    probability = jnp.where(possible, jnp.exp(logp), 0.0)
    logp = jnp.where(possible, logp, 0.0)
    change = jnp.where(possible, change, 0.0)
    centred = change - jnp.sum(probability * change, axis=-1, keepdims=True)
    return -jnp.sum(probability * logp * centred, axis=-1)


class EntropyLaw(NamedTuple):
    """performance = -a exp(entropy) + b; `rmse` is the residual, `ceiling` the value at H = 0."""

    a: float
    b: float
    rmse: float

    @property
    def ceiling(self) -> float:
        """Performance predicted for a policy without entropy: b - a."""
        return self.b - self.a


def fit_entropy_law(
    entropy: Float[np.ndarray, "n"], performance: Float[np.ndarray, "n"]
) -> EntropyLaw:
    """Fits the exchange of entropy for performance: R = -a exp(H) + b, by least squares.

    Args:
      entropy: policy entropy at n moments of a run, in nats, [n].
      performance: validation performance at the same moments, [n].

    Returns:
      (a, b, rmse).

    Raises:
      ValueError: shapes that differ; fewer than three points; an entropy that does not vary.

    References:
      Cui et al., The entropy mechanism of RL for reasoning language models, 2025
        (arXiv:2505.22617), equation 1.
    """
    x, y = np.exp(np.asarray(entropy, np.float64)), np.asarray(performance, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"performance has shape {list(y.shape)}, entropy {list(x.shape)}, expected [n] for both"
        )
    if x.size < 3 or np.ptp(x) == 0:
        raise ValueError(
            f"entropy has {x.size} points with {np.unique(x).size} values, expected at least "
            "three points that are not all equal"
        )
    slope, b = np.polynomial.Polynomial.fit(x, y, 1).convert().coef[::-1]
    rmse = np.sqrt(np.mean(np.square(slope * x + b - y)))
    return EntropyLaw(a=float(-slope), b=float(b), rmse=float(rmse))
