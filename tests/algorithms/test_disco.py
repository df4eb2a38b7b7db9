"""DisCO by hand, on the samples of `tests/support/hand_made.py`, and its bound of the KL."""

import math

from hand_made import Numbers, by_hand, samples

# Three samples a prompt: one right and two wrong, one wrong and one right, of which one is invalid.
SAMPLES = samples([1.0, 0.0, 0.0, 0.0, 1.0, math.nan], group=3)
# Mean log-probabilities, and mean ratios, of the answers.
S = [
    math.log(0.75 * 0.25) / 2,
    math.log(0.25),
    math.log(0.75 * 0.45) / 2,
    math.log(0.6),
    math.log(0.2 * 0.25) / 2,
]
R = [(1.5 + 0.5) / 2, 0.5, (1.5 + 0.9) / 2, 6.0, (0.4 + 0.5) / 2]
# The mean over the 8 valid tokens of -log ratio; the ratios multiply to 0.6075.
KL = -math.log(0.75 * 0.5 * 1.35 * 6 * 0.2) / 8
# The slope of 1000 / 2 (KL - 1e-4)^2 at each valid token.
HELD = -1000 * (KL - 1e-4) / 8
# How the two wrong answers share the first question's push.
SHARE = math.exp(S[1] / 10) / (math.exp(S[1] / 10) + math.exp(S[2] / 10))
SHARE_R = math.exp(R[1]) / (math.exp(R[1]) + math.exp(R[2]))


def gate(x):
    return 1.0 / (1.0 + math.exp(-x))


HAND_COMPUTED = {
    # tau log mean over wrong exp(s / tau) - mean over right s, tau = 10, s mean log-probabilities;
    # the mean over 2 questions. Plus 1000 / 2 max(KL(sampler || policy) - 1e-4, 0)^2.
    "disco": Numbers(
        experience=SAMPLES,
        group=3,
        prepared={
            "weights": [1 / 2, 1 / 2],
            "rewards": [[1, 0, 0], [0, 1, 0]],
            "valid": [[1, 1, 1], [1, 1, 0]],
        },
        loss=(10 * math.log((math.exp(S[1] / 10) + math.exp(S[2] / 10)) / 2) - S[0]) / 2
        + (S[3] - S[4]) / 2
        + 500 * (KL - 1e-4) ** 2,
        gradient=[
            [-1 / 4 + HELD, SHARE / 2 + HELD, (1 - SHARE) / 4 + HELD],
            [1 / 2 + HELD, -1 / 4 + HELD, 0],
        ],
    ),
    # The score is the mean ratio, whose gradient at a token is the ratio / n.
    "disco, ratios": Numbers(
        settings={"score": "l_ratio", "tau": 1.0, "bound": None},
        experience=SAMPLES,
        group=3,
        prepared={"weights": [1 / 2, 1 / 2]},
        loss=(math.log((math.exp(R[1]) + math.exp(R[2])) / 2) - R[0]) / 2 + (R[3] - R[4]) / 2,
        gradient=[
            [
                [-1.5 / 4, -0.5 / 4],
                [SHARE_R * 0.5 / 2, 0],
                [(1 - SHARE_R) * 1.5 / 4, (1 - SHARE_R) * 0.9 / 4],
            ],
            [[0, 6 / 2], [-0.4 / 4, -0.5 / 4], [0, 0]],
        ],
    ),
    # -mean over pairs of (right - wrong), and the same bound.
    "disco_b": Numbers(
        experience=SAMPLES,
        group=3,
        prepared={"weights": [1 / 2, 1 / 2]},
        loss=((S[1] + S[2]) / 2 - S[0]) / 2 + (S[3] - S[4]) / 2 + 500 * (KL - 1e-4) ** 2,
        gradient=[
            [-1 / 4 + HELD, 1 / 4 + HELD, 1 / 8 + HELD],
            [1 / 2 + HELD, -1 / 4 + HELD, 0],
        ],
    ),
    # -log sigmoid(right - wrong), whose slope is sigmoid(wrong - right).
    "disco_b, logistic": Numbers(
        settings={"surrogate": "logistic", "bound": None},
        experience=SAMPLES,
        group=3,
        prepared={"weights": [1 / 2, 1 / 2]},
        loss=-(math.log(gate(S[0] - S[1])) + math.log(gate(S[0] - S[2]))) / 4
        - math.log(gate(S[4] - S[3])) / 2,
        gradient=[
            [
                -(gate(S[1] - S[0]) + gate(S[2] - S[0])) / 4 / 2,
                gate(S[1] - S[0]) / 4,
                gate(S[2] - S[0]) / 4 / 2,
            ],
            [gate(S[3] - S[4]) / 2, -gate(S[3] - S[4]) / 2 / 2, 0],
        ],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
