"""Agents for control: each file is one algorithm, to be read from top to bottom and copied.

ppo    proximal policy optimisation
"""

from polgrad.agents import ppo
from polgrad.agents.ppo import PPO

__all__ = ["PPO", "ppo"]
