"""Surrogates of tokens: REINFORCE, PPO's clip and its kin."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.surrogates.base import Aggregation, TokenSurrogate
from polgrad.ratios import importance_ratio, log_ratio


@dataclasses.dataclass(frozen=True)
class LogLikelihood(TokenSurrogate):
    """REINFORCE's loss, which has no importance ratio (Williams 1992; `losses.reinforce`).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
    """

    aggregation: Aggregation = "sequence_sum"

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.reinforce(logp, advantages)


@dataclasses.dataclass(frozen=True)
class PPOClip(TokenSurrogate):
    """PPO's clipped token loss (Schulman et al. 2017, arXiv:1707.06347; `losses.ppo_clip`).

    Attributes:
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      dual_clip: bound on the loss of negative advantages, in units of -A; above 1. None for no
        bound.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high", "dual_clip")

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """PPO's clipped token loss."""
        return losses.ppo_clip(logp, behavior_logp, advantages, **common.clips(self))

    def clipped(self, logp, behavior_logp, advantages, mask):
        """The tokens whose gradient PPO's clip or the dual clip sets to 0."""
        return common.ppo_clipped(logp, behavior_logp, advantages, **common.clips(self))


@dataclasses.dataclass(frozen=True)
class GSPO(TokenSurrogate):
    """One clipped ratio for all tokens of a sequence (Zheng et al. 2025, arXiv:2507.18071).

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
class CISPO(TokenSurrogate):
    """REINFORCE weighted by a capped, stopped ratio (MiniMax 2025, arXiv:2506.13585).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
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
class SAPO(TokenSurrogate):
    """A soft gate in place of the clip (Gao et al. 2025, arXiv:2511.20347).

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
