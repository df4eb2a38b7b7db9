"""Losses of groups by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand, samples

# Two prompts of three samples, of which the last is invalid: rewards 1, 0, 3 and 2, 0.
SAMPLES = samples(group=3)
PREPARED = {
    "rewards": [[1, 0, 3], [2, 0, 0]],
    "valid": [[1, 1, 1], [1, 1, 0]],
    "weights": [[1 / 5, 1 / 5, 1 / 5], [1 / 5, 1 / 5, 0]],
}
# Log-ratios to the reference: log 3, log 1/2, log 1/2; log 3, log 1/2. So the contrasts D of the
# pairs (0, 1), (0, 2), (1, 2) of the first prompt are log 6, log 6, 0, and log 6 of the second one.
D = math.log(6)
# Log-probabilities of the answers under the policy and the sampler, and the ratios of the two.
LOG = [math.log(x) for x in (0.1875, 0.25, 0.3375, 0.6, 0.05)]
OLD = [math.log(x) for x in (0.25, 0.5, 0.25, 0.1, 0.25)]
R = [0.75, 0.5, 1.35, 6.0, 0.2]


def near(ratio, width=0.2):
    return min(max(ratio, 1 - width), 1 + width)


def gate(x):
    return 1.0 / (1.0 + math.exp(-x))


def q(i, j):
    """How much more the policy prefers sample i to sample j."""
    return LOG[i] - LOG[j]


# The rewards differ by 1, -2, -3 in the pairs (0, 1), (0, 2), (1, 2) and by 2 in (3, 4). A sample
# of the first prompt has two partners, one of the second prompt has one.
P01, P02, P12 = R[0] * R[1] * 1, R[0] * R[2] * -2, R[1] * R[2] * -3
P34 = R[3] * R[4] * 2

HAND_COMPUTED = {
    # Half of 0.1 / 2 D^2 - (R_i - R_j) D for each partner of a sample, the mean over partners and
    # samples. A pair is met twice: its slope in the first log-ratio is 0.1 D - (R_i - R_j).
    "copg": Numbers(
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=((0.05 * D**2 - D) + (0.05 * D**2 + 2 * D) + 0) / 2 / 5 + (0.05 * D**2 - 2 * D) / 5,
        gradient=[
            [
                ((0.1 * D - 1) + (0.1 * D + 2)) / 2 / 5,
                (-(0.1 * D - 1) + 3) / 2 / 5,
                (-(0.1 * D + 2) - 3) / 2 / 5,
            ],
            [(0.1 * D - 2) / 5, -(0.1 * D - 2) / 5, 0],
        ],
    ),
    # -1/2 stop(r_i r_j) (R_i - R_j) (log p_i - log p_j), the mean over partners and samples. A pair
    # is met twice.
    "pairwise_policy_gradient": Numbers(
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(P01 * q(0, 1) + P02 * q(0, 2) + P12 * q(1, 2)) / 2 / 5 - P34 * q(3, 4) / 5,
        gradient=[
            [-(P01 + P02) / 2 / 5, (P01 - P12) / 2 / 5, (P02 + P12) / 2 / 5],
            [-P34 / 5, P34 / 5, 0],
        ],
    ),
    # -stop(clip(r_j)) min(a r_i, a clip(r_i)), a = R_i - R_j, clip to [0.8, 1.2], the mean over
    # partners and samples. The clipped ratios are 0.8, 0.8, 1.2; 1.2, 0.8.
    "p3o_v1": Numbers(
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(
            # Sample 0: a = 1 keeps the ratio 0.75, a = -2 takes 0.8.
            (0.8 * 1 * 0.75 + 1.2 * -2 * 0.8)
            # Sample 1: a = -1, -3 take 0.8 for 0.5.
            + (0.8 * -1 * 0.8 + 1.2 * -3 * 0.8)
            # Sample 2: a = 2, 3 take 1.2 for 1.35.
            + (0.8 * 2 * 1.2 + 0.8 * 3 * 1.2)
        )
        / 2
        / 5
        # Sample 3: a = 2 takes 1.2 for 6. Sample 4: a = -2 takes 0.8 for 0.2.
        - (0.8 * 2 * 1.2 + 1.2 * -2 * 0.8) / 5,
        gradient=[[-0.8 * 0.75 / 2 / 5, 0, 0], [0, 0, 0]],
    ),
    # With a clip of 0.4, to [0.6, 1.4], the ratios 0.75 and 1.35 are free.
    "p3o_v1, a wider clip": Numbers(
        settings={"clip": 0.4},
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(
            (0.6 * 1 * 0.75 + 1.35 * -2 * 0.75)
            + (0.75 * -1 * 0.6 + 1.35 * -3 * 0.6)
            + (0.75 * 2 * 1.35 + 0.6 * 3 * 1.35)
        )
        / 2
        / 5
        - (0.6 * 2 * 1.4 + 1.4 * -2 * 0.6) / 5,
        gradient=[
            [-(0.6 * 1 + 1.35 * -2) * 0.75 / 2 / 5, 0, -(0.75 * 2 + 0.6 * 3) * 1.35 / 2 / 5],
            [0, 0, 0],
        ],
    ),
    # -1/2 stop(clip(r_i r_j)) min(a q, a clip(q, q_b - 0.2, q_b + 0.2)), q = log p_i - log p_j and
    # q_b the same of the sampler; a pair is met twice. q - q_b = log(r_i / r_j): in the pair (0, 1)
    # log 1.5 for a = 1 is clipped to 0.2, in (0, 2) log(5/9) for a = -2 to -0.2, in (1, 2)
    # log(0.37) for a = -3 to -0.2, in (3, 4) log 30 for a = 2 to 0.2. The products of the ratios,
    # 0.375, 1.0125, 0.675, 1.2, are clipped to [0.8, 1.2].
    "p3o_v2": Numbers(
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(
            near(0.375) * 1 * (OLD[0] - OLD[1] + 0.2)
            + near(1.0125) * -2 * (OLD[0] - OLD[2] - 0.2)
            + near(0.675) * -3 * (OLD[1] - OLD[2] - 0.2)
        )
        / 2
        / 5
        - near(1.2) * 2 * (OLD[3] - OLD[4] + 0.2) / 5,
        gradient=[[0, 0, 0], [0, 0, 0]],
    ),
    # With logits that may move by 0.7, (0, 1) and (0, 2) are free.
    "p3o_v2, wider logits": Numbers(
        settings={"clip_logits": 0.7},
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(0.8 * 1 * q(0, 1) + 1.0125 * -2 * q(0, 2) + 0.8 * -3 * (OLD[1] - OLD[2] - 0.7))
        / 2
        / 5
        - 1.2 * 2 * (OLD[3] - OLD[4] + 0.7) / 5,
        gradient=[
            [-(0.8 - 2 * 1.0125) / 2 / 5, 0.8 / 2 / 5, -2 * 1.0125 / 2 / 5],
            [0, 0, 0],
        ],
    ),
    # -log p of the best sample, with the reward 3 and 2, the mean over 2 prompts.
    "best_of_n": Numbers(
        experience=SAMPLES,
        group=3,
        prepared={**PREPARED, "weights": [1 / 2, 1 / 2]},
        loss=-(LOG[2] + LOG[3]) / 2,
        gradient=[[0, 0, -1 / 2], [-1 / 2, 0, 0]],
    ),
    # Plus half of the mean log p of the worse ones.
    "best_of_n, and the others down": Numbers(
        settings={"negative": "mean", "negative_weight": 0.5},
        experience=SAMPLES,
        group=3,
        prepared={**PREPARED, "weights": [1 / 2, 1 / 2]},
        loss=(-LOG[2] + 0.5 * (LOG[0] + LOG[1]) / 2 - LOG[3] + 0.5 * LOG[4]) / 2,
        gradient=[[0.5 / 2 / 2, 0.5 / 2 / 2, -1 / 2], [-1 / 2, 0.5 / 2, 0]],
    ),
    # -exp(R) log p, the mean over samples.
    "reward_weighted": Numbers(
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(math.e * LOG[0] + LOG[1] + math.e**3 * LOG[2] + math.e**2 * LOG[3] + LOG[4]) / 5,
        gradient=[
            [-math.e / 5, -1 / 5, -(math.e**3) / 5],
            [-(math.e**2) / 5, -1 / 5, 0],
        ],
    ),
    # -sigmoid(R / 2) log p, the weights within 0.6 and 0.8: 0.622, 0.5, 0.818; 0.731, 0.5.
    "reward_weighted, sigmoid": Numbers(
        settings={"weight": "sigmoid", "beta": 2.0, "clip": (0.6, 0.8)},
        experience=SAMPLES,
        group=3,
        prepared=PREPARED,
        loss=-(gate(0.5) * LOG[0] + 0.6 * LOG[1] + 0.8 * LOG[2] + gate(1.0) * LOG[3] + 0.6 * LOG[4])
        / 5,
        gradient=[[-gate(0.5) / 5, -0.6 / 5, -0.8 / 5], [-gate(1.0) / 5, -0.6 / 5, 0]],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
