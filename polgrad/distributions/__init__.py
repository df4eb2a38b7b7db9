"""Distributions as functions of arrays of their parameters, which know no network and no sampler.

Categorical, given by logits (categorical.py)
  log_softmax, entropy            exact, also beside excluded outcomes
  token_statistics                log-probability and entropy at given tokens
  geometric_mixture               of two distributions
"""

from polgrad.distributions.categorical import (
    entropy,
    geometric_mixture,
    log_softmax,
    token_statistics,
)

__all__ = [
    "entropy",
    "geometric_mixture",
    "log_softmax",
    "token_statistics",
]
