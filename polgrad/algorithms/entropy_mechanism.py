"""Clip-Cov and KL-Cov (Cui et al. 2025, arXiv:2505.22617): GRPO that spares its entropy."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from polgrad import losses, masking, selection
from polgrad.algorithms import common
from polgrad.algorithms.grpo import GRPO


def sample_noise(key, prompt_ids, sample_ids, length: int):
    """Uniform numbers `[B, T]` addressed by prompt and sample, so no order or split moves them."""

    def row(prompt, sample):
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(key, prompt), sample), (length,)
        )

    return jax.vmap(row)(prompt_ids, sample_ids)


@dataclasses.dataclass(frozen=True)
class ClipCov(GRPO):
    """Tokens drawn from a band of high covariance leave the gradient.

    Attributes:
      fraction: share of the tokens that leave.
      low: lower end of the band of covariances.
      high: upper end of the band.
    """

    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"
    clip_low: float = 1.0
    clip_high: float = 1.0
    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def build(self, context):
        """GRPO's functions, with a selection on the whole batch before each update."""

        def select(outputs, batch, key):
            mask = (batch["weights"] > 0).astype(outputs.logp.dtype)
            behavior = common.behavior_logp(outputs, batch, context.on_policy)
            ratio = jnp.exp(outputs.logp - behavior)
            positive = batch["advantages"] > 0
            clipped = jnp.where(positive, ratio > 1 + self.clip_high, ratio < 1 - self.clip_low)
            selected = selection.covariance_band(
                outputs.logp,
                batch["advantages"],
                mask,
                sample_noise(key, batch["prompt_ids"], batch["sample_ids"], mask.shape[1]),
                fraction=self.fraction,
                low=self.low,
                high=self.high,
                exclude=clipped,
            )
            return {**batch, "selected": selected}

        return super().build(context)._replace(select=select)

    def loss(self, outputs, batch, context):
        """Clip-Cov's token loss in place of the surrogate."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        loss = losses.clip_cov(
            outputs.logp,
            behavior,
            batch["advantages"],
            batch["selected"],
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        return _with_metrics(self, loss, outputs, batch)


@dataclasses.dataclass(frozen=True)
class KLCov(GRPO):
    """Tokens of the largest covariance are held by a KL penalty; there is no ratio clip.

    Attributes:
      fraction: share of the tokens that are held.
      penalty: strength of the KL to the behaviour policy on them.
    """

    aggregation: Literal["sequence", "token", "sequence_sum", "constant"] = "token"
    fraction: float = 2e-4
    penalty: float = 1.0

    def build(self, context):
        """GRPO's functions, with a selection on the whole batch before each update."""

        def select(outputs, batch, key):
            mask = (batch["weights"] > 0).astype(outputs.logp.dtype)
            selected = selection.covariance_top(
                outputs.logp, batch["advantages"], mask, fraction=self.fraction
            )
            return {**batch, "selected": selected}

        return super().build(context)._replace(select=select)

    def loss(self, outputs, batch, context):
        """KL-Cov's token loss in place of the surrogate."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        loss = losses.kl_cov(
            outputs.logp,
            behavior,
            batch["advantages"],
            batch["selected"],
            kl_coefficient=self.penalty,
        )
        return _with_metrics(self, loss, outputs, batch)


def _with_metrics(settings, loss, outputs, batch):
    mask, selected = batch["mask"], batch["selected"]
    if settings.kl_coefficient:
        loss += settings.kl_coefficient * losses.kl_penalty(outputs.logp, batch["reference_logp"])
    metrics = {
        **common.token_metrics(outputs, batch),
        "clip_fraction": ((selected * mask).sum(), mask.sum()),
    }
    return masking.weighted_sum(loss, batch["weights"]), metrics
