"""How one token is drawn: settings, addressed uniforms, and the inverse of the distribution."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.rollouts.filters import check_filters, filter_logits


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


def _first(hit: Bool[Array, "... n"], allowed: Bool[Array, "... n"]) -> Int[Array, "..."]:
    """The first index with `hit`, or the last one with `allowed` where nothing hits."""
    last = allowed.shape[-1] - 1 - jnp.argmax(allowed[..., ::-1], axis=-1)
    return jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)


def inverse_cdf(
    weights: Float[Array, "B V"], uniforms: Float[Array, "B K"]
) -> tuple[Int[Array, "B K"], Float[Array, " B"]]:
    """Inverts the cumulative distribution: the first token whose cumulative mass exceeds `u`.

    `token = min{i : sum_{j <= i} w_j > u * sum_j w_j}` over tokens with `w_i > 0`, in two levels:
    the sums of blocks of about `sqrt(V)` tokens, then the tokens of the one block that holds `u`.
    A float32 running sum over a whole vocabulary would lose the tail to rounding; here no sum
    has more than about `sqrt(V)` terms. Where rounding leaves `u` above all sums, the last token
    with positive weight is taken: a token of weight zero is never drawn.

    Args:
        weights: `[B, V]` float32, unnormalised probabilities, at least 0, not all 0.
        uniforms: `[B, K]` float32 in `[0, 1)`, `K` draws from each row.

    Returns:
        `(tokens[B, K], totals[B])`: the tokens, int32, and the sum of each row's weights.
    """
    _checks.rank("weights", weights, 2, "[B, V]")
    _checks.shape("uniforms", uniforms, (weights.shape[0], None), "[B, K]")
    batch, vocabulary = weights.shape
    size = 2 ** round(math.log2(max(vocabulary, 1)) / 2)
    count = -(-vocabulary // size)
    blocks = jnp.pad(weights, ((0, 0), (0, count * size - vocabulary))).reshape(batch, count, size)

    sums = blocks.sum(-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    totals = cumulative[:, -1]
    target = uniforms * totals[:, None]
    positive = (sums > 0)[:, None]
    block = _first((cumulative[:, None] > target[..., None]) & positive, positive)

    below = jnp.pad(cumulative, ((0, 0), (1, 0)))
    rest = target - jnp.take_along_axis(below, block, axis=1)
    inner = jnp.take_along_axis(blocks, block[..., None], axis=1)
    positive = inner > 0
    # A running sum in a tree need not be monotone to the last bit: hence `& positive`.
    within = _first((jnp.cumsum(inner, axis=-1) > rest[..., None]) & positive, positive)
    return block * size + within, totals


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
