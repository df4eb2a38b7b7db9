"""DisCO: what GRPO weighs, the robust gap and its limits, the bounded divergence, edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from one_group import one_group

from polgrad import advantages, losses, masking

# Arrays of rank 1 are one group.
one_disco_b = one_group(losses.disco_b)
one_disco = one_group(losses.disco)
one_group_relative = one_group(advantages.group_relative)
one_success_rate = one_group(advantages.success_rate)
one_dynamic_sampling_filter = one_group(advantages.dynamic_sampling_filter)

RNG = np.random.default_rng(5)
SCORES = RNG.normal(-1, 1, (2, 6)).astype(np.float32)
REWARDS = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]], np.float32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("scale", "weight"), [("group", 3**0.5 / 4), ("none", 3 / 16)])
def test_what_a_group_relative_advantage_weighs(scale, weight, x64):
    rewards, scores = jnp.array([1.0, 1, 0, 0, 0, 0, 0, 0]), jnp.array(RNG.normal(size=8))
    gap = -run(one_disco_b, scores, rewards)
    advantage = one_group_relative(rewards, scale=scale, ddof=0, epsilon=0.0)
    assert float(jnp.mean(advantage * scores)) == pytest.approx(weight * float(gap), abs=1e-9)
    rate = one_success_rate(rewards)
    assert float(advantages.difficulty_weight(rate, scale=scale)) == pytest.approx(weight, abs=1e-9)
    if scale == "group":
        bessel = one_group_relative(rewards, ddof=1, epsilon=0.0)
        expected = np.sqrt(7 / 8) * weight * float(gap)
        assert float(jnp.mean(bessel * scores)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("tau", "value", "weights"),
    [
        (10.0, -1.2219, (0.537, 0.463)),
        (1.0, -0.9917, (0.818, 0.182)),
        (0.1, -0.5693, (1.0, 0.0)),
    ],
)
def test_the_robust_gap_by_hand(tau, value, weights):
    scores, rewards = jnp.array([-1.0, -0.5, -2.0]), jnp.array([1.0, 0.0, 0.0])
    loss, gradient = value_and_grad(lambda s: one_disco(s, rewards, tau=tau))(scores)
    assert float(loss) - 1.0 == pytest.approx(value, abs=1e-4)
    np.testing.assert_allclose(gradient, [-1.0, *weights], atol=5e-4)


@pytest.mark.parametrize("surrogate", ["identity", "logistic", "hinge", "squared_hinge"])
def test_the_pairwise_gap_is_the_mean_over_pairs(surrogate):
    l = {  # noqa: E741
        "identity": lambda x: x,
        "logistic": lambda x: -np.log1p(np.exp(-x)),
        "hinge": lambda x: -max(1 - x, 0.0),
        "squared_hinge": lambda x: -(max(1 - x, 0.0) ** 2),
    }[surrogate]
    expected = []
    for scores, rewards in zip(SCORES.astype(float), REWARDS):
        pairs = itertools.product(scores[rewards == 1], scores[rewards == 0])
        expected.append(-np.mean([l(a - b) for a, b in pairs]))
    loss = run(one_disco_b, SCORES, REWARDS, surrogate=surrogate)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_limits_of_the_temperature(x64):
    scores = jnp.asarray(SCORES, jnp.float64)
    plain = run(one_disco_b, scores, REWARDS)
    np.testing.assert_allclose(run(one_disco, scores, REWARDS, tau=1e6), plain, atol=1e-5)
    # The gradients agree too, and in float32, where the log of a sum of exps would not.
    single = run(one_disco, SCORES, REWARDS, tau=1e6)
    np.testing.assert_allclose(single, plain, atol=1e-5)
    slopes = [
        grad(lambda s: one_disco(s, REWARDS, tau=1e6).sum())(scores),
        grad(lambda s: one_disco_b(s, REWARDS).sum())(scores),
    ]
    np.testing.assert_allclose(*slopes, atol=1e-5)
    hardest = [max(s[r == 0]) - s[r == 1].mean() for s, r in zip(SCORES, REWARDS)]
    np.testing.assert_allclose(run(one_disco, scores, REWARDS, tau=1e-3), hardest, atol=5e-3)


@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0])
def test_one_wrong_answer_leaves_the_temperature_no_say(tau):
    rewards = np.array([1, 1, 0, 1, 1, 1], np.float32)
    np.testing.assert_allclose(
        run(one_disco, SCORES[0], rewards, tau=tau),
        run(one_disco_b, SCORES[0], rewards),
        rtol=1e-5,
    )


def test_a_common_shift_of_the_scores_changes_nothing():
    for function in (one_disco, one_disco_b):
        both = run(function, SCORES, REWARDS), run(function, SCORES + 3.0, REWARDS)
        np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        (np.ones(6), None),
        (np.zeros(6), None),
        (np.full(6, np.nan), None),
        (np.array([1, 0.5, 0.5, -1, 2, np.nan]), None),  # neither 0 nor 1: in no class
        (np.array([1, 0, 0, 0, 0, 0]), np.array([0, 1, 1, 1, 1, 1])),
    ],
)
def test_a_question_without_both_classes_contributes_nothing(rewards, valid):
    for function in (one_disco, one_disco_b):
        value, slope = value_and_grad(lambda s: function(s, rewards, valid=valid))(SCORES[0])  # noqa: B023
        assert value == 0.0
        np.testing.assert_array_equal(slope, 0.0)


def test_other_answers_change_nothing():
    scores = np.append(SCORES[0], [np.inf, -np.inf, 7.0]).astype(np.float32)
    rewards = np.append(REWARDS[0], [0.0, 1.0, 0.5]).astype(np.float32)
    for function in (one_disco, one_disco_b):
        value, slope = value_and_grad(lambda s: function(s, rewards))(scores)  # noqa: B023
        assert float(value) == pytest.approx(float(run(function, SCORES[0], REWARDS[0])), rel=1e-6)
        assert np.all(np.isfinite(slope)) and np.all(slope[6:] == 0)


def test_the_mean_over_questions_is_chosen_by_the_mask():
    rewards = np.concatenate([REWARDS, np.ones((2, 6), np.float32)])
    loss = run(one_disco, np.concatenate([SCORES, SCORES]), rewards)
    everything = masking.reduce(loss, np.ones(4), mode="sequence")
    mixed = masking.reduce(loss, one_dynamic_sampling_filter(rewards), mode="sequence")
    assert float(mixed) == pytest.approx(2 * float(everything), rel=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("right", [True, False])
def test_an_answer_left_out_is_not_there(right):
    scores, rewards = jnp.asarray(SCORES), jnp.asarray(REWARDS)
    out = int(np.flatnonzero(REWARDS[0] == right)[0])
    valid = jnp.ones_like(rewards, bool).at[0, out].set(False)
    kept = np.arange(6) != out
    for loss in (one_disco, one_disco_b):
        found = loss(scores, rewards, valid=valid)
        np.testing.assert_allclose(found[0], loss(scores[0, kept], rewards[0, kept]), rtol=1e-5)
        np.testing.assert_allclose(found[1], loss(scores[1], rewards[1]), rtol=1e-6)


def test_the_hinge_of_disco_b_is_flat_at_its_end(x64):
    rewards = jnp.array([1.0, 0.0])
    slope = jax.grad(lambda s: one_disco_b(s, rewards, surrogate="hinge"))
    np.testing.assert_array_equal(slope(jnp.array([1.0, 0.0])), 0.0)
    np.testing.assert_array_equal(slope(jnp.array([0.9, 0.0])), [-1.0, 1.0])
