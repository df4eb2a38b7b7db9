"""Clip-Cov and KL-Cov (Cui et al. 2025, arXiv:2505.22617): GRPO that preserves entropy."""

import dataclasses

from polgrad.algorithms import covariance
from polgrad.algorithms.policy_gradient import GroupRelative


@dataclasses.dataclass(frozen=True)
class ClipCov(covariance.ClipCov, GroupRelative):
    """GRPO that masks tokens drawn from a band of high covariance.

    Attributes:
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      fraction: share of the tokens that are masked, in (0, 1].
      low: lower end of the band of covariances.
      high: upper end of the band.
    """


@dataclasses.dataclass(frozen=True)
class KLCov(covariance.KLCov, GroupRelative):
    """GRPO without a ratio clip and with a KL penalty on the tokens of the largest covariance.

    Attributes:
      fraction: share of the tokens that are penalised, in (0, 1].
      kl_coefficient: strength of the KL to the behaviour policy on these tokens, non-negative (verl's
        `ppo_kl_coef`). The KL to the initial policy is `kl`.
    """
