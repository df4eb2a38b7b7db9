"""Two-digit addition: a small world with a warm start, for supervised and offline methods."""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from polgrad._scalars import in_range

__all__ = ["Addition"]


@dataclasses.dataclass(frozen=True)
class Addition:
    """Sums of two numbers below 10^digits; the answer has one digit more, leading zeros kept.

    Attributes:
      digits: of each operand.
    """

    digits: int = 2

    def __post_init__(self):
        in_range("digits", self.digits, low=1, high=8)

    @property
    def length(self) -> int:
        """Tokens of an answer."""
        return self.digits + 1

    @property
    def width(self) -> int:
        """Number of features of a question."""
        return 20 * self.digits

    def everything(self) -> Int[Array, "Q 2"]:
        """All questions, in order: 10,000 of two digits."""
        numbers = jnp.arange(10**self.digits)
        return jnp.stack(jnp.meshgrid(numbers, numbers, indexing="ij"), -1).reshape(-1, 2)

    def draw(self, key: Key[Array, ""], count: int) -> Int[Array, "Q 2"]:
        """Questions: pairs of operands, uniform, with repetition."""
        return _integers(key, (count, 2), 10**self.digits)

    def features(self, questions: Int[Array, "Q 2"]) -> Float[Array, "Q F"]:
        """What a policy sees: one-hot digits of both operands."""
        digits = _digits(questions, self.digits)
        return rearrange(jax.nn.one_hot(digits, 10), "questions ... digit -> questions (... digit)")

    def answer(self, questions: Int[Array, "Q 2"]) -> Int[Array, "Q T"]:
        """The right answers, as tokens, the first digit first."""
        return _digits(jnp.sum(questions, axis=-1), self.length)

    @property
    def size(self) -> int:
        """Number of questions."""
        return 100**self.digits

    def ids(self, questions: Int[Array, "Q 2"]) -> Int[Array, "Q"]:
        """Place of each question in `everything`."""
        return questions[:, 0] * 10**self.digits + questions[:, 1]

    def reward(
        self,
        questions: Int[Array, "Q 2"],
        tokens: Int[Array, "Q G T"],
        mask: Array | None = None,
    ) -> Float[Array, "Q G"]:
        """1 if every digit is right, else 0; tokens of 10 and more are never right.

        All tokens count, whatever the mask.
        """
        right = tokens == self.answer(questions)[:, None]
        return jnp.all(right, axis=-1).astype(jnp.float32)

    def noisy_answer(
        self,
        key: Key[Array, ""],
        questions: Int[Array, "Q 2"],
        *,
        noise: float,
        vocabulary: int = 10,
    ) -> Int[Array, "Q T"]:
        """Answers to warm up on, of which every token is with some probability a random one.

        Args:
          key: of the noise.
          questions: pairs of operands.
          noise: probability that a token is replaced by a uniform one, in [0, 1].
          vocabulary: number of tokens that the replacement is drawn from.

        Returns:
          Tokens, [Q, T]. A policy that imitates them perfectly gives each right digit the
          probability 1 - noise + noise / vocabulary.
        """
        in_range("noise", noise, low=0.0, high=1.0)
        where_key, what_key = jax.random.split(key)
        answer = self.answer(questions)
        replaced = jax.random.uniform(where_key, (answer.size,)).reshape(answer.shape) < noise
        return jnp.where(replaced, _integers(what_key, answer.shape, vocabulary), answer)


def _integers(key: Key[Array, ""], shape: tuple[int, int], below: int) -> Int[Array, "N T"]:
    # Drawn as one axis, the generator compiles several times as fast as with two.
    return jax.random.randint(key, (shape[0] * shape[1],), 0, below).reshape(shape)


def _digits(numbers: Int[Array, "..."], count: int) -> Int[Array, "... count"]:
    """Decimal digits, the most significant first."""
    return numbers[..., None] // 10 ** jnp.arange(count - 1, -1, -1) % 10
