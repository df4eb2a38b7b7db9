"""How one token is drawn: settings, addressed uniforms, and the inverse of the distribution."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.distributions.draws import inverse_cdf
from polgrad.rollouts.token_filters import check_filters, filter_logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is sampled from the policy's next-token logits.

    The order is temperature, then top-k, top-p and min-p (`filter_logits`).
    Training takes the temperature alone: under a filter the sampler's distribution is not the
    trainer's.

    Args:
        max_tokens: new tokens at most, at least 1; a stop token counts.
        temperature: divides the logits, at least 0; 0 is greedy (the arg max, ties to the lowest
            id).
        top_k: keeps the `k` most probable tokens; 0 keeps all.
        top_p: keeps the smallest set of most probable tokens with at least this mass, in (0, 1].
        min_p: drops tokens under this share of the most probable one's probability, in [0, 1].
        stop_ids: token ids that end a completion (and are part of it).

    Raises:
        ValueError: a setting outside its range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self):
        # A list is what a configuration file gives; static arguments of jit must hash.
        object.__setattr__(self, "stop_ids", tuple(int(token) for token in self.stop_ids))
        check_filters(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )
        if not math.isfinite(self.temperature):
            raise ValueError(f"temperature is {self.temperature}, expected a finite number")
        in_range("max_tokens", self.max_tokens, low=1)
        if any(token < 0 for token in self.stop_ids):
            raise ValueError(f"stop_ids is {self.stop_ids}, expected ids of tokens, 0 or more")


def sample_keys(key: Key[Array, ""], prompt_ids: UInt32[Array, " M"], group_size: int) -> Array:
    """The keys `fold_in(fold_in(key, prompt_id), sample_id)`, `[M, G]`."""
    samples = jnp.arange(group_size, dtype=jnp.uint32)
    of_sample = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda p: of_sample(jax.random.fold_in(key, p), samples))(prompt_ids)


def token_uniforms(keys: Array, steps: Int[Array, " B"]) -> Float[Array, " B"]:
    """One uniform number for each row: `u = uniform(fold_in(key, t))`.

    Args:
        keys: `[B]` keys of samples (typed, or raw with a trailing axis).
        steps: `[B]` index of the token in its completion, from 0.

    Returns:
        `[B]` float32 in `[0, 1)`, multiples of `2^-23`.
    """
    return jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (), jnp.float32))(
        keys, steps
    )


def draw(
    logits: Float[Array, "B V"], uniforms: Float[Array, "B K"], sampling: Sampling
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """Draws `K` tokens from each row, and says how probable they were.

    `token = inverse_cdf(softmax(filter(logits / temperature)), u)` and
    `logp = log_softmax(filter(logits / temperature))[token]`, in float32. Greedy decoding
    (temperature 0) draws from a point mass: the arg max, with a log-probability of 0.

    Args:
        logits: `[B, V]`, at least one finite entry a row.
        uniforms: `[B, K]` float32 in `[0, 1)`.
        sampling: temperature and filters.

    Returns:
        `(tokens[B, K], logp[B, K])`, int32 and float32 (nats). A row with a NaN has NaN as its
        log-probability.
    """
    _checks.rank("logits", logits, 2, "[B, V]")
    _checks.shape("uniforms", uniforms, (logits.shape[0], None), "[B, K]")
    logits = logits.astype(jnp.float32)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens = jnp.broadcast_to(tokens[:, None], uniforms.shape)
        return tokens, jnp.zeros(uniforms.shape, jnp.float32)
    logits = filter_logits(
        logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    logits = logits - logits.max(-1, keepdims=True)
    tokens, totals = inverse_cdf(jnp.exp(logits), uniforms)
    return tokens, jnp.take_along_axis(logits, tokens, axis=1) - jnp.log(totals)[:, None]
