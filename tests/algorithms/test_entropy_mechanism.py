"""Clip-Cov and KL-Cov by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand

A = 0.5 / (math.sqrt(0.5) + 1e-6)
B = 1.0 / (math.sqrt(2.0) + 1e-6)
BY_TOKEN = [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]]
PREPARED = {"advantages": [[A], [-A], [-B], [B]], "weights": BY_TOKEN}
# The advantages are +-0.707, of mean 0 over the tokens. log p less its mean, -0.776, times A:
# 0.345, -0.431; 0.431; -0.345, 0.016; 0.188.

HAND_COMPUTED = {
    # -min(r A, clip(r, 0, 2) A), the mean over tokens. No covariance is in the band from 1 to 5.
    "clip_cov": Numbers(
        prepared=PREPARED,
        loss=(-A * (1.5 + 0.5) + A * 0.5 + B * (1.5 + 0.9) - B * 2) / 6,
        gradient=[
            [-A * 1.5 / 6, -A * 0.5 / 6],
            [A * 0.5 / 6, 0],
            [B * 1.5 / 6, B * 0.9 / 6],
            [0, 0],
        ],
    ),
    # In the band from 0.4 to 0.5 is one token, that of answer 1. It has no loss, and still counts.
    "clip_cov, a lower band": Numbers(
        settings={"low": 0.4, "high": 0.5},
        prepared=PREPARED,
        loss=(-A * (1.5 + 0.5) + B * (1.5 + 0.9) - B * 2) / 6,
        gradient=[[-A * 1.5 / 6, -A * 0.5 / 6], [0, 0], [B * 1.5 / 6, B * 0.9 / 6], [0, 0]],
    ),
    # Both tokens with a covariance between 0.1 and 0.4, of which the clip has stopped one already.
    "clip_cov, a clipped token": Numbers(
        settings={"low": 0.1, "high": 0.4, "fraction": 0.5},
        prepared=PREPARED,
        loss=(-A * 0.5 + A * 0.5 + B * (1.5 + 0.9) - B * 2) / 6,
        gradient=[[0, -A * 0.5 / 6], [A * 0.5 / 6, 0], [B * 1.5 / 6, B * 0.9 / 6], [0, 0]],
    ),
    # -r A, plus |log r| at the one token of the largest covariance: r = 0.5.
    "kl_cov": Numbers(
        prepared=PREPARED,
        loss=(-A * (1.5 + 0.5) + A * 0.5 + math.log(2) + B * (1.5 + 0.9) - B * 6) / 6,
        gradient=[
            [-A * 1.5 / 6, -A * 0.5 / 6],
            [(A * 0.5 - 1) / 6, 0],
            [B * 1.5 / 6, B * 0.9 / 6],
            [0, -B * 6 / 6],
        ],
    ),
    # The two largest, a third of 6 tokens, with the ratios 0.5 and 1.5.
    "kl_cov, two tokens": Numbers(
        settings={"fraction": 0.34, "kl_coefficient": 0.2},
        prepared=PREPARED,
        loss=(-A * (1.5 + 0.5) + A * 0.5 + B * (1.5 + 0.9) - B * 6) / 6
        + 0.2 * (math.log(2) + math.log(1.5)) / 6,
        gradient=[
            [(-A * 1.5 + 0.2) / 6, -A * 0.5 / 6],
            [(A * 0.5 - 0.2) / 6, 0],
            [B * 1.5 / 6, B * 0.9 / 6],
            [0, -B * 6 / 6],
        ],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
