"""Losses of whole answers by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand

A = 0.5 / (math.sqrt(0.5) + 1e-6)
B = 1.0 / (math.sqrt(2.0) + 1e-6)
PREPARED = {"advantages": [A, -A, -B, B], "weights": [1 / 4] * 4}
# Geometric means of the ratios 1.5, 0.5 and 1.5, 0.9; the others have one token, 0.5 and 6.
S0, S2 = math.sqrt(0.75), math.sqrt(1.35)

HAND_COMPUTED = {
    # -n min(s A, clip(s, 1 - 2e-3, 1 + 2.5e-3) A), n tokens, s the geometric mean of the ratios.
    # Clipped: 0.5 for A < 0, 6 for A > 0. The gradient of n s is s at each token.
    "luspo": Numbers(
        prepared=PREPARED,
        loss=(-2 * A * S0 + A * (1 - 2e-3) + 2 * B * S2 - B * (1 + 2.5e-3)) / 4,
        gradient=[-A * S0 / 4, 0, B * S2 / 4, 0],
    ),
    # -A times the geometric mean of the ratios, each no more than e^0.4 for A > 0 and no less than
    # e^-0.4 for A < 0. Clipped: 1.5 for A > 0 (log 1.5 = 0.405), 6, and 0.5 for A < 0.
    "gmpo": Numbers(
        prepared=PREPARED,
        loss=(
            -A * math.sqrt(math.exp(0.4) * 0.5)
            + A * math.exp(-0.4)
            + B * math.sqrt(1.35)
            - B * math.exp(0.4)
        )
        / 4,
        gradient=[
            [0, -A * math.sqrt(math.exp(0.4) * 0.5) / 2 / 4],
            [0, 0],
            [B * math.sqrt(1.35) / 2 / 4, B * math.sqrt(1.35) / 2 / 4],
            [0, 0],
        ],
    ),
    # -min(W A, clip(W, 0.8, 1.2) A), W the product of the ratios: 0.75, 0.5, 1.35, 6.
    "ppo_clip_sequence": Numbers(
        prepared=PREPARED,
        loss=(-A * 0.75 + A * 0.8 + B * 1.35 - B * 1.2) / 4,
        gradient=[-A * 0.75 / 4, 0, B * 1.35 / 4, 0],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
