"""GRPO and its kin: a group-relative advantage, and a token loss that limits the ratio.

Each member of the family adds its own token loss to `GroupRelative`, or is GRPO with other
defaults.
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.policy_gradient import Aggregation, GroupRelative, RatioClip
from polgrad.ratios import importance_ratio, log_ratio


@dataclasses.dataclass(frozen=True)
class GRPO(GroupRelative, RatioClip):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).

    The KL of the paper is `reference_kl=0.04, reference_kl_form="k3"`.
    """


@dataclasses.dataclass(frozen=True)
class DrGRPO(GRPO):
    """Dr. GRPO: no division by deviation or length (Liu et al. 2025, arXiv:2503.20783)."""

    scale: Literal["group", "batch", "none"] = "none"
    aggregation: Aggregation = "constant"


@dataclasses.dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO: token mean, higher upper clip, overlong penalty (Yu et al. 2025, arXiv:2503.14476).

    Groups whose rewards are all equal are masked; the paper samples further prompts in their place.
    """

    aggregation: Aggregation = "token"
    clip_high: float = 0.28
    drop_uniform_groups: bool = True
    overlong_buffer: int | None = None


@dataclasses.dataclass(frozen=True)
class GSPO(GroupRelative):
    """GSPO: one ratio a sequence (Zheng et al. 2025, arXiv:2507.18071).

    Attributes:
      clip_low: length-normalised sequence ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: length-normalised sequence ratios above 1 + clip_high are clipped;
        non-negative.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token form; with one advantage a sequence it equals the sequence form."""
        return losses.gspo_token(
            logp, behavior_logp, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high
        )

    def clipped(self, logp, behavior_logp, advantages, mask):
        """The tokens of the sequences whose ratio is outside the range on the gaining side."""
        mean = masking.masked_mean(log_ratio(logp, behavior_logp), mask, axis=-1)
        ratio = jnp.exp(mean)[:, None]
        outside = common.outside(
            ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
        return jnp.broadcast_to(outside, logp.shape)


@dataclasses.dataclass(frozen=True)
class CISPO(GroupRelative):
    """CISPO: REINFORCE weighted by a capped, stopped ratio (MiniMax 2025, arXiv:2506.13585).

    Every token keeps a gradient. ScaleRL (Khatri et al. 2025, arXiv:2510.13786) recommends
    `scale="batch"` with the same cap.

    Attributes:
      cap_low: smallest ratio that a token is weighted with, non-negative.
      cap_high: largest ratio that a token is weighted with.
    """

    aggregation: Aggregation = "token"
    cap_low: float = 0.0
    cap_high: float = 5.0

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.cispo(
            logp, behavior_logp, advantages, cap_low=self.cap_low, cap_high=self.cap_high
        )

    def inert(self):
        """The caps that were changed, unless they exclude a ratio of 1."""
        caps = common.changed(self, ("cap_low", "cap_high"))
        return caps if common.holds_one((self.cap_low, self.cap_high)) else ()

    def metrics(self, outputs, batch, behavior_logp):
        """`capped_fraction`: the share of tokens whose ratio the caps change."""
        ratio, mask = importance_ratio(outputs.logp, behavior_logp), batch["mask"]
        capped = (ratio < self.cap_low) | (ratio > self.cap_high)
        return {"capped_fraction": ((capped * mask).sum(), mask.sum())}


@dataclasses.dataclass(frozen=True)
class SAPO(GroupRelative):
    """SAPO: a soft gate in place of the clip (Gao et al. 2025, arXiv:2511.20347).

    Attributes:
      tau_positive: steepness of the gate where the advantage is above 0; positive.
      tau_negative: steepness of the gate where the advantage is below 0; positive.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("tau_positive", "tau_negative")

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
