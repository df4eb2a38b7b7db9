"""NFT (Chen et al. 2025, arXiv:2505.18116): likelihood of right answers, and of wrong ones too."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from polgrad import advantages, losses, masking
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Context


@dataclasses.dataclass(frozen=True)
class NFT:
    """Negative-aware fine-tuning; rewards are 0 or 1.

    Attributes:
      like: weight of a question: `dr_grpo` and `grpo` make it equal to those on-policy.
      epsilon: smallest likelihood ratio of the implicit negative policy, in (0, 1].
      negative_weight: weight of wrong answers, non-negative; 0 is rejection fine-tuning.
      aggregation: how token losses become one number (see `masking.weights`).
    """

    like: Literal["dr_grpo", "grpo", "none"] = "dr_grpo"
    epsilon: float = 1.0
    negative_weight: float = 1.0
    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        if self.like != "none":
            common.need_group(self, context, 2)

        def prepare(state, experience, key):
            rewards = common.by_group(experience["rewards"], context.group_size)
            valid = common.by_group(experience["valid"], context.group_size)
            rate = advantages.success_rate(rewards, valid=valid)
            weight = losses.nft_prompt_weight(rate, like=self.like)
            length = context.max_tokens if self.aggregation == "constant" else None
            batch = common.make_batch(
                experience,
                masking.weights(common.counted(experience), mode=self.aggregation, length=length),
                rewards=experience["rewards"],
                success_rate=jnp.repeat(rate, context.group_size),
                question_weight=jnp.repeat(weight, context.group_size),
            )
            return state, batch, {"uniform_groups": (weight == 0).mean()}

        def loss(outputs, batch):
            loss = losses.nft(
                outputs.logp,
                common.behavior_logp(outputs, batch, context.on_policy),
                batch["rewards"],
                batch["success_rate"],
                epsilon=self.epsilon,
                negative_weight=self.negative_weight,
            )
            loss *= batch["question_weight"][:, None]
            return masking.weighted_sum(loss, batch["weights"]), {}

        inert = common.changed(self, ("epsilon",))
        return Algorithm(
            prepare=prepare,
            loss=loss,
            warnings=common.inert_on_policy(inert) if context.on_policy else (),
        )
