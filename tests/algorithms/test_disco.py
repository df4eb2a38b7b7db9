"""DisCO by hand, on the samples of `tests/support/hand_made.py`, and its bound of the KL."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad
from hand_made import Numbers, by_hand, samples
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import algorithms, losses, masking
from polgrad.contract import Context, Outputs

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


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rollouts():
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    return experience | {"rewards": jnp.round(experience["rewards"])}


@pytest.mark.parametrize("score", ["log_l", "l_ratio"])
def test_disco_is_the_mean_over_questions_and_a_hinge_on_the_mean_kl(score):
    bound = algorithms.KLBound(beta=10.0, delta=0.01)
    settings = algorithms.DisCO(score=score, tau=0.7, bound=bound)
    experience = rollouts()
    mask, behavior = experience["mask"], experience["behavior_logp"]
    start = behavior - 0.3 * mask  # a KL above the bound

    def direct(logp):
        scores = losses.sequence_score(logp, behavior, mask, kind=score)
        by_group = lambda x: x.reshape(-1, GROUP)  # noqa: E731
        rank = losses.disco(
            by_group(scores),
            by_group(experience["rewards"]),
            tau=0.7,
            valid=by_group(experience["valid"]),
        )
        counted = mask * experience["valid"][:, None]
        kl = masking.masked_mean(losses.behavior_kl(logp, behavior), counted)
        return rank.mean() + losses.kl_hinge(kl, beta=10.0, delta=0.01)

    algorithm = settings.build(Context(GROUP, T, PROMPTS, on_policy=False))
    _, batch, _ = algorithm.prepare((), experience, None)

    def loss(logp):
        outputs = Outputs(logp.reshape(batch["mask"].shape), jnp.zeros_like(batch["mask"]))
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, None)
        return algorithm.loss(outputs, chosen)[0]

    ours, theirs = grad(loss)(start), grad(direct)(start)
    assert abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_disco_needs_groups():
    with pytest.raises(ValueError, match=r"group_size\) is 1, expected at least 2"):
        algorithms.DisCO().build(Context(1, T, PROMPTS, on_policy=True))


def test_a_ranking_without_a_bound_adds_up_over_groups():
    """With one, the loss is one of the whole batch, which costs a forward pass."""
    assert algorithms.DisCOB().build(Context(GROUP, T, PROMPTS, on_policy=False)).selects
    assert (
        not algorithms.DisCOB(bound=None).build(Context(GROUP, T, PROMPTS, on_policy=False)).selects
    )
