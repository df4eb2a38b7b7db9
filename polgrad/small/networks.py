"""Small networks for small tasks: whole runs with hundreds of updates fit into seconds.

Parameters are plain dicts and prompts are feature vectors, mostly one-hot. All is written with
matrix products and comparisons, without gathers: their gradients are products too, where that of
an index is a scatter, which is slow, and slower under `vmap` over seeds.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from polgrad.distributions import token_statistics
from polgrad.policies.network import Params

__all__ = ["AutoregressiveMLP", "FactorizedMLP", "PositionTable"]

_PREFIX = ("sum", "previous")


@dataclasses.dataclass(frozen=True)
class AutoregressiveMLP:
    """Two hidden layers over the prompt, the position and what the prefix amounts to.

    logits_t = W relu(M relu(P prompt + p_t + s_{sum of the prefix mod V} + e_{previous token}))

    Attributes:
      features: of a prompt.
      vocabulary: V, number of tokens.
      length: T, tokens of every answer.
      width: of the hidden layers.
      prefix: what it sees of the tokens before: `"sum"` (modulo V), `"previous"` (the last one),
        both or neither.
    """

    features: int
    vocabulary: int
    length: int
    width: int = 128
    prefix: tuple[str, ...] = ("sum",)

    def __post_init__(self):
        unknown = sorted(set(self.prefix) - set(_PREFIX))
        if unknown:
            raise ValueError(f"prefix has {unknown}, expected some of {', '.join(_PREFIX)}")

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters whose policy is nearly uniform."""
        leaves = {
            "prompt": ((self.features, self.width), 0.5),
            "position": ((self.length, self.width), 0.5),
            "middle": ((self.width, self.width), (2.0 / self.width) ** 0.5),
            "out": ((self.width, self.vocabulary), 0.1 * self.width**-0.5),
        }
        leaves |= {name: ((self.vocabulary, self.width), 0.5) for name in self.prefix}
        return _normal(key, leaves) | {"bias": jnp.zeros(self.vocabulary)}

    def logits(
        self, params: Params, prompts: Float[Array, "*B F"], tokens: Int[Array, "*C T"]
    ) -> Float[Array, "*D T V"]:
        """Logits at all positions at once, for given tokens (teacher forcing).

        Args:
          params: from `init`.
          prompts: features; leading axes broadcast against those of the tokens, so [Q, 1, F]
            serves tokens [Q, G, T] and passes through the first layer once a prompt.
          tokens: answers; the logits at t depend on those before t.

        Returns:
          [..., T, V].
        """
        before = jnp.cumsum(tokens, axis=-1) - tokens
        previous = jnp.pad(tokens[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])
        previous = jnp.where(jnp.arange(self.length) == 0, -1, previous)
        prompt = (prompts @ params["prompt"])[..., None, :] + params["position"]
        return self._head(params, prompt, before, previous)

    def sample(
        self,
        params: Params,
        prompts: Float[Array, "*B F"],
        key: Key[Array, ""],
        *,
        samples: int,
        greedy: bool = False,
    ) -> tuple[Int[Array, "*B G T"], Float[Array, "*B G T"]]:
        """Draws answers token by token, all prompts and samples at once.

        Args:
          params: from `init`.
          prompts: features, [..., F].
          key: of the draws.
          samples: G, answers to each prompt.
          greedy: whether to take the most likely token instead (all samples are then equal).

        Returns:
          (tokens, logp), each [..., G, T].
        """
        prompt = (prompts @ params["prompt"])[..., None, :]
        shape = (*prompts.shape[:-1], samples)

        def step(state, inputs):
            before, previous = state
            position, uniforms = inputs
            logits = self._head(params, prompt + position, before, previous)
            token = _choose(logits, uniforms, greedy)
            return (before + token, token), (token, token_statistics(logits, token)[0])

        start = jnp.zeros(shape, jnp.int32), jnp.full(shape, -1, jnp.int32)
        uniforms = _uniforms(key, (self.length, *shape))
        _, drawn = jax.lax.scan(step, start, (params["position"], uniforms))
        tokens, logp = (rearrange(x, "steps ... -> ... steps") for x in drawn)
        return tokens, logp

    def _head(self, params, prompt, before, previous):
        hidden = prompt
        if "sum" in self.prefix:
            hidden = hidden + _one_hot(before % self.vocabulary, self.vocabulary) @ params["sum"]
        if "previous" in self.prefix:
            # The first token has none before it: -1 is a row of zeros.
            hidden = hidden + _one_hot(previous, self.vocabulary) @ params["previous"]
        hidden = jax.nn.relu(jax.nn.relu(hidden) @ params["middle"])
        logits = hidden @ params["out"] + params["bias"]
        return jnp.broadcast_to(logits, (*before.shape, self.vocabulary))


