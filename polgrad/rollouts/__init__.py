"""Rollouts: completions sampled from a language policy, with a cache, in one compiled program."""

from polgrad.rollouts.fixed import generate_fixed
from polgrad.rollouts.prompts import pad_prompts
from polgrad.rollouts.sampler import generate
from polgrad.rollouts.sampling import Sampling, draw, token_uniforms
from polgrad.rollouts.types import Rollout

__all__ = [
    "Rollout",
    "Sampling",
    "draw",
    "generate",
    "generate_fixed",
    "pad_prompts",
    "token_uniforms",
]
