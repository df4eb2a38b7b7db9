"""The cipher ladder: a task with levels; what is learnt on a level helps on all harder ones.

A question of level l has l symbols and its answer l tokens: token i is what a hidden map makes of
symbol i at position i. Only a whole answer earns a reward. An untrained policy solves level l
with probability vocabulary^-l, so the hard levels give no signal at first and the easy ones none
later, while training on level l teaches the positions that level l + 1 starts with.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from polgrad import _checks
from polgrad._scalars import in_range

__all__ = ["CipherLadder", "CipherQuestions"]


class CipherQuestions(NamedTuple):
    """Questions of several levels.

    Attributes:
      symbols: of the longest level; a question of level l has the first l of them.
      level: in 1..levels.
    """

    symbols: Int[Array, "Q L"]
    level: Int[Array, "Q"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["hidden"], meta_fields=["vocabulary"]
)
@dataclasses.dataclass(frozen=True)
class CipherLadder:
    """A ladder; make one with `create`. Its levels are the arms of a curriculum.

    A policy for it is a `small.FeaturePolicy` of a `small.PositionTable`, with the methods
    `features` and `lengths`: the token at a position depends on the symbol there alone.

    Attributes:
      hidden: the map: for each position, the token that each symbol becomes.
      vocabulary: tokens that an answer is written in.
    """

    hidden: Int[Array, "L S"]
    vocabulary: int

    @classmethod
    def create(
        cls, key: Key[Array, ""], *, levels: int = 8, symbols: int = 3, vocabulary: int = 4
    ) -> "CipherLadder":
        """Draws the hidden map.

        Args:
          key: of the map.
          levels: L, of difficulty, which are also the positions of the longest question.
          symbols: S, that a question is written in.
          vocabulary: tokens that an answer is written in.

        Raises:
          ValueError: a number below 1.
        """
        for name, value in (("levels", levels), ("symbols", symbols), ("vocabulary", vocabulary)):
            in_range(name, value, low=1)
        noise = jax.random.uniform(key, (levels * symbols,))
        hidden = jnp.floor(noise * vocabulary).astype(jnp.int32)
        return cls(hidden.reshape(levels, symbols), vocabulary)

    @property
    def levels(self) -> int:
        """Of difficulty, and positions of the longest question."""
        return self.hidden.shape[0]

    @property
    def symbols(self) -> int:
        """That a question is written in."""
        return self.hidden.shape[1]

    @property
    def arms(self) -> int:
        """The levels: arm a holds the questions of level a + 1."""
        return self.levels

    @property
    def size(self) -> int:
        """Number of questions, those of the same symbols and another level counted apart."""
        return self.levels * self.symbols**self.levels

    def draw(
        self, key: Key[Array, ""], count: int, arm: Int[Array, "Q"] | None = None
    ) -> CipherQuestions:
        """Random symbols, of random levels or of those of the arms."""
        noise = jax.random.uniform(key, (count * (self.levels + 1),)).reshape(count, -1)
        symbols = jnp.floor(noise[:, 1:] * self.symbols).astype(jnp.int32)
        if arm is None:
            arm = jnp.floor(noise[:, 0] * self.levels).astype(jnp.int32)
        return CipherQuestions(symbols, arm + 1)

    def ids(self, questions: CipherQuestions) -> Int[Array, "Q"]:
        """The level and those symbols that the question has, as one number."""
        places = self.symbols ** jnp.arange(self.levels)
        asked = jnp.where(self._mask(questions), questions.symbols, 0)
        return (questions.level - 1) * self.symbols**self.levels + (asked * places).sum(-1)

    def features(self, questions: CipherQuestions) -> Int[Array, "Q L"]:
        """What a policy sees: the symbols, also those behind the level."""
        return questions.symbols

    def lengths(self, questions: CipherQuestions) -> Int[Array, "Q"]:
        """Tokens of an answer: the level."""
        return questions.level

    def reward(
        self,
        questions: CipherQuestions,
        completions: Int[Array, "Q G L"],
        mask: Bool[Array, "Q G L"] | None = None,
    ) -> Float[Array, "Q G"]:
        """1 if every token up to the level is right, else 0; the others do not count.

        Args:
          questions: from `draw`.
          completions: tokens of G answers to each question.
          mask: taken for the common signature, and changes nothing.
        """
        del mask
        right = self.hidden[jnp.arange(self.levels), questions.symbols]
        wrong = (completions != right[:, None]) & self._mask(questions)[:, None]
        return 1.0 - jnp.any(wrong, axis=-1)

    def accuracy(self, table: Float[Array, "L S V"]) -> Float[Array, "L"]:
        """Exact expected reward of a table of logits on a random question of each level.

        Symbols are independent and uniform, so it is a running product over positions of the
        probability of the right token, averaged over symbols.

        Raises:
          ValueError: a table of another shape.
        """
        _checks.shape(
            "table", table, (*self.hidden.shape, self.vocabulary), "[levels, symbols, vocabulary]"
        )
        right = jax.nn.one_hot(self.hidden, self.vocabulary)
        return jnp.cumprod(jnp.mean(jnp.sum(jax.nn.softmax(table) * right, -1), -1))

    def _mask(self, questions: CipherQuestions) -> Bool[Array, "Q L"]:
        """True at the positions that a question has."""
        return jnp.arange(self.levels) < questions.level[:, None]
