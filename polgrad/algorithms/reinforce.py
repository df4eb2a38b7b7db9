"""REINFORCE and its baselines: no limit on the ratio, or PPO's clip with batch statistics."""

import dataclasses

from polgrad.algorithms import estimators
from polgrad.algorithms.policy_gradient import OnSamples
from polgrad.algorithms.surrogates import Aggregation, LogLikelihood, PPOClip
from polgrad.algorithms.terms import KL, RewardKL


@dataclasses.dataclass(frozen=True)
class Reinforce(LogLikelihood, estimators.Baseline, OnSamples):
    """REINFORCE with the mean of the batch as baseline, or none (Williams 1992)."""


@dataclasses.dataclass(frozen=True)
class RLOO(LogLikelihood, estimators.LeaveOneOut, OnSamples):
    """REINFORCE, leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)."""

    kl: RewardKL | KL | None = None


@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlus(PPOClip, estimators.WhitenedReturns, OnSamples):
    """REINFORCE++: returns whitened over all tokens of the batch (Hu 2025, arXiv:2501.03262)."""

    aggregation: Aggregation = "token"
    kl: RewardKL | KL | None = None
