"""REINFORCE and its baselines by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand

from polgrad import algorithms

# Sums over the tokens of an answer, means over the 4 answers.
SUMS = [[1 / 4, 1 / 4], [1 / 4, 0], [1 / 4, 1 / 4], [0, 1 / 4]]
# Log-probabilities of the answers: products of 0.75, 0.25; 0.25; 0.75, 0.45; 0.6.
LOG = [math.log(0.1875), math.log(0.25), math.log(0.3375), math.log(0.6)]

# The return of each of the 6 tokens is the reward of its answer: 1, 1, 0, 1, 1, 3, of mean 7/6 and
# sum of squares 13 - 49/6 = 29/6 about it.
ONE, ZERO, THREE = ((x - 7 / 6) / math.sqrt(29 / 6 / 5 + 1e-8) for x in (1, 0, 3))

# With a KL of 0.1: the log-ratios of sampler to reference are log 2, log 2; 0; log(2/3), log(5/9);
# log(1/2). A token's return is the reward less 0.1 times its own and all later log-ratios.
RETURNS = [
    1 - 0.1 * math.log(4),
    1 - 0.1 * math.log(2),
    0,
    1 - 0.1 * math.log(10 / 27),
    1 - 0.1 * math.log(5 / 9),
    3 - 0.1 * math.log(1 / 2),
]
MEAN = sum(RETURNS) / 6
SCALE = math.sqrt(sum((x - MEAN) ** 2 for x in RETURNS) / 5 + 1e-8)
K = [(x - MEAN) / SCALE for x in RETURNS]

HAND_COMPUTED = {
    # -A log p, A = R less the mean of all rewards, 1.25.
    "reinforce": Numbers(
        prepared={"advantages": [[-0.25], [-1.25], [-0.25], [1.75]], "weights": SUMS},
        loss=(0.25 * LOG[0] + 1.25 * LOG[1] + 0.25 * LOG[2] - 1.75 * LOG[3]) / 4,
        gradient=[0.25 / 4, 1.25 / 4, 0.25 / 4, -1.75 / 4],
    ),
    "reinforce, without a baseline": Numbers(
        settings={"baseline": "none"},
        prepared={"advantages": [[1], [0], [1], [3]], "weights": SUMS},
        loss=-(LOG[0] + LOG[2] + 3 * LOG[3]) / 4,
        gradient=[-1 / 4, 0, -1 / 4, -3 / 4],
    ),
    # -A log p, A = R less the reward of the other sample.
    "rloo": Numbers(
        prepared={"advantages": [[1], [-1], [-2], [2]], "weights": SUMS},
        loss=-(LOG[0] - LOG[1] - 2 * LOG[2] + 2 * LOG[3]) / 4,
        gradient=[-1 / 4, 1 / 4, 2 / 4, -2 / 4],
    ),
    # R - 0.1 log(sampler / reference): log 4, 0, log(10/27), log(1/2) of the answers.
    "rloo, a KL in the reward": Numbers(
        settings={"kl": algorithms.RewardKL(0.1)},
        prepared={
            "advantages": [
                [1 - 0.1 * math.log(4)],
                [-1 + 0.1 * math.log(4)],
                [-2 - 0.1 * math.log(10 / 27) + 0.1 * math.log(1 / 2)],
                [2 + 0.1 * math.log(10 / 27) - 0.1 * math.log(1 / 2)],
            ]
        },
        loss=-(1 - 0.1 * math.log(4)) * (LOG[0] - LOG[1]) / 4
        - (2 + 0.1 * math.log(20 / 27)) * (LOG[3] - LOG[2]) / 4,
        gradient=[
            -(1 - 0.1 * math.log(4)) / 4,
            (1 - 0.1 * math.log(4)) / 4,
            (2 + 0.1 * math.log(20 / 27)) / 4,
            -(2 + 0.1 * math.log(20 / 27)) / 4,
        ],
    ),
    # -min(r A, clip(r, 0.8, 1.2) A), the mean over tokens; A < 0 but for the last answer. Clipped:
    # 0.5 to 0.8 and 6 to 1.2.
    "reinforce_plus_plus": Numbers(
        prepared={
            "advantages": [[ONE, ONE], [ZERO, 0], [ONE, ONE], [0, THREE]],
            "weights": [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]],
        },
        loss=-(ONE * (1.5 + 0.8 + 1.5 + 0.9) + ZERO * 0.8 + THREE * 1.2) / 6,
        gradient=[[-ONE * 1.5 / 6, 0], [0, 0], [-ONE * 1.5 / 6, -ONE * 0.9 / 6], [0, 0]],
    ),
    # Here too all but the last advantage are below 0.
    "reinforce_plus_plus, a KL in the reward": Numbers(
        settings={"kl": algorithms.RewardKL(0.1)},
        prepared={"advantages": [[K[0], K[1]], [K[2], 0], [K[3], K[4]], [0, K[5]]]},
        loss=-(1.5 * K[0] + 0.8 * K[1] + 0.8 * K[2] + 1.5 * K[3] + 0.9 * K[4] + 1.2 * K[5]) / 6,
        gradient=[[-K[0] * 1.5 / 6, 0], [0, 0], [-K[3] * 1.5 / 6, -K[4] * 0.9 / 6], [0, 0]],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
