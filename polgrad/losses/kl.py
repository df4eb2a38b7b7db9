"""The KL penalty as a loss term."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad.divergences import kl_estimate
from polgrad.ratios import importance_ratio, penalty_log_ratio

__all__ = ["kl_penalty"]


def kl_penalty(
    logp: Float[Array, "..."],
    reference_logp: Float[Array, "..."],
    *,
    value: str = "k3",
    gradient: str = "k2",
    behavior_logp: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """KL to a reference, one estimator for the number shown and one for the gradient.

    With x = reference_logp - logp, the value is k1 = -x, k2 = x^2 / 2 or k3 = exp(x) - 1 - x
    (see `divergences.kl_estimate`), and the gradient, straight through, that of

        "k2":  -x grad logp              expected on-policy: grad KL(policy || reference)
        "k3":  (1 - exp(x)) grad logp    expected on-policy: grad KL(reference || policy)

    The two are separate questions. k3 is the better *value* (unbiased, non-negative), k2 the
    better *gradient* (k3's follows the KL in the other direction). "k1" is an unbiased value
    whose gradient, grad logp, is 0 in expectation: as a gradient it is refused.

    All this holds for samples of the current policy. For older ones give `behavior_logp`: value
    and gradient are multiplied by the stopped ratio policy / behaviour. With k3 and "k2" that is
    the value and the gradient of ratio x k3 differentiated through its ratio, since k3 grad logp
    + (1 - exp(x)) grad logp = -x grad logp ("unbiased" or "bias-corrected" KL).

    Add it to the token loss times a coefficient. To put the KL into the reward instead, subtract
    `divergences.kl_estimate(..., kind="k1")` there; do not do both.

    Args:
      logp: log-probabilities of samples under the current policy, in nats, any shape.
      reference_logp: the same samples under the reference, same shape; stopped.
      value: "k1", "k2" or "k3".
      gradient: "k2" or "k3".
      behavior_logp: the same samples under the policy that drew them, same shape; stopped. None
        for samples of the current policy.

    Returns:
      Penalties in nats, same shape, float32 or wider. The value is that of a log ratio within
      +-20 nats. Beyond +-20 nats the gradient keeps the size that it has at +-20 nats; a
      log-probability of minus infinity has gradient 0, and two of them give the value 0.

    Raises:
      ValueError: shapes that differ; unknown names; gradient "k1".

    References:
      Schulman, Approximating KL divergence, 2020.
      Tang and Munos, On a few pitfalls in KL divergence gradient estimation for RL, 2025
        (arXiv:2506.09477).
      DeepSeek-AI, DeepSeek-V3.2, 2025 (arXiv:2512.02556): the ratio.
    """
    if gradient == "k1":
        raise ValueError(
            "gradient is 'k1', whose expectation is 0 for samples of the current policy; "
            "expected 'k2' (gradient of KL(policy || reference)) or 'k3' (of the other direction)"
        )
    _checks.choice("gradient", gradient, ("k2", "k3"))
    _checks.choice("value", value, ("k1", "k2", "k3"))
    _checks.same_shape("one reference a sample", logp=logp, reference_logp=reference_logp)
    difference = penalty_log_ratio(logp, reference_logp)
    if gradient == "k2":
        slope = 0.5 * jnp.square(difference)
    else:
        slope = jnp.expm1(-difference) + difference
    shown = kl_estimate(logp, reference_logp, kind=value)
    penalty = shown + (slope - jax.lax.stop_gradient(slope))
    if behavior_logp is None:
        return penalty
    _checks.same_shape("one behaviour a sample", logp=logp, behavior_logp=behavior_logp)
    return jax.lax.stop_gradient(importance_ratio(logp, behavior_logp)) * penalty
