"""Terms beside the policy's loss: one number a token, and the hinge on a mean of them.

`kl_penalty` holds the policy to a reference, `behavior_kl` to the policy that drew the samples,
`entropy_bonus` keeps it from becoming certain. `kl_hinge` takes the mean of `behavior_kl` and adds
nothing below a bound. What they are multiplied with may change during a run: `polgrad.schedules`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.divergences import kl_estimate
from polgrad.ratios import importance_ratio, penalty_log_ratio


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


def behavior_kl(
    logp: Float[Array, "..."], behavior_logp: Float[Array, "..."], *, kind: str = "k1"
) -> Float[Array, "..."]:
    """KL(behavior || policy) from samples of the behaviour policy, one estimate a token.

        "k1"  behavior_logp - logp
        "k3"  r - 1 - log r,   r = pi / behavior

    Both are unbiased in value and, because the samples do not come from the policy that is
    differentiated, in gradient; k3 is never negative.

    Args:
      logp: log-probabilities under the current policy, in nats, any shape.
      behavior_logp: log-probabilities under the policy that sampled, same shape; stopped.
      kind: "k1" or "k3".

    Returns:
      Estimates in nats, same shape, float32 or wider, to be averaged over all tokens of the
      batch. Beyond +-20 nats the value and the slope are those at +-20 nats.

    Raises:
      ValueError: shapes that differ; unknown kind.
    """
    _checks.choice("kind", kind, ("k1", "k3"))
    _checks.same_shape("one a token", logp=logp, behavior_logp=behavior_logp)
    difference = penalty_log_ratio(logp, behavior_logp)
    return -difference if kind == "k1" else jnp.expm1(difference) - difference


def kl_hinge(
    kl: Float[Array, "..."], *, beta: float = 1e3, delta: float = 1e-4, exact_square: bool = False
) -> Float[Array, "..."]:
    """Penalty for a divergence beyond its bound, and none below.

        beta / 2 max(kl - delta, 0)^2,   or without the 1/2 for `exact_square`

    The paper's code multiplies the KL by a stopped beta max(kl - delta, 0), which has the
    gradient of the half square; the paper writes the square, whose gradient is twice as large.

    Args:
      kl: mean over all tokens of the batch of `behavior_kl`, with its gradient.
      beta: strength, >= 0.
      delta: the bound, in nats a token.
      exact_square: whether to leave out the 1/2.

    Returns:
      Penalties >= 0, same shape; value and gradient exactly 0 for kl <= delta.

    Raises:
      ValueError: if `beta` is negative.

    References:
      Li et al., 2025 (arXiv:2505.12366), section 4.
    """
    in_range("beta", beta, low=0.0)
    kl = accumulate(kl)
    excess = jnp.where(kl > delta, kl - delta, 0.0)
    return (beta if exact_square else 0.5 * beta) * jnp.square(excess)


def entropy_bonus(
    entropy: Float[Array, "..."], *, coefficient: Float[Array, ""] | float = 0.001
) -> Float[Array, "..."]:
    """The entropy as a reward of its own: a term -coefficient entropy beside the policy's loss.

    Args:
      entropy: exact entropy of the policy at each step (`distributions.entropy` of its
        logits), in nats, any shape; the gradient flows through it.
      coefficient: strength, non-negative; a constant or one from `adaptive_entropy`; stopped.

    Returns:
      Losses, same shape, float32 or wider, to be added before the reduction. The entropy of a
      position that is masked may be anything.

    Raises:
      ValueError: coefficient below 0.

    References:
      Williams and Peng, Function optimization using connectionist reinforcement learning
        algorithms, 1991. Mnih et al., Asynchronous methods for deep reinforcement learning, 2016
        (arXiv:1602.01783).
    """
    in_range("coefficient", coefficient, low=0.0)
    return -jax.lax.stop_gradient(jnp.asarray(coefficient)) * accumulate(entropy)
