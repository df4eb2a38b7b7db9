"""The terms that an algorithm may add, by hand, on the samples of `tests/support/hand_made.py`."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Numbers, by_hand, samples

from polgrad import algorithms
from polgrad.contract import Context, Outputs, Previous

A, B = 0.5 / (math.sqrt(0.5) + 1e-6), 1.0 / (math.sqrt(2.0) + 1e-6)
# GRPO's loss and gradient without a term: see test_grpo.py.
LOSS = -A * (1.2 + 0.5) / 8 + A * 0.8 / 4 + B * (1.5 + 0.9) / 8 - B * 1.2 / 4
GRADIENT = np.array([[0, -A * 0.5 / 8], [0, 0], [B * 1.5 / 8, B * 0.9 / 8], [0, 0]])
WEIGHTS = np.array([[1 / 8, 1 / 8], [1 / 4, 0], [1 / 8, 1 / 8], [0, 1 / 4]])
# The token ratios policy / sampler and policy / reference.
RATIO = np.array([[1.5, 0.5], [0.5, 1], [1.5, 0.9], [1, 6.0]])
TO_REFERENCE = np.array([[3, 1], [0.5, 1], [1, 0.5], [1, 3]])
X = np.log(TO_REFERENCE)
# ratio x k3, k3 = reference / policy - 1 + log(policy / reference).
K3 = RATIO * (1 / TO_REFERENCE - 1 + X)

HAND_COMPUTED = {
    # The gradient of KL(policy || reference): ratio x log(policy / reference).
    "grpo, k2": Numbers(
        settings={"kl": algorithms.KL(0.1)},
        prepared={},
        loss=LOSS + 0.1 * (WEIGHTS * K3).sum(),
        gradient=GRADIENT + 0.1 * WEIGHTS * RATIO * X,
    ),
    # The gradient of k3: ratio x (1 - reference / policy).
    "grpo, k3": Numbers(
        settings={"kl": algorithms.KL(0.04, gradient="k3")},
        prepared={},
        loss=LOSS + 0.04 * (WEIGHTS * K3).sum(),
        gradient=GRADIENT + 0.04 * WEIGHTS * RATIO * (1 - 1 / TO_REFERENCE),
    ),
    # A term of answers is a mean over their tokens.
    "ppo_clip_sequence, k2": Numbers(
        settings={"kl": algorithms.KL(0.1)},
        prepared={},
        loss=(-A * 0.75 + A * 0.8 + B * 1.35 - B * 1.2) / 4 + 0.1 * (WEIGHTS * K3).sum(),
        gradient=np.array([[-A * 0.75 / 4] * 2, [0, 0], [B * 1.35 / 4] * 2, [0, 0]])
        + 0.1 * WEIGHTS * RATIO * X,
    ),
    # On-policy the loss is -A log p, times the ratio policy / sampler, but no more than 1.2.
    "grpo, weights of the sampler": Numbers(
        settings={"sampler_correction": algorithms.TruncatedWeights(1.2)},
        on_policy=True,
        prepared={},
        loss=-A * (1.2 + 0.5) / 8 + A * 0.5 / 4 + B * (1.2 + 0.9) / 8 - B * 1.2 / 4,
        gradient=[
            [-A * 1.2 / 8, -A * 0.5 / 8],
            [A * 0.5 / 4, 0],
            [B * 1.2 / 8, B * 0.9 / 8],
            [0, -B * 1.2 / 4],
        ],
    ),
    # One weight an answer: the products 0.75, 0.5, 1.35, 6, but no more than 1.2.
    "ppo_clip_sequence, weights of the sampler": Numbers(
        settings={"sampler_correction": algorithms.TruncatedWeights(1.2)},
        on_policy=True,
        prepared={},
        loss=(-A * 0.75 + A * 0.5 + B * 1.2 - B * 1.2) / 4,
        gradient=[-A * 0.75 / 4, A * 0.5 / 4, B * 1.2 / 4, -B * 1.2 / 4],
    ),
    # Samples that did not stop have no weight: three answers are left.
    "grpo, cut answers": Numbers(
        settings={"mask_truncated": True},
        experience=samples(stopped=np.array([True, True, True, False])),
        prepared={"weights": [[1 / 6, 1 / 6], [1 / 3, 0], [1 / 6, 1 / 6], [0, 0]]},
        loss=-A * (1.2 + 0.5) / 6 + A * 0.8 / 3 + B * (1.5 + 0.9) / 6,
        gradient=[[0, -A * 0.5 / 6], [0, 0], [B * 1.5 / 6, B * 0.9 / 6], [0, 0]],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


def test_the_kl_in_the_reward_by_hand():
    """The log-ratios of sampler to reference are log 2, log 2; 0; log 2/3, log 5/9; log 1/2."""
    experience, kl = samples(), algorithms.RewardKL(0.1)
    mask = experience["mask"]
    tokens = [
        [-0.1 * math.log(2), -0.1 * math.log(2)],
        [0, 0],
        [-0.1 * math.log(2 / 3), -0.1 * math.log(5 / 9)],
        [0, -0.1 * math.log(1 / 2)],
    ]
    np.testing.assert_allclose(kl.of_tokens(experience, mask) * mask, tokens, atol=1e-6)
    found = kl.of_answers(experience["rewards"], experience, mask)
    expected = np.array([1.0, 0.0, 1.0, 3.0]) + np.sum(tokens, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_the_bonus_of_the_entropy_by_hand():
    outputs = Outputs(jnp.zeros((1, 2)), entropy=jnp.array([[0.5, 2.0]]))
    np.testing.assert_allclose(algorithms.Entropy(0.1).term(outputs), [[-0.05, -0.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("buffer", "expected"),
    # Of 20 tokens the last 4 are the buffer, or the last 10.
    [(None, [0, 0, -0.25, -1]), (10, [0, -0.6, -0.7, -1])],
)
def test_the_penalty_of_long_answers_by_hand(buffer, expected):
    experience = {"completion_lengths": jnp.array([5, 16, 17, 20])}
    penalty = algorithms.OverlongPenalty(buffer)
    found = penalty.of_answers(jnp.zeros(4), experience, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (lambda: algorithms.KL(-0.1), "coefficient is -0.1, expected"),
        (lambda: algorithms.KL(gradient="k1"), "gradient is 'k1', expected"),
        (lambda: algorithms.RewardKL(-0.1), "coefficient is -0.1, expected"),
        (lambda: algorithms.Entropy(-1.0), "coefficient is -1.0, expected"),
        (lambda: algorithms.OverlongPenalty(0), "buffer is 0, expected"),
        (lambda: algorithms.TruncatedWeights(0.0), "cap is 0.0, expected"),
    ],
)
def test_numbers_out_of_range_are_refused(part, told):
    with pytest.raises(ValueError, match=told):
        part()


def test_a_kl_to_the_sampling_policy_is_said_to_have_no_effect():
    off, on = (Context(2, 2, 2, on_policy=flag) for flag in (False, True))
    behind = Previous(1)
    for kl in (algorithms.RewardKL(0.5, behind), algorithms.KL(0.5, "k2", behind)):
        (sentence,) = algorithms.GRPO(kl=kl).build(on).warnings
        assert sentence.startswith("kl has no effect")
    assert algorithms.GRPO(kl=algorithms.KL(0.5, "k2", behind)).build(off).warnings == ()
