"""The vocabulary head: logits, and log-probability and entropy of tokens without all logits.

A vocabulary of 50 000 and a batch of 16 x 512 tokens make logits of 1.6 GB, twice that with
their gradient. Here the sequence is walked in chunks, forward and backward, so at most
`[B, chunk, V]` exists at any time.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Num

from polgrad.distributions.categorical import log_softmax, p_log_p
from polgrad.policies.attention import soft_cap
from polgrad.policies.sharding import batch_parts, partial_sums, whole_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CappedHead:
    r"""An output projection with capped logits, :math:`c \tanh(h W / c)`.

    What `Network.head` gives in place of a matrix. It is no array, so that `hidden @ head`, which
    would leave the cap out, fails; `logits` and `token_logp` take either.

    Args:
      matrix: `W`, `[D, V]`.
      cap: `c`, above 0, in logits; the temperature divides what is capped.
    """

    matrix: Float[Array, "D V"]
    cap: float = dataclasses.field(metadata={"static": True})

    def __rmatmul__(self, hidden):
        raise TypeError("a CappedHead is no matrix: heads.logits(hidden, head) applies its cap")


def matrix_and_cap(head: Array | CappedHead) -> tuple[Array, float | None]:
    """The matrix of a head, and its cap or None."""
    return (head.matrix, head.cap) if isinstance(head, CappedHead) else (head, None)


def logits(
    hidden: Float[Array, "*S D"], head: Float[Array, "D V"] | CappedHead
) -> Float[Array, "*S V"]:
    """Logits of the next token, `hidden @ head`, capped where the head says so.

    Args:
      hidden: last hidden states `[..., D]`; the products run in their dtype and accumulate in
        float32.
      head: of `Network.head`.

    Returns:
      `[..., V]` in float32 (float64 if `hidden` is).
    """
    matrix, cap = matrix_and_cap(head)
    return soft_cap(_product(hidden, matrix.astype(hidden.dtype)), cap)


def token_logp(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"] | CappedHead,
    targets: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy_gradient: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    r"""Log-probability of `targets` and entropy of the whole distribution, chunk by chunk.

    With :math:`z = h W / \tau` (of a `CappedHead` :math:`z = c \tanh(h W / c) / \tau`):
    :math:`\log p(y) = z_y - \log\sum_v e^{z_v}` and
    :math:`H = \log\sum_v e^{z_v} - \sum_v p_v z_v`. The backward pass recomputes the logits
    of a chunk, so neither pass ever holds `[B, T, V]`. Gradients flow to `hidden` and `head`.

    Args:
      hidden: last hidden states `[B, T, D]`; the products run in their dtype and accumulate
        in float32.
      head: output projection `[D, V]`, or a `CappedHead`.
      targets: token ids `[B, T]` in `[0, V)`.
      temperature: divides the logits; above 0.
      chunk: positions handled at once, between 1 and T; `None` picks a size that keeps a
        chunk of logits near 64 MiB; at least T means no chunking.
      entropy_gradient: False returns an entropy without gradient and saves its backward cost.

    Returns:
      `(logp, entropy)`, each `[B, T]` in float32 (float64 if `hidden` is).

    Raises:
      ValueError: if `temperature` or `chunk` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    matrix, cap = matrix_and_cap(head)
    batch, length, _ = hidden.shape
    if chunk is None:
        chunk = default_chunk(batch, matrix.shape[1])
    chunk = min(chunk, length)
    padding = -length % chunk
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    settings = _Settings(float(temperature), cap, chunk, entropy_gradient)
    logp, entropy = _chunked(hidden, matrix, targets, settings)
    return logp[:, :length], entropy[:, :length]


def last_token_score(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "D"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    bias: Float[Array, ""] | float = 0.0,
) -> Float[Array, "B"]:
    """Score of a sequence: a linear function of the state at its last token.

    Under a causal mask what is padded behind that token changes nothing.

    Args:
      hidden: last hidden states `[B, T, D]`; the products run in their dtype and accumulate in
        float32.
      weight: of the head, `[D]`.
      mask: non-zero where there is a token, `[B, T]`, with T of at least 1.
      bias: of the head.

    Returns:
      Scores `[B]` in float32 (float64 if `hidden` is); 0 for a row without a token. Only
      differences at one prompt (and reference) mean something.

    Raises:
      ValueError: if `mask` is not of the shape of `hidden` without its last axis.
    """
    if jnp.shape(mask) != jnp.shape(hidden)[:2]:
        raise ValueError(f"mask has shape {jnp.shape(mask)}; expected {jnp.shape(hidden)[:2]}")
    real = jnp.asarray(mask) != 0
    some = jnp.any(real, axis=1)
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    state = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    # A row without a token is replaced before the product: what stands there may be NaN.
    state = jnp.where(some[:, None], state, 0.0)
    score = jnp.einsum("bd,d->b", state, weight.astype(hidden.dtype), preferred_element_type=dtype)
    return jnp.where(some, score + bias, 0.0)


