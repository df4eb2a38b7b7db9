"""Gradients of the two KL directions for a softmax policy: one covers the target's modes, one seeks.

Weighted likelihood of fixed samples descends KL(target || policy); policy gradients on fresh
samples descend KL(policy || target). A step of the second moves mass between two answers in
proportion to the mass they have, so that it commits to one of them; the first moves it in
proportion to what is missing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad.ratios import log_ratio

__all__ = ["forward_kl_gradient", "log_odds_change", "reverse_kl_gradient"]


def forward_kl_gradient(
    logits: Float[Array, "... A"], log_target: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Gradient of KL(target || softmax(logits)) in the logits: policy - target.

    Args:
      logits: unnormalised log-probabilities of the policy.
      log_target: unnormalised log-probabilities of the target, same shape.

    Returns:
      The gradient (to descend), same shape; it sums to 0.

    Raises:
      ValueError: shapes that differ.

    References:
      Tajwar et al., Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data,
      2024 (arXiv:2404.14367), section 6.
    """
    _checks.same_shape("[..., A]", logits=logits, log_target=log_target)
    return jax.nn.softmax(accumulate(logits)) - jax.nn.softmax(accumulate(log_target))


def reverse_kl_gradient(
    logits: Float[Array, "... A"], log_target: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Gradient of KL(softmax(logits) || target) in the logits: policy (log ratio - KL).

    Args:
      logits: unnormalised log-probabilities of the policy.
      log_target: unnormalised log-probabilities of the target, same shape.

    Returns:
      The gradient (to descend), same shape; it sums to 0. Log ratios are clamped to +-20 nats.

    Raises:
      ValueError: shapes that differ.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367), section 6.
    """
    _checks.same_shape("[..., A]", logits=logits, log_target=log_target)
    logp = jax.nn.log_softmax(accumulate(logits))
    target = jax.nn.log_softmax(accumulate(log_target))
    policy, ratio = jnp.exp(logp), log_ratio(logp, target)
    return policy * (ratio - jnp.sum(policy * ratio, axis=-1, keepdims=True))


def log_odds_change(
    gradient: Float[Array, "... A"], *, first: int = 0, second: int = 1, step: float = 1.0
) -> Float[Array, "..."]:
    """How much one descent step on tabular logits changes log(policy(first) / policy(second)).

        -step (gradient[first] - gradient[second])

    Args:
      gradient: of a loss in the logits.
      first: an action.
      second: another one.
      step: learning rate.

    Returns:
      The change in nats, exact for any step, without the last axis.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367): the quantity in which the two directions differ.
    """
    gradient = accumulate(gradient)
    return -step * (gradient[..., first] - gradient[..., second])
