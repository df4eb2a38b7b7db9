"""Tasks with one question: a bandit, or a game of one move."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from polgrad import _checks
from polgrad.small.tables import TablePolicy

__all__ = ["Listed", "OneQuestion"]


class OneQuestion:
    """A task that asks one question again and again; the base of such tasks.

    Use it for bandits and games: a subclass gives `reward`, or `prefer` beside it. Where a question
    carries a random number for the reward, the subclass gives `draw` too.
    """

    size = 1

    def draw(self, key: Key[Array, ""], count: int) -> Array:
        """The question, several times."""
        return jnp.zeros(count, jnp.int32)

    def ids(self, questions: Array) -> Int[Array, "Q"]:
        """0: it is one question."""
        return jnp.zeros(questions.shape[0], jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Listed(OneQuestion):
    """Rewards of the completions that a `TablePolicy` lists.

    Use it for bandits: the expected reward of a policy is then a sum, `jnp.exp(policy.logp(params))
    @ rewards`.

    Attributes:
      policy: whose completions they are.
      rewards: one for each of its completions, in their order.
    """

    policy: TablePolicy
    rewards: Float[Array, "N"]

    def __post_init__(self):
        count = len(self.policy.sequences.tokens)
        _checks.shape("rewards", self.rewards, (count,), "[N], one for each completion")

    def reward(
        self, questions: Int[Array, "Q"], tokens: Int[Array, "Q G T"], mask: Array | None = None
    ) -> Float[Array, "Q G"]:
        """The rewards of the completions."""
        return self.rewards[self.policy.numbers(tokens, mask)]
