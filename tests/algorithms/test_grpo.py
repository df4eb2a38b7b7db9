"""GRPO and its kin by hand, on the samples of `tests/support/hand_made.py`."""

import math

import jax
import jax.numpy as jnp
from hand_made import Numbers, by_hand, samples
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import algorithms
from polgrad.contract import Context

# Rewards 1, 0 and 1, 3: the centred ones are +-0.5 and -+1, the deviations (n - 1) the root of 1/2
# and of 2.
A = 0.5 / (math.sqrt(0.5) + 1e-6)
B = 1.0 / (math.sqrt(2.0) + 1e-6)
GROUP_RELATIVE = [[A], [-A], [-B], [B]]
# Means over the tokens of an answer (2, 1, 2, 1), then over the 4 answers.
BY_SEQUENCE = [[1 / 8, 1 / 8], [1 / 4, 0], [1 / 8, 1 / 8], [0, 1 / 4]]
# The mean over all 6 tokens.
BY_TOKEN = [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]]


def gate(x):
    return 1.0 / (1.0 + math.exp(-x))


def slope(x):
    return gate(x) * (1.0 - gate(x))


# The ratios of the answers, each the geometric mean of its tokens' ratios.
S0, S2 = math.sqrt(1.5 * 0.5), math.sqrt(1.5 * 0.9)

