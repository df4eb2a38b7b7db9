"""Categorical distributions, given by their logits: log-probabilities, entropy and mixtures.

Everything works on the last axis, in at least float32 (float64 stays float64), and a logit of minus
infinity excludes its outcome.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad._dtypes import accumulate

__all__ = ["entropy", "geometric_mixture", "log_softmax", "p_log_p", "token_statistics"]


def log_softmax(logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """Log-probabilities of softmax(logits), finite in value and gradient beside excluded outcomes.

    log p_v = z_v - log sum_u exp(z_u), in nats.

    Args:
      logits: unnormalised log-probabilities; minus infinity excludes an outcome.

    Returns:
      Log-probabilities, same shape, in float32 or float64. An excluded outcome has minus infinity.
      A row that excludes everything is minus infinity throughout. A row with a NaN is NaN.
    """
    logits = accumulate(logits)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = logits - jnp.maximum(largest, jnp.finfo(logits.dtype).min)
    # A row that excludes everything is repaired by its sum: a choice at each entry would take four
    # times as long where rows are short.
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True) + (largest == -jnp.inf)
    return shifted - jnp.log(total)


def p_log_p(logp: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """p log p of each outcome, from its log-probability; 0 where that is minus infinity."""
    return jnp.exp(logp) * jnp.where(logp == -jnp.inf, 0.0, logp)


def entropy(logits: Float[Array, "... V"]) -> Float[Array, "..."]:
    """Exact entropy of softmax(logits) over the last axis, in nats.

    H = -sum_v p_v log p_v, with 0 log 0 = 0.

    Args:
      logits: unnormalised log-probabilities; minus infinity excludes an outcome.

    Returns:
      Entropies in [0, log V], without the last axis; 0 for a row that excludes everything.
    """
    return -jnp.sum(p_log_p(log_softmax(logits)), axis=-1)


def token_statistics(
    logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Log-probability of the tokens, and entropy of the distributions that they come from.

    For small vocabularies: a comparison with every token takes the place of an index, because the
    gradient of an index is a scatter, which is slow under `vmap`.

    Args:
      logits: unnormalised log-probabilities; minus infinity excludes a token.
      tokens: in 0..V-1; their leading axes broadcast against those of the logits.

    Returns:
      (logp, entropy) in nats, both of the shape of the tokens; logp is minus infinity for an
      excluded token.
    """
    logp = log_softmax(logits)
    chosen = tokens[..., None] == jnp.arange(logits.shape[-1])
    spread = -jnp.sum(p_log_p(logp), axis=-1)
    return jnp.sum(jnp.where(chosen, logp, 0.0), axis=-1), jnp.broadcast_to(spread, tokens.shape)


def geometric_mixture(
    logits: Float[Array, "... V"],
    reference_logits: Float[Array, "... V"],
    *,
    reference_weight: float,
) -> Float[Array, "... V"]:
    """Logits of the normalised geometric mixture of two distributions.

    `log p = (1 - w) log pi + w log mu + c`; as `softmax` removes constants, this is
    `(1 - w) * logits + w * reference_logits`. Token by token it is the practical sampler of
    Nash-MD; the product over tokens is not the geometric mixture of the sequence distributions,
    because the constant depends on the prefix.

    Args:
      logits: `[..., V]`, the policy's, finite or minus infinity.
      reference_logits: `[..., V]`, the reference's.
      reference_weight: `w` in `[0, 1]`; 0 gives the policy, 1 the reference.

    Returns:
      Mixed logits `[..., V]` in `promote_types(dtype, float32)`. For `0 < w < 1` a token
      forbidden by either is forbidden; at 0 and 1 the other distribution has no say.

    Raises:
      ValueError: `reference_weight` outside `[0, 1]`, or shapes that differ.

    References:
      Munos et al., 2023, Nash Learning from Human Feedback, arXiv:2312.00886.
    """
    traced = isinstance(reference_weight, jax.core.Tracer)
    if not traced and not 0 <= reference_weight <= 1:
        raise ValueError(f"reference_weight must lie in [0, 1], got {reference_weight}")
    logits, reference_logits = jnp.asarray(logits), jnp.asarray(reference_logits)
    if logits.shape != reference_logits.shape:
        raise ValueError(
            "reference_logits must have the shape of logits, "
            f"got {reference_logits.shape} and {logits.shape}"
        )
    dtype = jnp.promote_types(jnp.result_type(logits, reference_logits), jnp.float32)
    logits, reference_logits = logits.astype(dtype), reference_logits.astype(dtype)
    if not traced and reference_weight == 0:
        return logits
    if not traced and reference_weight == 1:
        return reference_logits
    # 0 times minus infinity is no number: a distribution of weight 0 has no say.
    shares = (1 - reference_weight, logits), (reference_weight, reference_logits)
    return sum(jnp.where(weight == 0, 0.0, weight * x) for weight, x in shares)
