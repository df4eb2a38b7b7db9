"""Relabelled pairs: each answer chosen at its own score; goals, selection and flips, edges."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses
from polgrad.data import augmentation, preferences

N = 4
PROMPT = {"tokens": np.arange(12).reshape(N, 3), "id": np.arange(N)}
CHOSEN, REJECTED = np.arange(8).reshape(N, 2), 100 + np.arange(8).reshape(N, 2)
HIGH, LOW = np.array([9.0, 5.0, 3.0, 7.0], np.float32), np.array([8.0, 5.0, 1.0, 2.0], np.float32)
scores = st.floats(0.0, 10.0, width=32)


def test_every_answer_is_chosen_at_its_own_score():
    found = run(augmentation.reward_augment, PROMPT, CHOSEN, REJECTED, HIGH, LOW)
    np.testing.assert_array_equal(found.goal, [*HIGH, *LOW])
    np.testing.assert_array_equal(found.chosen, [*CHOSEN, *REJECTED])
    np.testing.assert_array_equal(found.rejected, [*REJECTED, *CHOSEN])
    np.testing.assert_array_equal(found.weights, [1, 0, 1, 1, 1, 0, 1, 1])  # the second is a tie
    for name, x in PROMPT.items():
        np.testing.assert_array_equal(found.prompt[name], [*x, *x])
    kept = run(augmentation.reward_augment, PROMPT, CHOSEN, REJECTED, HIGH, LOW, drop_ties=False)
    np.testing.assert_array_equal(kept.weights, 1.0)


def test_without_the_swap_it_is_the_same_data_twice():
    found = run(augmentation.reward_augment, PROMPT, CHOSEN, REJECTED, HIGH, LOW, swap=False)
    np.testing.assert_array_equal(found.chosen, [*CHOSEN, *CHOSEN])
    np.testing.assert_array_equal(found.rejected, [*REJECTED, *REJECTED])
    np.testing.assert_array_equal(found.goal, [*HIGH, *LOW])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_scores_that_are_missing(bad, side):
    rewards = [HIGH.copy(), LOW.copy()]
    rewards[side][0] = bad
    for settings in ({}, {"drop_ties": False}):
        found = run(augmentation.reward_augment, PROMPT, CHOSEN, REJECTED, *rewards, **settings)
        assert found.weights[0] == found.weights[N] == 0.0
        assert found.goal[0] == found.goal[N] == 0.0
        np.testing.assert_array_equal(found.weights[2:4], 1.0)


@given(scores, scores)
def test_every_relabelled_pair_agrees_with_the_goals_reward(first, second):
    high, low = np.full(N, first, np.float32), np.full(N, second, np.float32)
    found = run(augmentation.reward_augment, PROMPT, high, low, high, low)
    better = run(augmentation.goal_reward, found.chosen, found.goal)
    worse = run(augmentation.goal_reward, found.rejected, found.goal)
    np.testing.assert_array_equal(better, 0.0)
    np.testing.assert_allclose(worse, -((first - second) ** 2), rtol=1e-5, atol=1e-6)
    order = run(augmentation.goal_conditioned_preference, found.chosen, found.rejected, found.goal)
    np.testing.assert_array_equal(order, np.sign(abs(high[0] - low[0])))
    np.testing.assert_array_equal(order, found.weights)


def test_goals_between_and_beyond_the_scores():
    goal = np.array([10.0, 8.4, 8.5, 9.0, np.nan], np.float32)
    nine, eight = np.full(5, 9.0, np.float32), np.full(5, 8.0, np.float32)
    found = run(augmentation.goal_conditioned_preference, nine, eight, goal)
    np.testing.assert_array_equal(found, [1, -1, 0, 1, 0])
    assert found.dtype == jnp.float32


def test_a_policy_that_ignores_the_goal_learns_nothing():
    """At a margin of 0 the two copies cancel; the least it can pay is 2 log 2."""

    def both(z, smoothing=0.0):
        zero = jnp.zeros(1)
        pair = [losses.dpo(s * z, zero, beta=1.0, label_smoothing=smoothing)[0] for s in (1, -1)]
        return sum(pair)

    value, slope = jax.jit(jax.value_and_grad(both))(jnp.zeros(1))
    assert float(value) == pytest.approx(1.386294, abs=1e-6)
    np.testing.assert_array_equal(slope, 0.0)
    assert all(both(jnp.array([z])) > value for z in (-1.0, 0.5))
    # Told the goal, the margins differ: at the one goal log(0.7 / 0.3), at the other its negative.
    smooth = grad(lambda z: losses.dpo(z, jnp.zeros(2), beta=1.0, label_smoothing=0.3).sum())
    z = jnp.log(jnp.array([0.7 / 0.3] * 2))
    np.testing.assert_allclose(z, 0.847298, atol=1e-6)
    np.testing.assert_allclose(smooth(z), 0.0, atol=1e-7)


def test_encoded_goals():
    centers = np.array([1.0, 4.0, 7.0, 10.0], np.float32)
    goal = np.array([[5.0, 4.0], [-3.0, 99.0]], np.float32)
    found = run(augmentation.encode_goal, goal, centers, width=2.0)
    x = np.clip(goal, 1.0, 10.0)[..., None].astype(float)
    expected = np.exp(-((x - centers) ** 2) / (2 * 2.0**2))
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-5)
    odd = np.array([[np.nan, np.inf], [-np.inf, 1.0]], np.float32)
    found = run(augmentation.encode_goal, odd, centers, width=2.0)
    for at in ((0, 0), (1, 0)):
        np.testing.assert_allclose(found[at], found[1, 1], rtol=1e-6)
    assert int(found[0, 1].argmax()) == 3


def test_goal_tokens():
    goal = np.array([0.0, 1.0, 6.4, 6.6, 10.0, 12.0, np.nan, np.inf], np.float32)
    found = run(augmentation.goal_token, goal, low=1, high=10, offset=50)
    np.testing.assert_array_equal(found, [50, 50, 55, 56, 59, 59, 50, 59])
    plain = run(augmentation.goal_token, goal, low=0, high=10)
    np.testing.assert_array_equal(plain[:5], [0, 1, 6, 7, 10])
    assert found.dtype == jnp.int32


def test_bad_arguments():
    x, y = jnp.zeros(3), jnp.zeros(4)
    for call, message in (
        (lambda: augmentation.reward_augment(x, x, x, x[None], x[None]), "chosen_rewards has"),
        (lambda: augmentation.reward_augment(x, x, x, x, y), "rejected_rewards has shape"),
        (lambda: augmentation.goal_conditioned_preference(x, y, x), "second_rewards has shape"),
        (lambda: augmentation.encode_goal(x, y[None], width=1.0), "centers has shape"),
        (lambda: augmentation.encode_goal(x, y[:0], width=1.0), "centers has shape"),
        (lambda: augmentation.encode_goal(x, y, width=0.0), "width is 0"),
        (lambda: augmentation.goal_token(x, low=3, high=2), "high is 2"),
        (lambda: preferences.select_pair(x, y), "noise has shape"),
        (lambda: preferences.select_pair(x[:1], x[:1]), "scores has shape"),
        (lambda: preferences.select_pair(x[0], x[0]), "scores has shape"),
        (lambda: preferences.select_pair(x, x, valid=jnp.ones(4, bool)), "valid has shape"),
        (lambda: preferences.flip_pairs(x, x, x[None]), "flip has shape"),
        (lambda: preferences.flip_pairs(x, x, y), "flip has shape"),
        (lambda: preferences.flip_pairs(x, y, x), "rejected has shape|chosen has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert augmentation.goal_token(jnp.ones(()), low=1, high=1) == 0


def test_the_package_loads_it_on_first_use():
    code = (
        "import sys; from polgrad import data; before = 'jax' in sys.modules; "
        "print(before, data.augmentation.__name__, 'augmentation' in dir(data))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "polgrad.data.augmentation", "True"], done.stderr
