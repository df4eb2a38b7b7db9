"""Distributions as functions of arrays."""

from polgrad.distributions.tilts import filtered, fit_tilt, moment_tilt, normalize, tilt

__all__ = [
    "filtered",
    "fit_tilt",
    "moment_tilt",
    "normalize",
    "tilt",
]
