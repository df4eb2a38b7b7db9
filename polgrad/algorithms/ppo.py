"""PPO with a critic (Schulman et al. 2017, arXiv:1707.06347): advantages for each token."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from polgrad import advantages, diagnostics, divergences, losses, masking
from polgrad.algorithms import common
from polgrad.training.types import Algorithm, Batch, Context, Outputs


@dataclasses.dataclass(frozen=True)
class PPO:
    """Clipped surrogate, generalised advantages, clipped value loss.

    The outcome reward is paid at the last token; the KL to the initial policy, if any, is paid
    in the reward of every token, with the k1 estimator (whose gradient there is the right one).

    Attributes:
      aggregation: how token losses become one number.
      discount: of rewards, a token.
      lambda_: of the advantage's trace.
      clip_low: ratios below 1 - clip_low are clipped.
      clip_high: ratios above 1 + clip_high are clipped.
      value_coefficient: weight of the value loss.
      value_clip: how far a value may move from its old estimate in one rollout; 0 lets it free.
      kl_coefficient: strength of the KL in the reward.
      entropy_coefficient: strength of an entropy bonus.
      whiten: give the advantages mean 0 and variance 1 over the rollout's tokens.
    """

    aggregation: Literal["token", "sequence", "sequence_sum"] = "token"
    discount: float = 1.0
    lambda_: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_coefficient: float = 0.5
    value_clip: float = 0.2
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    whiten: bool = True

    def build(self, context: Context) -> Algorithm:
        """The four functions for a run of this size."""
        requires = {"values"}
        if self.kl_coefficient:
            requires.add("reference")
        if self.entropy_coefficient:
            requires.add("entropy")

        def prepare(state, experience, key):
            return state, self.prepare(experience), {}

        def loss(outputs, batch, key):
            return self.loss(outputs, batch, context)

        return Algorithm(prepare=prepare, loss=loss, requires=frozenset(requires))

    def prepare(self, experience: Batch) -> Batch:
        """Token rewards, advantages, value targets."""
        mask = common.counted(experience)
        last = jnp.arange(mask.shape[1]) == experience["completion_lengths"][:, None] - 1
        outcome = jnp.where(experience["valid"], experience["rewards"], 0.0)
        rewards = outcome[:, None] * last
        if self.kl_coefficient:
            kl = divergences.kl_estimate(
                experience["behavior_logp"], experience["reference_logp"], kind="k1"
            )
            rewards -= self.kl_coefficient * kl * mask
        values = experience["values"]
        # A completion ends at its last token whether it stopped or was cut: nothing follows it
        # that could be rewarded.
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
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        policy = losses.ppo_clip(outputs.logp, behavior, batch["advantages"], **clips)
        value = losses.value_loss(
            outputs.values[:, :-1],
            batch["value_targets"],
            old_values=batch["old_values"] if self.value_clip else None,
            clip=self.value_clip or None,
        )
        loss = policy + self.value_coefficient * value
        if self.entropy_coefficient:
            loss -= self.entropy_coefficient * outputs.entropy
        mask, weights = batch["mask"], batch["weights"]
        clipped = diagnostics.clip_fraction(
            outputs.logp, behavior, batch["advantages"], mask, **clips
        )
        metrics = {
            **common.token_metrics(outputs, batch),
            "clip_fraction": (clipped * mask.sum(), mask.sum()),
            "value_loss": ((value * mask).sum(), mask.sum()),
        }
        return masking.weighted_sum(loss, weights), metrics
