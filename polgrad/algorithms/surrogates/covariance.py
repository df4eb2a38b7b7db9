"""Surrogates that choose tokens by their covariance (Cui et al. 2025, arXiv:2505.22617).

Tokens whose log-probability and advantage vary together lower the entropy most. Clip-Cov masks some
of these tokens; KL-Cov adds a KL penalty on them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from polgrad import losses, selection
from polgrad.algorithms import common
from polgrad.algorithms.surrogates.base import Aggregation, TokenSurrogate


def sample_noise(key, prompt_ids, sample_ids, length: int):
    """Uniform numbers `[B, T]` addressed by prompt and sample, so no order or split moves them."""

    def row(prompt, sample):
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(key, prompt), sample), (length,)
        )

    return jax.vmap(row)(prompt_ids, sample_ids)


@dataclasses.dataclass(frozen=True)
class ClipCov(TokenSurrogate):
    """PPO's clip that masks tokens drawn from a band of high covariance (`losses.clip_cov`).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      fraction: share of the tokens that are masked, in (0, 1].
      low: lower end of the band of covariances.
      high: upper end of the band.
    """

    selects: ClassVar[bool] = True
    ratio_settings: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    aggregation: Aggregation = "token"
    clip_low: float = 1.0
    clip_high: float = 1.0
    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def select(self, outputs, batch, behavior_logp, key):
        """The tokens that are masked."""
        mask = (batch["weights"] > 0).astype(outputs.logp.dtype)
        selected = selection.covariance_band(
            outputs.logp,
            batch["advantages"],
            mask,
            sample_noise(key, batch["prompt_ids"], batch["sample_ids"], mask.shape[1]),
            fraction=self.fraction,
            low=self.low,
            high=self.high,
            exclude=self.clipped(outputs.logp, behavior_logp, batch["advantages"], mask),
        )
        return {**batch, "selected": selected}

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The loss of the tokens that are not selected."""
        return losses.ppo_clip(logp, behavior_logp, advantages, **common.clips(self))

    def clipped(self, logp, behavior_logp, advantages, mask):
        """The tokens that PPO's clip stops."""
        return common.ppo_clipped(logp, behavior_logp, advantages, **common.clips(self))

    def batch_loss(self, outputs, batch, behavior_logp):
        """`losses.clip_cov` with the tokens selected for this update."""
        return losses.clip_cov(
            outputs.logp,
            behavior_logp,
            batch["advantages"],
            batch["selected"],
            **common.clips(self),
        )

    def metrics(self, outputs, batch, behavior_logp):
        """`clip_fraction` and `selected_fraction`: tokens without gradient, by the two causes."""
        return super().metrics(outputs, batch, behavior_logp) | selected_fraction(batch)


@dataclasses.dataclass(frozen=True)
class KLCov(TokenSurrogate):
    """No ratio clip, and a KL penalty on the tokens of the largest covariance (`losses.kl_cov`).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
      fraction: share of the tokens that are penalised, in (0, 1].
      kl_coefficient: strength of the KL to the behaviour policy on these tokens, non-negative (verl's
        `ppo_kl_coef`). The KL to the initial policy is `kl`.
    """

    selects: ClassVar[bool] = True
    ratio_settings: ClassVar[tuple[str, ...]] = ("fraction", "kl_coefficient")

    aggregation: Aggregation = "token"
    fraction: float = 2e-4
    kl_coefficient: float = 1.0

    def select(self, outputs, batch, behavior_logp, key):
        """The tokens with the penalty."""
        mask = (batch["weights"] > 0).astype(outputs.logp.dtype)
        selected = selection.covariance_top(
            outputs.logp, batch["advantages"], mask, fraction=self.fraction
        )
        return {**batch, "selected": selected}

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The loss of the tokens that are not selected."""
        nothing = jnp.zeros(logp.shape, bool)
        return losses.kl_cov(logp, behavior_logp, advantages, nothing)

    def batch_loss(self, outputs, batch, behavior_logp):
        """`losses.kl_cov` with the tokens selected for this update."""
        return losses.kl_cov(
            outputs.logp,
            behavior_logp,
            batch["advantages"],
            batch["selected"],
            kl_coefficient=self.kl_coefficient,
        )

    def inert(self):
        """Both settings at any value: without them there is nothing left of KL-Cov."""
        return self.ratio_settings

    def metrics(self, outputs, batch, behavior_logp):
        """`selected_fraction`: the share of tokens with the KL penalty."""
        return selected_fraction(batch)


def selected_fraction(batch) -> dict:
    """The share of a batch's tokens that the selection chose, as a metric."""
    mask = batch["mask"]
    return {"selected_fraction": ((batch["selected"] * mask).sum(), mask.sum())}
