"""Log-probability and entropy of chosen tokens, without the array of all logits.

A vocabulary of 50 000 and a batch of 16 x 512 tokens make logits of 1.6 GB, twice that with
their gradient. Here the sequence is walked in chunks, forward and backward, so at most
`[B, chunk, V]` exists at any time.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


def token_logp(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy_gradient: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    r"""Log-probability of `targets` and entropy of the whole distribution, chunk by chunk.

    With :math:`z = h W / \tau`: :math:`\log p(y) = z_y - \log\sum_v e^{z_v}` and
    :math:`H = \log\sum_v e^{z_v} - \sum_v p_v z_v`. The backward pass recomputes the logits
    of a chunk, so neither pass ever holds `[B, T, V]`. Gradients flow to `hidden` and `head`.

    Args:
      hidden: last hidden states `[B, T, D]`; the products run in their dtype and accumulate
        in float32.
      head: output projection `[D, V]`.
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
    batch, length, _ = hidden.shape
    if chunk is None:
        chunk = default_chunk(batch, head.shape[1])
    chunk = min(chunk, length)
    padding = -length % chunk
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    logp, entropy = _chunked(hidden, head, targets, float(temperature), chunk, entropy_gradient)
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
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _join(x: Array) -> Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _log_softmax(hidden: Array, head: Array, temperature: float) -> Array:
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=dtype) / temperature
    return jax.nn.log_softmax(logits, axis=-1)


def _statistics(log_p: Array, targets: Array) -> tuple[Array, Array]:
    logp = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    # p log p is 0 where p is 0, also when a logit is minus infinity.
    plogp = jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0)
    return logp, -plogp.sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _chunked(hidden, head, targets, temperature, chunk, entropy_gradient):
    weight = head.astype(hidden.dtype)

    def body(_, block):
        h, y = block
        return None, _statistics(_log_softmax(h, weight, temperature), y)

    _, (logp, entropy) = jax.lax.scan(body, None, (_split(hidden, chunk), _split(targets, chunk)))
    return _join(logp), _join(entropy)


def _chunked_forward(hidden, head, targets, temperature, chunk, entropy_gradient):
    outputs = _chunked(hidden, head, targets, temperature, chunk, entropy_gradient)
    return outputs, (hidden, head, targets, outputs[1])


def _chunked_backward(temperature, chunk, entropy_gradient, residuals, cotangents):
    hidden, head, targets, entropy = residuals
    d_logp, d_entropy = cotangents
    weight = head.astype(hidden.dtype)
    dtype = d_logp.dtype

    def body(d_head, block):
        h, y, g_logp, g_entropy, ent = block
        log_p = _log_softmax(h, weight, temperature)
        p = jnp.exp(log_p)
        d_logits = -g_logp[..., None] * p
        d_logits += jnp.where(jnp.arange(p.shape[-1]) == y[..., None], g_logp[..., None], 0.0)
        if entropy_gradient:
            plogp = jnp.where(log_p > -jnp.inf, p * log_p, 0.0)
            d_logits -= g_entropy[..., None] * (plogp + p * ent[..., None])
        d_logits = (d_logits / temperature).astype(h.dtype)
        d_head += jnp.einsum("btd,btv->dv", h, d_logits, preferred_element_type=dtype)
        d_h = jnp.einsum("btv,dv->btd", d_logits, weight, preferred_element_type=dtype)
        return d_head, d_h.astype(h.dtype)

    blocks = tuple(_split(x, chunk) for x in (hidden, targets, d_logp, d_entropy, entropy))
    d_head, d_hidden = jax.lax.scan(body, jnp.zeros(head.shape, dtype), blocks)
    return _join(d_hidden), d_head.astype(head.dtype), None


_chunked.defvjp(_chunked_forward, _chunked_backward)
