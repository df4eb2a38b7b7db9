"""Target distributions of `losses.f_dpg`: the reference tilted by a reward, filtered, or with given moments.

A target is given by a log score, log P(x) = log of an unnormalised density of whole sequences; `f_dpg`
wants log P(x) - log Z. The steps for one batch, with one Z for each
of C contexts:

    log_score = distributions.tilt(reference_logp, rewards, beta=0.1)                # [C, G]
    partition = mean_z.update(partition, log_score - behavior_logp)       # first update ...
    log_target = distributions.normalize(log_score, mean_z.value(partition))      # ... then use
    log_target, logp = log_target.reshape(-1), logp.reshape(-1)           # [C G]
    reward = losses.f_dpg_pseudo_reward(logp, log_target, divergence=divergence)
    loss = losses.f_dpg(logp, log_target, divergence=divergence, baseline=recent.value(baseline))
    baseline = recent.update(baseline, reward)                            # after its use

with `mean_z = running.log_mean()`, `recent = running.window(1024)`, and at the start
`partition = mean_z.init((C,))`, `baseline = recent.init()`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range


def tilt(
    reference_logp: Float[Array, "..."], rewards: Float[Array, "..."], *, beta: float
) -> Float[Array, "..."]:
    """Log score of the optimum of E[reward] - beta KL(policy || reference).

    log P(x) = log reference(x) + reward(x) / beta. With `reverse_kl` f-DPG is then exactly
    KL-regularised policy gradient: E[reward] - beta KL(policy || reference) = beta log Z -
    beta KL(policy || target).

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      rewards: rewards of the sequences.
      beta: strength of the KL, > 0.

    Returns:
      Log scores, same shape.

    Raises:
      ValueError: if `beta` is not positive.
    """
    in_range("beta", beta, low=0.0, above=True)
    return accumulate(reference_logp) + accumulate(rewards) / beta


def filtered(reference_logp: Float[Array, "..."], keep: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Log score of the reference conditioned on a constraint.

    log P(x) = log reference(x) where the constraint holds, minus infinity elsewhere; Z is the
    rate at which the reference meets it.

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      keep: whether the constraint holds.

    Returns:
      Log scores, same shape.
    """
    return jnp.where(jnp.asarray(keep) != 0, accumulate(reference_logp), -jnp.inf)


def moment_tilt(
    reference_logp: Float[Array, "..."],
    features: Float[Array, "... K"],
    coefficients: Float[Array, "K"],
) -> Float[Array, "..."]:
    """Log score of the distribution closest to the reference with given feature moments.

    log P(x) = log reference(x) + coefficients . features(x).

    Args:
      reference_logp: log-probabilities of whole sequences under the reference, in nats.
      features: K features of each sequence.
      coefficients: from `fit_tilt`.

    Returns:
      Log scores, same shape as `reference_logp`.
    """
    return accumulate(reference_logp) + accumulate(features) @ accumulate(coefficients)


def fit_tilt(
    features: Float[Array, "N K"],
    moments: Float[Array, "K"],
    *,
    learning_rate: float = 0.05,
    iterations: int = 1000,
    tolerance: float = 1e-5,
) -> Float[Array, "K"]:
    """Coefficients for which the tilted reference has the wanted feature moments.

    Gradient descent on self-normalised importance estimates: with w_j = exp(c . phi_j) over
    samples of the reference, m = sum w phi / sum w, repeat c <- c - learning_rate (m - moments).

    Args:
      features: features of N samples of the reference (512 in the paper).
      moments: wanted expectations, inside the convex hull of the features.
      learning_rate: step.
      iterations: largest number of steps.
      tolerance: stops when max |m - moments| is below it.

    Returns:
      Coefficients, [K]. Wanted moments out of reach give large finite coefficients.

    References:
      Khalifa et al., A Distributional Approach to Controlled Text Generation, 2020
      (arXiv:2012.11635). Go et al., 2023 (arXiv:2302.08215).
    """

    features, moments = accumulate(features), accumulate(moments)

    def error(coefficients):
        return jax.nn.softmax(features @ coefficients) @ features - moments

    def unfinished(carry):
        step, _, gap = carry
        return (step < iterations) & (jnp.max(jnp.abs(gap)) >= tolerance)

    def descend(carry):
        step, coefficients, gap = carry
        coefficients = coefficients - learning_rate * gap
        return step + 1, coefficients, error(coefficients)

    start = jnp.zeros(features.shape[-1], features.dtype)
    return jax.lax.while_loop(unfinished, descend, (0, start, error(start)))[1]


def normalize(
    log_score: Float[Array, "... G"], log_z: Float[Array, "..."]
) -> Float[Array, "... G"]:
    """log P - log Z: the `log_target` that `f_dpg` wants.

    Args:
      log_score: log P of the samples.
      log_z: log Z of each context, without the last axis of `log_score`; -inf where Z is still 0.
        `running.log_mean` estimates it from log_score - behavior_logp: update it with these samples
        first.

    Returns:
      Normalised log-probabilities, same shape; plus infinity throughout a context whose Z is
      still 0, which `f_dpg` skips.

    Raises:
      ValueError: if `log_z` has another shape; a state of `running.log_mean` is no array, its `value` is.
    """
    contexts = np.shape(log_score)[:-1]
    _checks.shape("log_z", log_z, contexts, "the shape of log_score without its last axis")
    log_score, log_z = accumulate(log_score), jnp.asarray(log_z)[..., None]
    known = ~jnp.isneginf(log_z)
    return jnp.where(known, log_score - jnp.where(known, log_z, 0.0), jnp.inf)