def default_chunk(batch: int, vocabulary: int, budget: int = 64 * 2**20) -> int:
    """Positions per chunk so that `[batch, chunk, vocabulary]` float32 stays near `budget` bytes."""
    return max(1, budget // (4 * batch * vocabulary))


def _split(x: Array, chunk: int) -> Array:
    """`[B, T, ...]` to `[T / chunk, B, chunk, ...]`: the batch axis, which is sharded, stays whole."""
    return rearrange(x, "batch (chunks steps) ... -> chunks batch steps ...", steps=chunk)


def _join(x: Array) -> Array:
    """The inverse of `_split`."""
    return rearrange(x, "chunks batch steps ... -> batch (chunks steps) ...")


class _Settings(NamedTuple):
    """What is static in the chunked passes."""

    temperature: float
    cap: float | None
    chunk: int
    entropy_gradient: bool


def _product(hidden: Array, weight: Array) -> Array:
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("...d,dv->...v", hidden, weight, preferred_element_type=dtype)


def _log_probabilities(product: Array, settings: _Settings) -> Array:
    return log_softmax(soft_cap(product, settings.cap) / settings.temperature)


def _statistics(log_p: Array, targets: Array) -> tuple[Array, Array]:
    logp = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return logp, -p_log_p(log_p).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden, head, targets, settings):
    # Gathered once, not for each chunk.
    weight = whole_rows(head.astype(hidden.dtype))

    def body(_, block):
        h, y = block
        return None, _statistics(_log_probabilities(_product(h, weight), settings), y)

    blocks = (_split(hidden, settings.chunk), _split(targets, settings.chunk))
    _, (logp, entropy) = jax.lax.scan(body, None, blocks)
    return _join(logp), _join(entropy)


def _chunked_forward(hidden, head, targets, settings):
    outputs = _chunked(hidden, head, targets, settings)
    return outputs, (hidden, head, targets, outputs[1])


def _chunked_backward(settings, residuals, cotangents):
    hidden, head, targets, entropy = residuals
    d_logp, d_entropy = cotangents
    weight = whole_rows(head.astype(hidden.dtype))
    dtype = d_logp.dtype
    # Every device sums over its own sequences until the end: left to itself, the partitioner
    # adds up the devices' sums after each chunk, or gathers the logits' gradients of them all.
    parts = batch_parts(hidden.shape[0])

    def body(d_head, block):
        h, y, g_logp, g_entropy, ent = block
        product = _product(h, weight)
        log_p = _log_probabilities(product, settings)
        p = jnp.exp(log_p)
        d_logits = -g_logp[..., None] * p
        d_logits += jnp.where(jnp.arange(p.shape[-1]) == y[..., None], g_logp[..., None], 0.0)
        if settings.entropy_gradient:
            d_logits -= g_entropy[..., None] * (p_log_p(log_p) + p * ent[..., None])
        if settings.cap is not None:
            # The slope of c tanh(x / c) is 1 - tanh(x / c)^2.
            d_logits *= 1 - jnp.tanh(product / settings.cap) ** 2
        d_logits = (d_logits / settings.temperature).astype(h.dtype)
        d_head = partial_sums(d_head + _outer(h, d_logits, parts, dtype))
        d_h = jnp.einsum("btv,dv->btd", d_logits, weight, preferred_element_type=dtype)
        return d_head, d_h.astype(h.dtype)

    whole = (hidden, targets, d_logp, d_entropy, entropy)
    blocks = tuple(_split(x, settings.chunk) for x in whole)
    zeros = partial_sums(jnp.zeros((parts, *head.shape), dtype))
    d_head, d_hidden = jax.lax.scan(body, zeros, blocks)
    return _join(d_hidden), d_head.sum(0).astype(head.dtype), None


def _outer(hidden, d_logits, parts: int, dtype) -> Array:
    """`hidden^T d_logits` over each of `parts` equal parts of the batch, `[parts, D, V]`."""
    if parts == 1:
        # Not a batch of one product: on a CPU those take a slower path.
        return jnp.einsum("btd,btv->dv", hidden, d_logits, preferred_element_type=dtype)[None]
    split = "(parts rows) ... -> parts rows ..."
    hidden, d_logits = (rearrange(x, split, parts=parts) for x in (hidden, d_logits))
    return jnp.einsum("pbtd,pbtv->pdv", hidden, d_logits, preferred_element_type=dtype)


_chunked.defvjp(_chunked_forward, _chunked_backward)
