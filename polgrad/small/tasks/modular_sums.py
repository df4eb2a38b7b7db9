"""Modular sums: easy prompts that can burn a policy's whole entropy before the hard ones are found.

The answer to every prompt is a word whose tokens must sum to the prompt's target, modulo the
vocabulary: one random word in `vocabulary` is right. The hard half of the prompts also fixes the
first tokens, so that chance is `vocabulary^-(fixed + 1)`, and what a policy learns on the easy
half (one word a target is enough) is wrong there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

__all__ = ["ModularSums"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["target", "prefix"],
    meta_fields=["vocabulary"],
)
@dataclasses.dataclass(frozen=True)
class ModularSums:
    """A set of prompts; make one with `create`.

    Attributes:
      target: what the tokens of an answer must sum to, [P], in 0..vocabulary-1.
      prefix: the first tokens that a hard prompt wants, [P, K].
      vocabulary: number of tokens.
    """

    target: Int[Array, "P"]
    prefix: Int[Array, "P K"]
    vocabulary: int

    @classmethod
    def create(
        cls, key: Key[Array, ""], *, prompts: int = 128, fixed: int = 2, vocabulary: int = 8
    ) -> "ModularSums":
        """Draws targets and prefixes.

        Args:
          key: of the world.
          prompts: how many; the second half is hard.
          fixed: tokens that a hard prompt fixes.
          vocabulary: number of tokens.
        """
        drawn = jax.random.randint(key, (prompts * (1 + fixed),), 0, vocabulary)
        return cls(
            drawn[:prompts],
            rearrange(drawn[prompts:], "(prompts fixed) -> prompts fixed", prompts=prompts),
            vocabulary,
        )

    @property
    def prompts(self) -> Int[Array, "P"]:
        """All prompts, which are numbers."""
        return jnp.arange(self.target.shape[0])

    @property
    def width(self) -> int:
        """Number of features of a prompt."""
        return 1 + self.vocabulary * (1 + self.prefix.shape[1])

    def hard(self, prompts: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Which prompts also fix the first tokens."""
        return prompts >= self.target.shape[0] // 2

    @property
    def size(self) -> int:
        """Number of prompts."""
        return self.target.shape[0]

    def ids(self, prompts: Int[Array, "Q"]) -> Int[Array, "Q"]:
        """The prompts themselves."""
        return prompts

    def halves(self, x: Float[Array, "P"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Means over the easy and over the hard prompts of one number a prompt."""
        middle = self.target.shape[0] // 2
        return x[:middle].mean(), x[middle:].mean()

    def draw(self, key: Key[Array, ""], count: int) -> Int[Array, "Q"]:
        """Different prompts in random order."""
        return jax.random.permutation(key, self.target.shape[0])[:count]

    def features(self, prompts: Int[Array, "Q"]) -> Float[Array, "Q F"]:
        """What a policy sees: one-hot target, whether it is hard, and then one-hot prefix."""
        hard = self.hard(prompts)[:, None].astype(jnp.float32)
        target = jax.nn.one_hot(self.target[prompts], self.vocabulary)
        prefix = jax.nn.one_hot(self.prefix[prompts], self.vocabulary)
        prefix = hard * rearrange(prefix, "prompts fixed tokens -> prompts (fixed tokens)")
        return jnp.concatenate([target, hard, prefix], axis=-1)

    def reward(
        self, prompts: Int[Array, "Q"], tokens: Int[Array, "Q G T"], mask: Array | None = None
    ) -> Float[Array, "Q G"]:
        """1 for a right answer, else 0; all tokens count, whatever the mask."""
        right = jnp.sum(tokens, axis=-1) % self.vocabulary == self.target[prompts][:, None]
        wanted = self.prefix[prompts][:, None]
        begun = jnp.all(tokens[..., : wanted.shape[-1]] == wanted, axis=-1)
        return (right & (begun | ~self.hard(prompts)[:, None])).astype(jnp.float32)