class _Independent:
    """Networks whose tokens are independent given the prompt."""

    def sample(
        self,
        params: Params,
        prompts: Float[Array, "*B F"],
        key: Key[Array, ""],
        *,
        samples: int,
        greedy: bool = False,
    ) -> tuple[Int[Array, "*B G T"], Float[Array, "*B G T"]]:
        """Draws answers; arguments and results as in `AutoregressiveMLP.sample`."""
        logits = self.logits(params, prompts)[..., None, :, :]
        uniforms = _uniforms(key, (*prompts.shape[:-1], samples, self.length))
        tokens = _choose(logits, uniforms, greedy)
        return tokens, token_statistics(logits, tokens)[0]


@dataclasses.dataclass(frozen=True)
class FactorizedMLP(_Independent):
    """One hidden layer over the prompt; the tokens of an answer are independent given it.

    Attributes:
      features: of a prompt.
      vocabulary: V, number of tokens.
      length: T, tokens of every answer.
      width: of the hidden layer.
    """

    features: int
    vocabulary: int
    length: int
    width: int = 128

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters whose policy is nearly uniform."""
        outputs = self.length * self.vocabulary
        leaves = {
            "prompt": ((self.features, self.width), 0.5),
            "out": ((self.width, outputs), 0.1 * self.width**-0.5),
        }
        biases = {"hidden_bias": jnp.zeros(self.width), "bias": jnp.zeros(outputs)}
        return _normal(key, leaves) | biases

    def logits(
        self,
        params: Params,
        prompts: Float[Array, "*B F"],
        tokens: Int[Array, "*C T"] | None = None,
    ) -> Float[Array, "*B T V"]:
        """Logits at all positions; the tokens, taken for the common signature, change nothing."""
        del tokens
        hidden = jax.nn.relu(prompts @ params["prompt"] + params["hidden_bias"])
        logits = hidden @ params["out"] + params["bias"]
        return rearrange(logits, "... (steps tokens) -> ... steps tokens", steps=self.length)


@dataclasses.dataclass(frozen=True)
class PositionTable(_Independent):
    """A table of logits: the token at a position depends on the prompt's symbol there alone.

    A prompt is T symbols, whole numbers in 0..symbols-1. The parameters are `table [T, S, V]`.

    Attributes:
      symbols: S, that a prompt is written in.
      vocabulary: V, number of tokens.
      length: T, symbols of a prompt and tokens of an answer.
    """

    symbols: int
    vocabulary: int
    length: int

    def init(self, key: Key[Array, ""]) -> Params:
        """Zeros, the uniform policy."""
        del key
        return {"table": jnp.zeros((self.length, self.symbols, self.vocabulary))}

    def logits(
        self,
        params: Params,
        prompts: Int[Array, "*B T"],
        tokens: Int[Array, "*C T"] | None = None,
    ) -> Float[Array, "*B T V"]:
        """Logits at all positions; the tokens, taken for the common signature, change nothing."""
        del tokens
        symbols = _one_hot(prompts, self.symbols)
        return jnp.einsum("...ts,tsv->...tv", symbols, params["table"])


def _one_hot(tokens: Array, vocabulary: int) -> Array:
    return (tokens[..., None] == jnp.arange(vocabulary)).astype(jnp.float32)


def _normal(key: Array, leaves: dict[str, tuple[tuple[int, int], float]]) -> Params:
    """Gaussian matrices from one draw: `{name: (shape, standard deviation)}`."""
    sizes = [math.prod(shape) for shape, _ in leaves.values()]
    drawn = jnp.split(jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return {
        name: scale * part.reshape(shape)
        for (name, (shape, scale)), part in zip(leaves.items(), drawn)
    }


def _uniforms(key: Array, shape: tuple[int, ...]) -> Array:
    # Drawn as one axis, the generator compiles four times as fast as with three.
    return jax.random.uniform(key, (math.prod(shape),)).reshape(shape)


def _choose(logits: Array, uniforms: Array, greedy: bool) -> Array:
    """The first token whose cumulative probability exceeds the uniform number, or the best one."""
    if greedy:
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jnp.broadcast_to(best, uniforms.shape)
    below = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[..., :-1] <= uniforms[..., None]
    return jnp.sum(below, axis=-1, dtype=jnp.int32)