HAND_COMPUTED = {
    # -min(r A, clip(r, 0.8, 1.2) A). Clipped: 1.5 to 1.2 and 6 to 1.2 for A > 0, 0.5 to 0.8 for A < 0.
    "grpo": Numbers(
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_SEQUENCE},
        loss=-A * (1.2 + 0.5) / 8 + A * 0.8 / 4 + B * (1.5 + 0.9) / 8 - B * 1.2 / 4,
        gradient=[[0, -A * 0.5 / 8], [0, 0], [B * 1.5 / 8, B * 0.9 / 8], [0, 0]],
    ),
    # For A < 0 no more than 1.4 |A|: the ratio 1.5 has no gradient.
    "grpo, dual clip": Numbers(
        settings={"dual_clip": 1.4},
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_SEQUENCE},
        loss=-A * (1.2 + 0.5) / 8 + A * 0.8 / 4 + B * (1.4 + 0.9) / 8 - B * 1.2 / 4,
        gradient=[[0, -A * 0.5 / 8], [0, 0], [0, B * 0.9 / 8], [0, 0]],
    ),
    # All rewards 1, 0, 1, 3 have the mean 1.25 and the sum of squares 4.75 about it.
    "grpo, scaled by the batch": Numbers(
        settings={"scale": "batch", "aggregation": "sequence_sum"},
        prepared={
            "advantages": [
                [0.5 / (math.sqrt(4.75 / 3) + 1e-6)],
                [-0.5 / (math.sqrt(4.75 / 3) + 1e-6)],
                [-1.0 / (math.sqrt(4.75 / 3) + 1e-6)],
                [1.0 / (math.sqrt(4.75 / 3) + 1e-6)],
            ],
            "weights": [[0.25, 0.25], [0.25, 0], [0.25, 0.25], [0, 0.25]],
        },
        loss=(-0.5 * 1.7 + 0.5 * 0.8 + 2.4 - 1.2) / 4 / (math.sqrt(4.75 / 3) + 1e-6),
        gradient=[
            [0, -0.5 * 0.5 / 4 / (math.sqrt(4.75 / 3) + 1e-6)],
            [0, 0],
            [
                1.5 / 4 / (math.sqrt(4.75 / 3) + 1e-6),
                0.9 / 4 / (math.sqrt(4.75 / 3) + 1e-6),
            ],
            [0, 0],
        ],
    ),
    # GRPO's loss with A = R - mean R; sums over 4 answers times the longest completion, 2 tokens.
    "dr_grpo": Numbers(
        prepared={
            "advantages": [[0.5], [-0.5], [-1.0], [1.0]],
            "weights": [[1 / 8, 1 / 8], [1 / 8, 0], [1 / 8, 1 / 8], [0, 1 / 8]],
        },
        loss=(-0.5 * (1.2 + 0.5) + 0.5 * 0.8 + (1.5 + 0.9) - 1.2) / 8,
        gradient=[[0, -0.5 * 0.5 / 8], [0, 0], [1.5 / 8, 0.9 / 8], [0, 0]],
    ),
    # GRPO's loss, clipped to [0.8, 1.28], over the tokens of groups whose rewards differ: 3 tokens.
    # An answer of the longest length pays 1: rewards 1, 0.5 become 0, 0.5.
    "dapo": Numbers(
        experience=samples([1.0, 0.5, 2.0, 2.0]),
        prepared={
            "advantages": [
                [-0.25 / (math.sqrt(0.125) + 1e-6)],
                [0.25 / (math.sqrt(0.125) + 1e-6)],
                [0],
                [0],
            ],
            "weights": [[1 / 3, 1 / 3], [1 / 3, 0], [0, 0], [0, 0]],
        },
        loss=0.25 / (math.sqrt(0.125) + 1e-6) * (1.5 + 0.8 - 0.5) / 3,
        gradient=[
            [0.25 / (math.sqrt(0.125) + 1e-6) * 1.5 / 3, 0],
            [-0.25 / (math.sqrt(0.125) + 1e-6) * 0.5 / 3, 0],
            [0, 0],
            [0, 0],
        ],
    ),
    # Without a penalty: 1.5 and 6 for A > 0 are clipped to 1.28.
    "dapo, without a penalty": Numbers(
        settings={"overlong": None},
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_TOKEN},
        loss=(-A * (1.28 + 0.5) + A * 0.8 + B * (1.5 + 0.9) - B * 1.28) / 6,
        gradient=[[0, -A * 0.5 / 6], [0, 0], [B * 1.5 / 6, B * 0.9 / 6], [0, 0]],
    ),
    # -min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A), s the geometric mean of an answer's ratios. Clipped:
    # 0.5 for A < 0, 6 for A > 0. The gradient of s is s / n for each of n tokens.
    "gspo": Numbers(
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_SEQUENCE},
        loss=(-A * S0 + A * (1 - 3e-4) + B * S2 - B * (1 + 4e-4)) / 4,
        gradient=[-A * S0 / 8, 0, B * S2 / 8, 0],
    ),
    # -stop(min(r, 5)) A log p, over all tokens. The ratio 6 counts 5.
    "cispo": Numbers(
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_TOKEN},
        loss=(
            -A * (1.5 * math.log(0.75) + 0.5 * math.log(0.25))
            + A * 0.5 * math.log(0.25)
            + B * (1.5 * math.log(0.75) + 0.9 * math.log(0.45))
            - B * 5 * math.log(0.6)
        )
        / 6,
        gradient=[
            [-A * 1.5 / 6, -A * 0.5 / 6],
            [A * 0.5 / 6, 0],
            [B * 1.5 / 6, B * 0.9 / 6],
            [0, -B * 5 / 6],
        ],
    ),
    # -4 / tau sigmoid(tau (r - 1)) A, tau = 1 for A > 0 and 1.05 for A < 0.
    # The gradient is -4 slope r A, slope = sigmoid (1 - sigmoid) at tau (r - 1).
    "sapo": Numbers(
        prepared={"advantages": GROUP_RELATIVE, "weights": BY_SEQUENCE},
        loss=-A * 4 * (gate(0.5) + gate(-0.5)) / 8
        + A * 4 / 1.05 * gate(-0.5 * 1.05) / 4
        + B * 4 / 1.05 * (gate(0.5 * 1.05) + gate(-0.1 * 1.05)) / 8
        - B * 4 * gate(5.0) / 4,
        gradient=[
            [-A * 4 * slope(0.5) * 1.5 / 8, -A * 4 * slope(0.5) * 0.5 / 8],
            [A * 4 * slope(0.5 * 1.05) * 0.5 / 4, 0],
            [
                B * 4 * slope(0.5 * 1.05) * 1.5 / 8,
                B * 4 * slope(0.1 * 1.05) * 0.9 / 8,
            ],
            [0, -B * 4 * slope(5.0) * 6 / 4],
        ],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


def test_dapo_filters_groups_before_it_shapes_rewards():
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    experience["rewards"] = experience["rewards"].at[:GROUP].set(1.0)
    lengths = experience["completion_lengths"].at[:GROUP].set(jnp.array([1, 3, 5, 6]))
    experience["completion_lengths"] = lengths
    algorithm = algorithms.DAPO(overlong=algorithms.OverlongPenalty(4)).build(
        Context(GROUP, T, PROMPTS, on_policy=False)
    )
    _, batch, metrics = algorithm.prepare((), experience, None)
    assert metrics["uniform_groups"] == 1 / PROMPTS
    assert not batch["weights"][:GROUP].any() and batch["weights"][GROUP:].any()
