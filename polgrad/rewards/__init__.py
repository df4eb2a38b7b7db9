"""Rewards: functions of a prompt, a completion and an example that give a `Score`.

Nothing here imports jax: the worker processes that run rewards import this package.
"""

from polgrad.rewards.score import Score

__all__ = ["Score"]
