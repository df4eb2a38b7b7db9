"""PPO with a critic (Schulman et al. 2017, arXiv:1707.06347): advantages for each token."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from polgrad import _parts, advantages, losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.algorithms.terms import Entropy, RewardKL
from polgrad.contract import Algorithm, Batch, Context, Needs, Outputs


@dataclasses.dataclass(frozen=True)
class PPO:
    """Clipped surrogate, generalised advantages, clipped value loss.

    The outcome reward is added at the last token that counts.

    Attributes:
      aggregation: how token losses become one number.
      discount: discount factor a token (gamma), in [0, 1].
      lambda_: lambda of generalised advantage estimation, in [0, 1].
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      value_coefficient: weight of the value loss, non-negative.
      value_clip: how far a value may move from its estimate at the rollout, in units of the return,
        above 0; None for no value clip.
      kl: a KL to a reference policy, subtracted from the reward of each token.
      entropy: a bonus for the policy's entropy.
      whiten: give the advantages mean 0 and variance 1 over the rollout's tokens.
    """

    aggregation: Literal["token", "sequence", "sequence_sum"] = "token"
    discount: float = 1.0
    lambda_: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_coefficient: float = 0.5
    value_clip: float | None = 0.2
    kl: RewardKL | None = None
    entropy: Entropy | None = None
    whiten: bool = True

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        _parts.check(self)
        for name in ("discount", "lambda_"):
            in_range(name, getattr(self, name), low=0.0, high=1.0)
        in_range("value_coefficient", self.value_coefficient, low=0.0)
        if self.value_clip is not None:
            in_range("value_clip", self.value_clip, low=0.0, above=True)

        def prepare(state, experience, key):
            return state, self.prepare(experience), {}

        def loss(outputs, batch):
            return self.loss(outputs, batch, context)

        inert = common.changed(self, ("clip_low", "clip_high", "value_clip"))
        return Algorithm(
            prepare=prepare,
            loss=loss,
            policies={"reference": self.kl.reference} if self.kl else {},
            needs=Needs(entropy=self.entropy is not None, values=True),
            warnings=(
                *(common.inert_on_policy(inert) if context.on_policy else ()),
                *(self.kl.warnings(context) if self.kl else ()),
            ),
        )

    def prepare(self, experience: Batch) -> Batch:
        """Token rewards, advantages, value targets."""
        mask = common.counted(experience)
        rewards = advantages.place_at_last(experience["rewards"], mask)
        if self.kl is not None:
            rewards += self.kl.of_tokens(experience, mask)
        values = experience["values"]
        # A completion ends at its last token that counts, whether it stopped or was cut: no reward
        # follows.
        last = advantages.place_at_last(jnp.ones(mask.shape[0]), mask) > 0
        discounts = jnp.where(last, 0.0, self.discount)
        advantage = advantages.gae(rewards, values, discounts, lambda_=self.lambda_, mask=mask)
        targets = advantage + values[:, :-1]
        if self.whiten:
            advantage = advantages.whiten(advantage, mask)
        return common.make_batch(
            experience,
            masking.weights(mask, mode=self.aggregation),
            advantages=advantage,
            value_targets=targets,
            old_values=values[:, :-1],
        )

    def loss(self, outputs: Outputs, batch: Batch, context: Context):
        """Policy, value and entropy terms, weighted."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        advantage, clips = batch["advantages"], common.clips(self)
        policy = losses.ppo_clip(outputs.logp, behavior, advantage, **clips)
        value = losses.value_loss(
            outputs.values[:, :-1],
            batch["value_targets"],
            old_values=None if self.value_clip is None else batch["old_values"],
            clip=self.value_clip,
        )
        loss = policy + self.value_coefficient * value
        if self.entropy is not None:
            loss += self.entropy.term(outputs)
        mask, weights = batch["mask"], batch["weights"]
        clipped = common.ppo_clipped(outputs.logp, behavior, advantage, **clips)
        metrics = {
            "clip_fraction": ((clipped * mask).sum(), mask.sum()),
            "value_loss": ((value * mask).sum(), mask.sum()),
        }
        return masking.weighted_sum(loss, weights), metrics
