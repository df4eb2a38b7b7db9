"""Estimators of the advantage: rewards of the samples of each prompt in, advantages out.

Each is a part of `algorithms.PolicyGradient`, and a base of the algorithms that use it.
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks, advantages

ARGUMENTS = {"advantages": ("rewards", "valid")}
"""What the method that a user may write is called with."""


class Estimator:
    """One advantage for each sample. A subclass gives `advantages`."""

    group_statistics: ClassVar[bool] = False
    """Whether the advantage is 0 by construction for a group of one sample."""
    of_tokens: ClassVar[bool] = False
    """Whether there is an advantage for each token, from `token_advantages`."""

    def advantages(
        self, rewards: Float[Array, "P G"], valid: Bool[Array, "P G"]
    ) -> Float[Array, "P G"]:
        """Rewards of the groups to advantages."""
        raise NotImplementedError(f"{type(self).__name__} has no method advantages(rewards, valid)")


@dataclasses.dataclass(frozen=True)
class GroupRelative(Estimator):
    """GRPO's advantage: rewards less the mean of their group, scaled (`advantages.group_relative`).

    Attributes:
      scale: divide the centred rewards by the deviation of the `group`, the `batch`, or nothing.
    """

    group_statistics: ClassVar[bool] = True

    scale: Literal["group", "batch", "none"] = "group"

    def advantages(self, rewards, valid):
        """`advantages.group_relative` of the groups."""
        return advantages.group_relative(rewards, scale=self.scale, valid=valid)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Estimator):
    """RLOO's advantage: rewards less the mean of the other samples (`advantages.leave_one_out`)."""

    group_statistics: ClassVar[bool] = True

    def advantages(self, rewards, valid):
        """Rewards less the mean of the other samples of the group."""
        return advantages.leave_one_out(rewards, valid=valid)


@dataclasses.dataclass(frozen=True)
class Baseline(Estimator):
    """REINFORCE's advantage: rewards less the mean of all, or the rewards themselves.

    Attributes:
      baseline: what is subtracted from the rewards.
    """

    baseline: Literal["batch", "none"] = "batch"

    def advantages(self, rewards, valid):
        """Rewards less the mean of all valid ones, or less nothing."""
        _checks.choice("baseline", self.baseline, ("batch", "none"))
        if self.baseline == "batch":
            return advantages.batch_baseline(rewards, valid=valid)
        return jnp.where(valid, rewards, 0.0)


@dataclasses.dataclass(frozen=True)
class WhitenedReturns(Estimator):
    """REINFORCE++'s advantage: returns of tokens, whitened over the batch (Hu 2025, arXiv:2501.03262).

    The reward of the answer is added at its last token that counts. A KL in the reward, if there is
    one, is subtracted at every token.
    """

    of_tokens: ClassVar[bool] = True

    def token_advantages(
        self, rewards: Float[Array, "B T"], mask: Float[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """Rewards of the tokens to advantages."""
        return advantages.reinforce_plus_plus(rewards, mask)
