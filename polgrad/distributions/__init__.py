"""Distributions as functions of arrays: no network, no key, no settings.

Categorical, given by logits (categorical.py)
  log_softmax, entropy            exact, also beside excluded outcomes
  token_statistics                log-probability and entropy at given tokens
  geometric_mixture               of two distributions
Draws with given noise (draws.py)
  inverse_cdf
Targets of `losses.f_dpg` (tilts.py)
  tilt, filtered, moment_tilt     log scores of a target
  fit_tilt                        a tilt with given moments
  normalize                       log score - log Z
"""

from polgrad.distributions.categorical import (
    entropy,
    geometric_mixture,
    log_softmax,
    token_statistics,
)
from polgrad.distributions.draws import inverse_cdf
from polgrad.distributions.tilts import filtered, fit_tilt, moment_tilt, normalize, tilt

__all__ = [
    "entropy",
    "filtered",
    "fit_tilt",
    "geometric_mixture",
    "inverse_cdf",
    "log_softmax",
    "moment_tilt",
    "normalize",
    "tilt",
    "token_statistics",
]
