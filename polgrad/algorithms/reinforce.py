"""REINFORCE and its baselines: no limit on the ratio, or PPO's clip with batch statistics."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from polgrad import _checks, advantages, losses
from polgrad.algorithms.policy_gradient import Aggregation, PolicyGradient, RatioClip


@dataclasses.dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """REINFORCE with the mean of the batch as baseline, or none (Williams 1992).

    Attributes:
      baseline: what is subtracted from the rewards.
    """

    aggregation: Aggregation = "sequence_sum"
    baseline: Literal["batch", "none"] = "batch"

    def check(self):
        """Also the choice of the baseline."""
        super().check()
        _checks.choice("baseline", self.baseline, ("batch", "none"))

    def advantages(self, rewards, valid):
        """Rewards less the mean of all valid ones."""
        if self.baseline == "batch":
            return advantages.batch_baseline(rewards, valid=valid)
        return jnp.where(valid, rewards, 0.0)

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.reinforce(logp, advantages)


@dataclasses.dataclass(frozen=True)
class RLOO(PolicyGradient):
    """REINFORCE, leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)."""

    group_statistics: ClassVar[bool] = True

    aggregation: Aggregation = "sequence_sum"
    reference_kl_form: Literal["k2", "k3", "reward"] = "reward"

    def advantages(self, rewards, valid):
        """Rewards less the mean of the other samples of the group."""
        return advantages.leave_one_out(rewards, valid=valid)

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.reinforce(logp, advantages)


@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlus(RatioClip):
    """REINFORCE++: returns whitened over all tokens of the batch (Hu 2025, arXiv:2501.03262)."""

    aggregation: Aggregation = "token"
    reference_kl_form: Literal["k2", "k3", "reward"] = "reward"

    def token_advantages(self, experience, mask, context):
        """Returns of the outcome reward, less the KL of each later token where it is asked for."""
        rewards = advantages.place_at_last(self.shaped_rewards(experience, context), mask)
        if self._kl_in("reward"):
            rewards += advantages.kl_token_rewards(
                experience["behavior_logp"],
                experience["reference_logp"],
                mask,
                beta=self.reference_kl,
            )
        return advantages.reinforce_plus_plus(rewards, mask)
