"""The cipher ladder: a task of levels, each of which holds all that the easier ones need.

A prompt of level l has l symbols and its answer l tokens: token i is what a hidden map makes of
symbol i at position i. Only a whole answer earns a reward. An untrained policy solves level l
with probability vocabulary^-l, so the hard levels give no signal at first and the easy ones none
later, while training on level l teaches the positions that level l + 1 starts with.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from polgrad import _checks
from polgrad._scalars import in_range

__all__ = ["CipherLadder"]


@dataclasses.dataclass(frozen=True)
class CipherLadder:
    """The sizes of a ladder; what is hidden travels separately, as an array.

    Policies for it are tables of logits `[levels, symbols, vocabulary]`: the answer's token at a
    position depends on the symbol there alone.

    Attributes:
      levels: of difficulty, which are also the positions of the longest prompt.
      symbols: that a prompt is written in.
      vocabulary: tokens that an answer is written in.
    """

    levels: int = 8
    symbols: int = 3
    vocabulary: int = 4

    def __post_init__(self):
        for name in ("levels", "symbols", "vocabulary"):
            in_range(name, getattr(self, name), low=1)

    def init(self, key: Key[Array, ""]) -> Int[Array, "L S"]:
        """The hidden map: for each position, the token that each symbol becomes."""
        noise = jax.random.uniform(key, (self.levels * self.symbols,))
        return jnp.floor(noise * self.vocabulary).astype(jnp.int32).reshape(self.levels, -1)

    def prompts(self, noise: Float[Array, "B L"]) -> Int[Array, "B L"]:
        """Prompts of the longest level, from uniform noise; level l has the first l symbols."""
        return jnp.floor(noise * self.symbols).astype(jnp.int32)

    def answers(
        self, table: Float[Array, "L S V"], prompts: Int[Array, "B L"], noise: Float[Array, "B G L"]
    ) -> Int[Array, "B G L"]:
        """Answers that a table draws, G to a prompt, from uniform noise in [0, 1)."""
        below = jnp.cumsum(jax.nn.softmax(self.logits(table, prompts)), axis=-1)[:, None, :, :-1]
        return jnp.sum(noise[..., None] >= below, axis=-1)

    def mask(self, level: Int[Array, "B"]) -> Float[Array, "B L"]:
        """1 at the positions that a prompt of each level, 1..levels, has."""
        return (jnp.arange(self.levels) < level[:, None]).astype(jnp.float32)

    def logits(self, table: Float[Array, "L S V"], prompts: Int[Array, "B L"]):
        """What a table says at each position of the prompts, `[B, L, V]`."""
        _checks.shape(
            "table", table, (self.levels, self.symbols, self.vocabulary), "[levels, symbols, V]"
        )
        # A product with one-hot rows: its gradient is a product too, where that of an index is a
        # scatter, which is slow under vmap.
        return jnp.einsum("bls,lsv->blv", jax.nn.one_hot(prompts, self.symbols), table)

    def logp(
        self,
        table: Float[Array, "L S V"],
        prompts: Int[Array, "B L"],
        answers: Int[Array, "B G L"],
    ) -> Float[Array, "B G L"]:
        """Log-probability of every token of the answers under a table, in nats."""
        logp = jax.nn.log_softmax(self.logits(table, prompts))
        return jnp.einsum("blv,bglv->bgl", logp, jax.nn.one_hot(answers, self.vocabulary))

    def reward(
        self,
        hidden: Int[Array, "L S"],
        prompts: Int[Array, "B L"],
        answers: Int[Array, "B G L"],
        mask: Float[Array, "B L"],
    ) -> Float[Array, "B G"]:
        """Scores G answers to each prompt: 1 if every token is right, else 0.

        Args:
          hidden: the map, from `init`.
          prompts: from `prompts`.
          answers: tokens, of which those behind the prompt's length are ignored.
          mask: from `mask`.

        Returns:
          Rewards, [B, G], 0 or 1.
        """
        right = hidden[jnp.arange(self.levels), prompts]
        wrong = (answers != right[:, None]) & (mask[:, None] > 0)
        return 1.0 - jnp.any(wrong, axis=-1)

    def accuracy(self, table: Float[Array, "L S V"], hidden: Int[Array, "L S"]):
        """Exact expected reward of a table on a random prompt of each level, `[levels]`.

        Symbols are independent and uniform, so it is a running product over positions of the
        probability of the right token, averaged over symbols.
        """
        right = jax.nn.one_hot(hidden, self.vocabulary)
        return jnp.cumprod(jnp.mean(jnp.sum(jax.nn.softmax(table) * right, -1), -1))
