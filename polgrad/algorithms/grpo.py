"""GRPO and its kin: a group-relative advantage, a token surrogate, an aggregation.

Each member of the family is the base with other defaults or one other function.
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import advantages, diagnostics, losses, masking
from polgrad.algorithms import common
from polgrad.training.types import Algorithm, Batch, Context, Outputs


@dataclasses.dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).

    Attributes:
      scale: divide the centred rewards by the deviation of the `group`, the `batch`, or nothing.
      aggregation: how token losses become one number (see `masking.weights`).
      clip_low: ratios below 1 - clip_low are clipped.
      clip_high: ratios above 1 + clip_high are clipped.
      dual_clip: bound on the loss of negative advantages, in units of -A; above 1.
      kl_coefficient: strength of the KL to the initial policy, in the loss.
      entropy_coefficient: strength of an entropy bonus.
      drop_uniform_groups: leave out groups whose rewards are all equal (DAPO's filter).
      mask_truncated: leave out samples that ran into max_tokens.
      overlong_buffer: tokens before max_tokens over which a penalty grows to 1; 0 switches it off.
      sampler_correction: cap of the truncated importance weight between trainer and sampler, for
        on-policy runs; 0 switches it off (off-policy the ratio itself corrects).
    """

    has_ratio: ClassVar[bool] = True
    """Whether `surrogate` corrects for samples of an earlier policy."""

    scale: Literal["group", "batch", "none"] = "group"
    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "sequence"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    drop_uniform_groups: bool = False
    mask_truncated: bool = False
    overlong_buffer: int = 0
    sampler_correction: float = 0.0

    def advantages(self, rewards: Float[Array, "P G"], valid: Array) -> Float[Array, "P G"]:
        """Rewards of the groups to advantages."""
        return advantages.group_relative(rewards, scale=self.scale, valid=valid)

    def surrogate(
        self,
        logp: Float[Array, "B T"],
        behavior_logp: Float[Array, "B T"],
        advantages: Float[Array, "B 1"],
        mask: Float[Array, "B T"],
    ) -> Float[Array, "B T"]:
        """The token loss."""
        return losses.ppo_clip(
            logp,
            behavior_logp,
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )

    def build(self, context: Context) -> Algorithm:
        """The four functions for a run of this size."""
        requires = set()
        if self.kl_coefficient:
            requires.add("reference")
        if self.entropy_coefficient:
            requires.add("entropy")

        def prepare(state, experience, key):
            return state, *self.prepare(experience, context)

        def loss(outputs, batch, key):
            return self.loss(outputs, batch, context)

        return Algorithm(
            prepare=prepare, loss=loss, requires=frozenset(requires), reuse=self.has_ratio
        )

    def prepare(self, experience: Batch, context: Context) -> tuple[Batch, dict]:
        """Advantages and weights, both from the whole rollout."""
        rewards = experience["rewards"]
        if self.overlong_buffer:
            rewards += advantages.overlong_penalty(
                experience["completion_lengths"],
                max_length=context.max_tokens,
                buffer=self.overlong_buffer,
            )
        rewards = common.by_group(rewards, context.group_size)
        valid = common.by_group(experience["valid"], context.group_size)
        mask = common.counted(experience)
        uniform = ~advantages.dynamic_sampling_filter(rewards, valid=valid)
        if self.drop_uniform_groups:
            mask *= jnp.repeat(~uniform, context.group_size)[:, None]
        if self.mask_truncated:
            mask *= experience["stopped"][:, None]
        length = context.max_tokens if self.aggregation == "constant" else None
        batch = common.make_batch(
            experience,
            masking.weights(mask, mode=self.aggregation, length=length),
            advantages=self.advantages(rewards, valid).reshape(-1, 1),
        )
        return batch, {"uniform_groups": uniform.mean()}

    def loss(self, outputs: Outputs, batch: Batch, context: Context) -> tuple[Array, dict]:
        """Surrogate, KL and entropy terms, weighted."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        mask = batch["mask"]
        loss = self.surrogate(outputs.logp, behavior, batch["advantages"], mask)
        if self.sampler_correction and context.on_policy:
            loss *= losses.truncated_importance_weights(
                outputs.logp, batch["sampler_logp"], mask, cap=self.sampler_correction
            )
        if self.kl_coefficient:
            loss += self.kl_coefficient * losses.kl_penalty(outputs.logp, batch["reference_logp"])
        if self.entropy_coefficient:
            loss -= self.entropy_coefficient * outputs.entropy
        clipped = diagnostics.clip_fraction(
            outputs.logp,
            behavior,
            batch["advantages"],
            mask,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        metrics = {
            **common.token_metrics(outputs, batch),
            "clip_fraction": (clipped * mask.sum(), mask.sum()),
        }
        return masking.weighted_sum(loss, batch["weights"]), metrics


@dataclasses.dataclass(frozen=True)
class DrGRPO(GRPO):
    """Dr. GRPO: no division by deviation or length (Liu et al. 2025, arXiv:2503.20783)."""

    scale: Literal["group", "batch", "none"] = "none"
    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "constant"


@dataclasses.dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO: token mean, higher upper clip, no uniform groups (Yu et al. 2025, arXiv:2503.14476)."""

    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"
    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    drop_uniform_groups: bool = True


@dataclasses.dataclass(frozen=True)
class GSPO(GRPO):
    """GSPO: one ratio a sequence (Zheng et al. 2025, arXiv:2507.18071)."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token form; with one advantage a sequence it equals the sequence form."""
        return losses.gspo_token(
            logp, behavior_logp, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high
        )


@dataclasses.dataclass(frozen=True)
class CISPO(GRPO):
    """CISPO: a capped, stopped ratio (MiniMax 2025, arXiv:2506.13585)."""

    scale: Literal["group", "batch", "none"] = "batch"
    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"
    cap_low: float = 0.0
    cap_high: float = 5.0

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.cispo(
            logp, behavior_logp, advantages, cap_low=self.cap_low, cap_high=self.cap_high
        )


@dataclasses.dataclass(frozen=True)
class SAPO(GRPO):
    """SAPO: a soft gate in place of the clip (Gao et al. 2025, arXiv:2511.20347)."""

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.sapo(
            logp,
            behavior_logp,
            advantages,
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
        )
