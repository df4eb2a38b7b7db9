"""Surrogates: log-probabilities and advantages in, one loss for each token or answer out.

Each is a part of `algorithms.PolicyGradient`, and a base of the algorithms that use it. A surrogate
of your own is a subclass of `TokenSurrogate` or `SequenceSurrogate`.
"""

from polgrad.algorithms.surrogates.base import (
    ARGUMENTS,
    Aggregation,
    SequenceSurrogate,
    Surrogate,
    TokenSurrogate,
)
from polgrad.algorithms.surrogates.covariance import ClipCov, KLCov
from polgrad.algorithms.surrogates.sequences import GMPO, LUSPO, PPOClipSequence, SequenceLoss
from polgrad.algorithms.surrogates.tokens import CISPO, GSPO, SAPO, LogLikelihood, PPOClip

__all__ = [
    "ARGUMENTS",
    "Aggregation",
    "CISPO",
    "ClipCov",
    "GMPO",
    "GSPO",
    "KLCov",
    "LUSPO",
    "LogLikelihood",
    "PPOClip",
    "PPOClipSequence",
    "SAPO",
    "SequenceLoss",
    "SequenceSurrogate",
    "Surrogate",
    "TokenSurrogate",
]
