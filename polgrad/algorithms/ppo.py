"""PPO with a critic (Schulman et al. 2017, arXiv:1707.06347): advantages for each token."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from polgrad import advantages, losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Batch, Context, Initial, Needs, Outputs


@dataclasses.dataclass(frozen=True)
class PPO:
    """Clipped surrogate, generalised advantages, clipped value loss.

    The outcome reward is added at the last token that counts. The KL to the initial policy, if any,
    is subtracted from the reward of every token, with the estimator k1.

    Attributes:
      aggregation: how token losses become one number.
      discount: discount factor a token (gamma), in [0, 1].
      lambda_: lambda of generalised advantage estimation, in [0, 1].
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      value_coefficient: weight of the value loss, non-negative.
      value_clip: how far a value may move from its estimate at the rollout, in units of the return,
        non-negative; 0 switches the value clip off.
      reference_kl: strength of the KL to the initial policy, in the reward, non-negative; 0 switches
        the KL off.
      entropy_coefficient: strength of an entropy bonus, non-negative; 0 switches the bonus off.
      whiten: give the advantages mean 0 and variance 1 over the rollout's tokens.
    """

    aggregation: Literal["token", "sequence", "sequence_sum"] = "token"
    discount: float = 1.0
    lambda_: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_coefficient: float = 0.5
    value_clip: float = 0.2
    reference_kl: float = 0.0
    entropy_coefficient: float = 0.0
    whiten: bool = True

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        for name in ("discount", "lambda_"):
            in_range(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("value_coefficient", "value_clip", "reference_kl", "entropy_coefficient"):
            in_range(name, getattr(self, name), low=0.0)

        def prepare(state, experience, key):
            return state, self.prepare(experience), {}

        def loss(outputs, batch):
            return self.loss(outputs, batch, context)

        inert = common.changed(self, ("clip_low", "clip_high", "value_clip"))
        return Algorithm(
            prepare=prepare,
            loss=loss,
            policies={"reference": Initial()} if common.is_on(self.reference_kl) else {},
            needs=Needs(entropy=common.is_on(self.entropy_coefficient), values=True),
            warnings=common.inert_on_policy(inert) if context.on_policy else (),
        )

    def prepare(self, experience: Batch) -> Batch:
        """Token rewards, advantages, value targets."""
        mask = common.counted(experience)
        rewards = advantages.place_at_last(experience["rewards"], mask)
        if common.is_on(self.reference_kl):
            rewards += advantages.kl_token_rewards(
                experience["behavior_logp"],
                experience["reference_logp"],
                mask,
                beta=self.reference_kl,
            )
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
            old_values=batch["old_values"] if common.is_on(self.value_clip) else None,
            clip=self.value_clip if common.is_on(self.value_clip) else None,
        )
        loss = policy + self.value_coefficient * value
        if common.is_on(self.entropy_coefficient):
            loss -= self.entropy_coefficient * outputs.entropy
        mask, weights = batch["mask"], batch["weights"]
        clipped = common.ppo_clipped(outputs.logp, behavior, advantage, **clips)
        metrics = {
            "clip_fraction": ((clipped * mask).sum(), mask.sum()),
            "value_loss": ((value * mask).sum(), mask.sum()),
        }
        return masking.weighted_sum(loss, weights), metrics
