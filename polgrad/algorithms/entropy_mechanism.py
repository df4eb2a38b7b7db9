"""Clip-Cov and KL-Cov (Cui et al. 2025, arXiv:2505.22617): GRPO that preserves entropy."""

import dataclasses

from polgrad.algorithms import surrogates
from polgrad.algorithms.policy_gradient import GroupRelative


@dataclasses.dataclass(frozen=True)
class ClipCov(surrogates.ClipCov, GroupRelative):
    """GRPO that masks tokens drawn from a band of high covariance."""


@dataclasses.dataclass(frozen=True)
class KLCov(surrogates.KLCov, GroupRelative):
    """GRPO without a ratio clip and with a KL penalty on the tokens of the largest covariance."""
