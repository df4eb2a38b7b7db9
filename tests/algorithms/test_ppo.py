"""PPO with a critic by hand, on the samples and values of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand

# A_t = delta_t + 0.95 A_{t+1}, delta_t = r_t + V_{t+1} - V_t; no value follows the last token.
# Answer 0: reward 1, V = 0.5, 0.2. Answer 1: 0, V = 0.4. Answer 2: 1, V = 2, 1.5. Answer 3: 3, V = 1.
PLAIN = [-0.3 + 0.95 * 0.8, 0.8, -0.4, -0.5 - 0.95 * 0.5, -0.5, 2.0]
# Advantages plus values.
TARGETS = [[0.96, 1.0], [0.0, 0], [1.025, 1.0], [0, 3.0]]
MEAN = (0.46 + 0.8 - 0.4 - 0.975 - 0.5 + 2.0) / 6
SCALE = math.sqrt(sum((x - MEAN) ** 2 for x in PLAIN) / 5 + 1e-8)
A = [(x - MEAN) / SCALE for x in PLAIN]
# (V - target)^2 / 2, or the same of V held within 0.2 of the old value where that is larger: 0.5 is
# held to 0.4, 0.1 to 0.2; 2.4 held to 2.2 would have the smaller error.
VALUE = (0.36**2 + 0.6**2 + 0.2**2 + 1.375**2 + 0.5**2 + 1.9**2) / 2

HAND_COMPUTED = {
    # -min(r A, clip(r, 0.8, 1.2) A) + 0.5 value loss, the mean over tokens. Clipped: 1.5 and 6 to 1.2
    # for A > 0, 0.5 to 0.8 for A < 0.
    "ppo": Numbers(
        prepared={
            "advantages": [[A[0], A[1]], [A[2], 0], [A[3], A[4]], [0, A[5]]],
            "weights": [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]],
            "old_values": [[0.5, 0.2], [0.4, 9.0], [2.0, 1.5], [9.0, 1.0]],
        },
        loss=-(1.2 * A[0] + 0.5 * A[1] + 0.8 * A[2] + 1.5 * A[3] + 0.9 * A[4] + 1.2 * A[5]) / 6
        + 0.5 * VALUE / 6,
        gradient=[[0, -A[1] * 0.5 / 6], [0, 0], [-A[3] * 1.5 / 6, -A[4] * 0.9 / 6], [0, 0]],
        values=[
            [-0.5 * 0.36 / 6, 0, 0],
            [0, 0, 0],
            [0.5 * 1.375 / 6, 0.5 * 0.5 / 6, 0],
            [0, -0.5 * 1.9 / 6, 0],
        ],
    ),
    # Without clip and whitening: discount 0.5, lambda 0, so that A = r + 0.5 V_{t+1} - V.
    "ppo, one step": Numbers(
        settings={"discount": 0.5, "lambda_": 0.0, "whiten": False, "value_clip": None},
        prepared={"advantages": [[-0.4, 0.8], [-0.4, 0], [-1.25, -0.5], [0, 2.0]]},
        loss=-(1.5 * -0.4 + 0.5 * 0.8 + 0.8 * -0.4 + 1.5 * -1.25 + 0.9 * -0.5 + 1.2 * 2) / 6
        # Targets: 0.1, 1, 0, 0.75, 1, 3.
        + 0.5 * (0.5**2 + 0.5**2 + 0.1**2 + 1.65**2 + 0.5**2 + 1.9**2) / 2 / 6,
        # The first advantage is below 0 now, but its ratio 1.5 is on the other side.
        gradient=[[0.4 * 1.5 / 6, -0.8 * 0.5 / 6], [0, 0], [1.25 * 1.5 / 6, 0.5 * 0.9 / 6], [0, 0]],
        values=[
            [0.5 * 0.5 / 6, -0.5 * 0.5 / 6, 0],
            [0.5 * 0.1 / 6, 0, 0],
            [0.5 * 1.65 / 6, 0.5 * 0.5 / 6, 0],
            [0, -0.5 * 1.9 / 6, 0],
        ],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
