"""Which tokens count."""

from polgrad.selection.tokens import (
    covariance_band,
    covariance_top,
    high_entropy,
    off_policy_sequence_mask,
    rejection_mask,
    token_covariance,
)

__all__ = [
    "covariance_band",
    "covariance_top",
    "high_entropy",
    "off_policy_sequence_mask",
    "rejection_mask",
    "token_covariance",
]
