"""NFT by hand, on the samples of `tests/support/hand_made.py`, and its kinship with Dr. GRPO."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad
from hand_made import Numbers, by_hand, samples
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import algorithms
from polgrad.contract import Context, Outputs

# Right, wrong; wrong, wrong: no question with the rate 0 counts. Right, wrong; wrong, right: 1/2.
BY_TOKEN = [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]]

HAND_COMPUTED = {
    # Right: -log R. Wrong: -log max((1 - p R) / (1 - p), 1), with the gradient of its argument. R are
    # the token ratios and p = 1/2, so that the argument is 2 - R: 1.5 for R = 0.5, 0.5 (held at 1)
    # for 1.5, 1.1 for 0.9. A question counts 1 - p = 1/2.
    "nft": Numbers(
        experience=samples([1.0, 0.0, 0.0, 1.0]),
        prepared={
            "success_rate": [0.5] * 4,
            "question_weight": [0.5] * 4,
            "weights": BY_TOKEN,
        },
        loss=0.5 * -(math.log(1.5 * 0.5) + math.log(1.5) + math.log(1.1) + math.log(6)) / 6,
        gradient=[
            [-0.5 / 6, -0.5 / 6],
            [0.5 * (0.5 / 1.5) / 6, 0],
            [0.5 * 1.5 / 6, 0.5 * (0.9 / 1.1) / 6],
            [0, -0.5 / 6],
        ],
    ),
    # A group of three with one right answer, p = 1/3, and one of two with one, p = 1/2: a question
    # counts sqrt((1 - p) / p), sqrt(2) and 1. The arguments are (1 - R / 3) / (2 / 3) = 1.5 - R / 2:
    # 1.25, 0.75, 1.05, and 2 - R = -4, held at 0.8. Wrong answers count half. 8 tokens.
    "nft, like GRPO": Numbers(
        settings={"like": "grpo", "epsilon": 0.8, "negative_weight": 0.5},
        experience=samples([1.0, 0.0, 0.0, 0.0, 1.0, math.nan], group=3),
        group=3,
        prepared={
            "success_rate": [1 / 3] * 3 + [1 / 2] * 3,
            "question_weight": [math.sqrt(2)] * 3 + [1] * 3,
        },
        loss=-math.sqrt(2) * math.log(1.5 * 0.5) / 8
        - 0.5 * math.sqrt(2) * (math.log(1.25) + math.log(0.8) + math.log(1.05)) / 8
        - 0.5 * math.log(0.8) / 8
        - math.log(0.4 * 0.5) / 8,
        gradient=[
            [-math.sqrt(2) / 8, -math.sqrt(2) / 8],
            [0.5 * math.sqrt(2) * (0.25 / 1.25) / 8, 0],
            [0.5 * math.sqrt(2) * (0.75 / 0.8) / 8, 0.5 * math.sqrt(2) * (0.45 / 1.05) / 8],
            [0, 0.5 * 6 / 0.8 / 8],
            [-1 / 8, -1 / 8],
            [0, 0],
        ],
    ),
    # A question without a right answer has no weight, but its tokens count in the mean.
    "nft, a question without a right answer": Numbers(
        experience=samples([1.0, 0.0, 0.0, 0.0]),
        prepared={"question_weight": [0.5, 0.5, 0, 0], "weights": BY_TOKEN},
        loss=0.5 * -(math.log(1.5 * 0.5) + math.log(1.5)) / 6,
        gradient=[[-0.5 / 6, -0.5 / 6], [0.5 * (0.5 / 1.5) / 6, 0], [0, 0], [0, 0]],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rollouts():
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    return experience | {"rewards": jnp.round(experience["rewards"])}


def gradient(settings, *, on_policy):
    """Of the algorithm's loss on the whole rollout, in the log-probabilities [N, T]."""
    algorithm = settings.build(Context(GROUP, T, PROMPTS, on_policy=on_policy))
    experience = rollouts()
    _, batch, _ = algorithm.prepare((), experience, None)
    start = experience["behavior_logp"] + 0.2 * experience["mask"]

    def loss(logp):
        logp = logp.reshape(batch["mask"].shape)
        outputs = Outputs(logp, jnp.zeros_like(logp))
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, None)
        return algorithm.loss(outputs, chosen)[0]

    return grad(loss)(start)


def test_nft_on_policy_is_dr_grpo_without_its_length():
    nft = gradient(algorithms.NFT(), on_policy=True)
    grpo = algorithms.GRPO(scale="none", aggregation="token")
    np.testing.assert_allclose(nft, gradient(grpo, on_policy=True), atol=1e-12)
    assert abs(nft).max() > 1e-3


def test_nft_off_policy_leaves_right_answers_without_a_ratio():
    nft = gradient(algorithms.NFT(), on_policy=False)
    on = gradient(algorithms.NFT(), on_policy=True)
    right = np.asarray(rollouts()["rewards"] == 1)
    np.testing.assert_allclose(nft[right], on[right], atol=1e-12)
    assert (abs(nft - on)[~right] > 1e-3).any()
