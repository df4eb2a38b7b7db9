"""REINFORCE and its baselines, on the frame of the group family."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from polgrad import advantages, losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.grpo import GRPO


@dataclasses.dataclass(frozen=True)
class Reinforce(GRPO):
    """REINFORCE with the mean of the batch as baseline, or none (Williams 1992).

    Attributes:
      baseline: what is subtracted from the rewards.
    """

    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "sequence_sum"
    baseline: Literal["batch", "none"] = "batch"
    has_ratio: ClassVar[bool] = False

    def advantages(self, rewards, valid):
        """Rewards less the mean of all valid ones."""
        rewards = jnp.where(valid, rewards, 0.0)
        if self.baseline == "batch":
            rewards -= rewards.sum() / jnp.maximum(valid.sum(), 1)
        return jnp.where(valid, rewards, 0.0)

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.reinforce(logp, advantages)


@dataclasses.dataclass(frozen=True)
class RLOO(Reinforce):
    """REINFORCE, leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)."""

    def advantages(self, rewards, valid):
        """Rewards less the mean of the other samples of the group."""
        return advantages.leave_one_out(rewards, valid=valid)


@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlus(GRPO):
    """REINFORCE++: rewards whitened over all tokens of the batch (Hu 2025, arXiv:2501.03262)."""

    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"

    def prepare(self, experience, context):
        """Token returns of the outcome reward, whitened."""
        mask = common.counted(experience)
        last = jnp.arange(mask.shape[1]) == experience["completion_lengths"][:, None] - 1
        rewards = jnp.where(experience["valid"], experience["rewards"], 0.0)
        advantage = advantages.reinforce_plus_plus(rewards[:, None] * last, mask)
        length = context.max_tokens if self.aggregation == "constant" else None
        weights = masking.weights(mask, mode=self.aggregation, length=length)
        return common.make_batch(experience, weights, advantages=advantage), {}
