"""One question whose completions all have known rewards: a bandit, or a game of one move."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from polgrad import _checks
from polgrad.small.tables import TablePolicy

__all__ = ["Listed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
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

    @property
    def size(self) -> int:
        """One question."""
        return 1

    def draw(self, key: Key[Array, ""], count: int) -> Int[Array, "Q"]:
        """The question, several times."""
        return jnp.zeros(count, jnp.int32)

    def ids(self, questions: Int[Array, "Q"]) -> Int[Array, "Q"]:
        """0: it is one question."""
        return questions

    def reward(
        self, questions: Int[Array, "Q"], tokens: Int[Array, "Q G T"], mask: Array | None = None
    ) -> Float[Array, "Q G"]:
        """The rewards of the completions, whatever the mask."""
        return self.rewards[self.policy.numbers(tokens)]
