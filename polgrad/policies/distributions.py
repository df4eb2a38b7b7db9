"""Categorical next-token distributions: log-probabilities, entropy, filters and mixtures.

Everything works on the last axis, in at least float32, and gives a forbidden token a logit of
minus infinity (log-probability minus infinity, gradient zero).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_probs(logits: Float[Array, "*S V"]) -> Float[Array, "*S V"]:
    """Log-softmax that stays finite in value and gradient beside forbidden tokens.

    `log p_v = z_v - logsumexp(z)`; minus infinity where `z_v` is minus infinity.

    Args:
        logits: `[..., V]`, finite or minus infinity.

    Returns:
        Log-probabilities `[..., V]` in `promote_types(dtype, float32)`. A row in which every
        token is forbidden is minus infinity throughout.
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    allowed = logits > -jnp.inf
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = jnp.where(allowed, logits, 0.0) - jnp.where(peak > -jnp.inf, peak, 0.0)
    total = jnp.sum(jnp.where(allowed, jnp.exp(shifted), 0.0), axis=-1, keepdims=True)
    normalizer = jnp.log(jnp.where(total > 0, total, 1.0))
    return jnp.where(allowed, shifted - normalizer, -jnp.inf)


def log_prob(logits: Float[Array, "*S V"], tokens: Int[Array, "*S"]) -> Float[Array, "*S"]:
    """Log-probability of `tokens`: `log softmax(logits)[token]`.

    Args:
        logits: `[..., V]`, finite or minus infinity.
        tokens: `[...]`, in `0..V-1`.

    Returns:
        `[...]`; minus infinity for a forbidden token.
    """
    return jnp.take_along_axis(log_probs(logits), tokens[..., None], axis=-1)[..., 0]


def token_statistics(
    logits: Float[Array, "*S V"], tokens: Int[Array, "*S"]
) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """Log-probability of the tokens, and entropy of the distributions that they come from.

    For small vocabularies: a comparison with every token takes the place of an index, because the
    gradient of an index is a scatter, which is slow under `vmap`.

    Args:
        logits: `[..., V]`, finite.
        tokens: `[...]`, in `0..V-1`; leading axes broadcast against those of the logits.

    Returns:
        `(logp, entropy)` in nats, both of the shape of the tokens.
    """
    logp = jax.nn.log_softmax(logits)
    chosen = tokens[..., None] == jnp.arange(logits.shape[-1])
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.sum(jnp.where(chosen, logp, 0.0), axis=-1), jnp.broadcast_to(entropy, tokens.shape)


def entropy(logits: Float[Array, "*S V"]) -> Float[Array, "*S"]:
    """Entropy in nats, `-sum_v p_v log p_v`, with `0 log 0 = 0`.

    Args:
        logits: `[..., V]`, finite or minus infinity.

    Returns:
        `[...]`, in `0..log V`.
    """
    logp = log_probs(logits)
    finite = jnp.where(logp > -jnp.inf, logp, 0.0)
    return -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(finite) * finite, 0.0), axis=-1)


def filter_logits(
    logits: Float[Array, "*S V"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Array, "*S V"]:
    """Temperature, then top-k, top-p and min-p, in this order, each on what the last one left.

    - temperature: `z / temperature`; 0 is the limit: the first largest logit alone remains.
    - top-k: the `top_k` largest logits remain (0: all).
    - top-p: the smallest set of most likely tokens whose mass reaches `top_p` remains (1: all).
    - min-p: tokens of at least `min_p` times the largest probability remain (0: all).

    Tokens of equal logit are kept or dropped together, so the result does not depend on how the
    vocabulary is ordered (temperature 0 excepted). The most likely token always remains.

    Args:
        logits: `[..., V]`, finite or minus infinity.
        temperature: at least 0.
        top_k: at least 0; a value above `V` keeps all.
        top_p: in `(0, 1]`.
        min_p: in `[0, 1]`.

    Returns:
        Filtered logits `[..., V]` in `promote_types(dtype, float32)`, minus infinity where a
        token was dropped. They are not normalised.

    Raises:
        ValueError: a number outside its range.

    References:
        Fan, Lewis and Dauphin, 2018 (top-k), arXiv:1805.04833; Holtzman et al., 2020 (top-p),
        arXiv:1904.09751; Nguyen et al., 2024 (min-p), arXiv:2407.01082.
    """
    check_filters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    size = logits.shape[-1]
    if temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(size) == best, 0.0, -jnp.inf).astype(logits.dtype)
    logits = logits / temperature
    if 0 < top_k < size:
        logits = _drop_below(logits, jax.lax.top_k(logits, top_k)[0][..., -1:])
    if top_p < 1:
        ranked = -jnp.sort(-logits, axis=-1)
        mass = jnp.exp(log_probs(ranked))
        kept = jnp.cumsum(mass, axis=-1) - mass < top_p
        logits = _drop_below(logits, jnp.min(jnp.where(kept, ranked, jnp.inf), -1, keepdims=True))
    if min_p > 0:
        peak = jnp.max(logits, axis=-1, keepdims=True)
        logits = _drop_below(logits, peak + jnp.log(jnp.asarray(min_p, logits.dtype)))
    return logits


def check_filters(*, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """ValueError naming the first of the four numbers that is outside its range."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 keeps all), got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1] (1 keeps all), got {top_p}")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must lie in [0, 1] (0 keeps all), got {min_p}")


def _drop_below(logits, threshold):
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def geometric_mixture(
    logits: Float[Array, "*S V"],
    reference_logits: Float[Array, "*S V"],
    *,
    reference_weight: float,
) -> Float[Array, "*S V"]:
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
    if not 0 <= reference_weight <= 1:
        raise ValueError(f"reference_weight must lie in [0, 1], got {reference_weight}")
    logits, reference_logits = jnp.asarray(logits), jnp.asarray(reference_logits)
    if logits.shape != reference_logits.shape:
        raise ValueError(
            "reference_logits must have the shape of logits, "
            f"got {reference_logits.shape} and {logits.shape}"
        )
    dtype = jnp.promote_types(jnp.result_type(logits, reference_logits), jnp.float32)
    logits, reference_logits = logits.astype(dtype), reference_logits.astype(dtype)
    if reference_weight == 0:
        return logits
    if reference_weight == 1:
        return reference_logits
    return (1 - reference_weight) * logits + reference_weight * reference_logits
