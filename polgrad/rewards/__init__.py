"""Rewards: functions of a prompt, a completion and an example that give a `Score`.

Nothing here imports jax: the worker processes that run rewards import this package.
"""

from polgrad.rewards.compose import RewardSpec, resolve
from polgrad.rewards.pool import Canary, RewardFailure, RewardPool, canary_set, interruptions
from polgrad.rewards.score import Score

__all__ = [
    "Canary",
    "RewardFailure",
    "RewardPool",
    "RewardSpec",
    "Score",
    "canary_set",
    "interruptions",
    "resolve",
]
