"""Soft value iteration: consistency, one state by hand, shaping; preferences by regret."""

import jax
import numpy as np
import pytest

from polgrad import tabular

RNG = np.random.default_rng(0)
TRANSITIONS = RNG.dirichlet(np.ones(5), size=(5, 3))
REWARDS = RNG.normal(size=(5, 3))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def solve(rewards, alpha=0.5):
    return tabular.soft_value_iteration(TRANSITIONS, rewards, discount=0.9, alpha=alpha)


def test_advantages_are_consistent_and_values_satisfy_the_equation():
    values = solve(REWARDS)
    np.testing.assert_allclose(np.exp(values.advantages / 0.5).sum(-1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        jax.nn.softmax(values.q / 0.5), np.exp(values.advantages / 0.5), rtol=1e-12
    )
    np.testing.assert_allclose(values.q, REWARDS + 0.9 * TRANSITIONS @ values.v, rtol=1e-12)
    np.testing.assert_allclose(values.v, 0.5 * np.log(np.exp(values.q / 0.5).sum(-1)), rtol=1e-12)


def test_one_state_by_hand():
    values = tabular.soft_value_iteration(
        np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), discount=0.5, alpha=1.0
    )
    v = 2 * np.log(np.e + 1)
    np.testing.assert_allclose(values.v, [v], rtol=1e-12)
    np.testing.assert_allclose(values.q, [[1 + v / 2, v / 2]], rtol=1e-12)
    once = tabular.soft_value_iteration(
        np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), discount=0.5, alpha=1.0, iterations=1
    )
    first = np.log(np.e + 1)
    np.testing.assert_allclose(once.q, [[1 + first / 2, first / 2]], rtol=1e-12)


def test_potential_shaping_leaves_regret_alone_but_not_what_a_segment_pays():
    potential = RNG.normal(size=5)
    shaped = REWARDS + 0.9 * TRANSITIONS @ potential - potential[:, None]
    plain, other = solve(REWARDS), solve(shaped)
    np.testing.assert_allclose(other.advantages, plain.advantages, atol=1e-9)
    np.testing.assert_allclose(other.v, plain.v - potential, atol=1e-9)
    states, actions = RNG.integers(5, size=(2, 4, 6)), RNG.integers(3, size=(2, 4, 6))
    ones = np.ones((4, 6))

    def label(table):
        first, second = (table[s, a] for s, a in zip(states, actions))
        return tabular.segment_preference(first, second, ones, ones)

    np.testing.assert_allclose(label(other.advantages), label(plain.advantages), atol=1e-9)
    assert np.all(np.abs(label(shaped) - label(REWARDS)) > 1e-3)


def test_segment_preference_by_hand():
    first, second = np.array([[1.0, 2.0, 9.0]]), np.array([[0.5, 9.0, 1.0]])
    found = tabular.segment_preference(
        first, second, np.array([[1, 1, 0]]), np.array([[1, 0, 1]]), discount=0.5
    )
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(2.0 - 0.75))), rtol=1e-12)
    plain = tabular.segment_preference(first, second, np.ones((1, 3)), np.ones((1, 3)))
    np.testing.assert_allclose(plain, 1 / (1 + np.exp(-1.5)), rtol=1e-12)


def test_bad_arguments():
    for settings in ({"discount": 1.0, "alpha": 1.0}, {"discount": 0.9, "alpha": 0.0}):
        with pytest.raises(ValueError, match="discount|alpha"):
            tabular.soft_value_iteration(TRANSITIONS, REWARDS, **settings)
    with pytest.raises(ValueError, match="transitions"):
        tabular.soft_value_iteration(TRANSITIONS[:4], REWARDS, discount=0.9, alpha=1.0)
    with pytest.raises(ValueError, match="rewards"):
        tabular.soft_value_iteration(TRANSITIONS, REWARDS[0], discount=0.9, alpha=1.0)
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match="discount"):
        tabular.segment_preference(ones, ones, ones, ones, discount=1.1)
    with pytest.raises(ValueError, match="first_mask"):
        tabular.segment_preference(ones, ones, ones[:1], ones)
    with pytest.raises(ValueError, match="second_mask"):
        tabular.segment_preference(ones, ones, ones, ones[:1])
