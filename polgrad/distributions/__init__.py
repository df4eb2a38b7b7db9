"""Distributions as functions of arrays: no network, no key, no settings.

Draws with given noise (draws.py)
  inverse_cdf
Targets of `losses.f_dpg` (tilts.py)
  tilt, filtered, moment_tilt     log scores of a target
  fit_tilt                        a tilt with given moments
  normalize                       log score - log Z
"""

from polgrad.distributions.draws import inverse_cdf
from polgrad.distributions.tilts import filtered, fit_tilt, moment_tilt, normalize, tilt

__all__ = [
    "filtered",
    "fit_tilt",
    "inverse_cdf",
    "moment_tilt",
    "normalize",
    "tilt",
]
