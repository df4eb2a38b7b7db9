"""Losses of the margin between a chosen and a rejected answer, besides `dpo` and `ipo`.

All see the log-ratios of a pair through z = beta (chosen - rejected) alone, so that what depends
on the prompt only cancels. Fed with plain log-probabilities instead of log-ratios they are their
reference-free forms (a uniform reference). A mixture is written as a sum, for example MPO (Wang
et al. 2024, arXiv:2411.10442): 0.8 `dpo` + 0.2 `bco` + `imitation` of the chosen answer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad._scalars import in_range
from polgrad._softplus import log_sigmoid, softplus
from polgrad.losses._pairs import finite_pair
from polgrad.ratios import bounded

__all__ = ["discopop", "exo", "exponential_margin", "hinge", "linear_margin", "robust_dpo", "xpo"]


def hinge(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.05
) -> Float[Array, "B"]:
    """The hinge loss of RSO (SLiC with normalised likelihoods): a margin of one is enough.

    loss = max(0, 1 - z), z = beta (chosen - rejected). For pairs whose margin should be reached
    and then left alone.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (gamma in the paper).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; exactly 0 without gradient for z >= 1. An
      infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Liu et al., Statistical Rejection Sampling Improves Preference Optimization, 2023
      (arXiv:2309.06657).
    """
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    return jnp.where(margin < 1.0, 1.0 - margin, 0.0)


def robust_dpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    flip_rate: Float[Array, "B"] | float = 0.1,
    max_margin: float | None = None,
) -> Float[Array, "B"]:
    """Robust DPO: unbiased for `dpo` on clean labels when labels are flipped at a known rate.

    loss = [(1 - e) l(z) - e l(-z)] / (1 - 2 e) = l(z) - e / (1 - 2 e) z

    with l(z) = -log sigmoid(z), z = beta (chosen - rejected) and e the flip rate. Label smoothing
    adds e z instead: it shrinks the margin once more. The loss has NO LOWER BOUND: each pair
    keeps pushing however large its margin, so that a policy which can separate the data runs
    away unless training stops early or `max_margin` holds it. Losses below 0 are normal.

    Args:
      chosen_logratio: log(policy / reference) of the answers that the label prefers, sums over
        tokens, in nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      flip_rate: probability that a label is reversed, in [0, 0.5); one number, or one a pair.
        The variance grows like 1 / (1 - 2 flip_rate)^2; rather under- than overstate it.
      max_margin: largest z: a pair of a larger margin counts this one, without gradient. None for
        no limit (the paper), about 10 in practice. A pair in the wrong order keeps its gradient.

    Returns:
      Losses, [B], to be averaged over pairs; `dpo` itself for flip rate 0. An infinite log ratio
      counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta`, `flip_rate` or `max_margin` is out of range.

    References:
      Ray Chowdhury et al., Provably Robust DPO: Aligning Language Models with Noisy Feedback,
      2024 (arXiv:2403.00409).
    """
    in_range("flip_rate", flip_rate, low=0.0, high=0.5, below=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    if max_margin is not None:
        in_range("max_margin", max_margin, low=0.0, above=True)
        margin = jnp.where(margin > max_margin, max_margin, margin)
    return softplus(-margin) - flip_rate / (1.0 - 2.0 * flip_rate) * margin


def exo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    epsilon: float = 1e-3,
) -> Float[Array, "B"]:
    """EXO: the REVERSE KL between the policy's preference and the smoothed label.

    loss = KL([q, 1 - q] || [1 - epsilon, epsilon]), q = sigmoid(beta (chosen - rejected))

    where `dpo` with label smoothing epsilon has the forward KL. It seeks a mode: for a pair
    labelled one way with probability p, z = (2 p - 1) log((1 - epsilon) / epsilon).

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      epsilon: smoothing of the label, in (0, 0.5]; without it the loss would be infinite.

    Returns:
      Losses, [B], >= 0 up to rounding, at most log(1 / epsilon), to be averaged over pairs. An
      infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `epsilon` is out of range.

    References:
      Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, 2024
      (arXiv:2402.00856).
    """
    in_range("epsilon", epsilon, low=0.0, high=0.5, above=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    # log(1 - q) = log q - z: one logarithm serves both.
    q, log_q = jax.nn.sigmoid(margin), log_sigmoid(margin)
    right = q * (log_q - jnp.log1p(-epsilon))
    return right + jax.nn.sigmoid(-margin) * (log_q - margin - jnp.log(epsilon))


def exponential_margin(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """The exponential loss of the margin: as boosting has it, led by the worst pairs.

    loss = exp(-z), z = beta (chosen - rejected). Its minimiser for noisy pairs has half the
    margin of `dpo`, z = log(p / (1 - p)) / 2. One of the losses of SPIN and GPO.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 1 where policy = reference. Margins z beyond
      +-20 count +-20, with the slope that they have there. An infinite log ratio counts +-20
      nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models,
      2024 (arXiv:2401.01335). Tang et al., Generalized Preference Optimization, 2024
      (arXiv:2402.05749).
    """
    return jnp.exp(-bounded(beta * _margin(chosen_logratio, rejected_logratio, beta)))


def linear_margin(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """The margin itself: every pair has the same gradient, which never vanishes.

    loss = 1 - z, z = beta (chosen - rejected). NO LOWER BOUND: an integral probability metric
    when the policy's class is bounded, otherwise stop early. At the reference its gradient is
    twice that of `dpo`.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], to be averaged over pairs; 1 where policy = reference. An infinite log ratio
      counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Self-Play Fine-Tuning, 2024 (arXiv:2401.01335), equation 4.3.
    """
    return 1.0 - beta * _margin(chosen_logratio, rejected_logratio, beta)


def discopop(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> Float[Array, "B"]:
    """DiscoPOP, a loss found by a language model: logistic for z < 0, exponential for z > 0.

    loss = (1 - m) l(z) + m exp(-z), m = sigmoid(z / tau), z = beta (chosen - rejected)

    with l(z) = -log sigmoid(z). The blend m is differentiated too. Not convex: the loss RISES
    from about 0.7 to 1 where z crosses 0, so small steps may stall in the dip before it.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      tau: width of the blend, in units of z, > 0.

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; (1 + log 2) / 2 where policy = reference.
      Margins z beyond +-20 count +-20 in the exponential part, with the slope that they have
      there. An infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `tau` is not positive.

    References:
      Lu et al., Discovering Preference Optimization Algorithms with and for Large Language
      Models, 2024 (arXiv:2406.08414).
    """
    in_range("tau", tau, low=0.0, above=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    near = bounded(margin)
    # m exp(-z) in one exponent: at z << 0 the factors are 0 and infinity.
    exponential = jnp.exp(log_sigmoid(near / tau) - near)
    return jax.nn.sigmoid(-margin / tau) * softplus(-margin) + exponential


def _margin(chosen_logratio: Array, rejected_logratio: Array, beta: float) -> Array:
    """The difference of two checked log-ratios, finite."""
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return chosen - rejected
