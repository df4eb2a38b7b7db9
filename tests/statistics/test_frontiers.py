"""Fronts of score over KL: hand numbers, brute force, best-of-n by enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad.statistics import frontiers

NAN, INF = np.nan, np.inf
# The second run of a pool is worse at KL 2, ties at 1 and falls at the end.
KL = np.array([0.0, 1.0, 2.0, 4.0, 1.0, 2.0, 6.0, NAN])
SCORES = np.array([0.5, 0.6, 0.7, 0.8, 0.6, 0.65, 0.7, 9.0])


def test_the_front_by_hand():
    front = frontiers.pareto_front(KL, SCORES)
    np.testing.assert_array_equal(front, [1, 1, 1, 1, 0, 0, 0, 0])
    # At one KL the higher score, at one score the smaller KL.
    np.testing.assert_array_equal(frontiers.pareto_front([1.0, 1.0], [0.1, 0.2]), [0, 1])
    np.testing.assert_array_equal(frontiers.pareto_front([2.0, 1.0], [0.2, 0.2]), [0, 1])
    np.testing.assert_array_equal(
        frontiers.pareto_front([1.0, -INF, 0.0], [0.1, 0.2, INF]), [1, 0, 0]
    )


points = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=7, unique=True
)


@given(points)
def test_the_front_is_what_nobody_beats(pairs):
    kl, scores = np.array(pairs, float).T
    front = frontiers.pareto_front(kl, scores)
    for i, (x, y) in enumerate(pairs):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in pairs)
        assert front[i] == (not beaten)


def test_the_score_that_a_budget_buys():
    budgets = [-1.0, 0.0, 0.5, 1.5, 3.0, 4.0, 100.0]
    bought = frontiers.at_kl(KL, SCORES, budgets)
    np.testing.assert_allclose(bought, [NAN, 0.5, 0.55, 0.65, 0.75, 0.8, 0.8], rtol=1e-12)
    # The order of the points is free.
    np.testing.assert_allclose(frontiers.at_kl(KL[::-1], SCORES[::-1], budgets), bought)


def test_the_area_by_hand():
    # Trapezia 0.55, 0.65 and twice 0.75.
    assert frontiers.area(KL, SCORES, max_kl=4.0) == pytest.approx((0.55 + 0.65 + 1.5) / 4)
    assert frontiers.area(KL, SCORES, max_kl=8.0) == pytest.approx((2.7 + 3.2) / 8)
    assert frontiers.area(KL, SCORES, max_kl=0.5) == pytest.approx(0.525)
    # Without a point at 0 the reference is one, and what is below it does not count.
    assert frontiers.area([2.0], [0.7], max_kl=2.0) == pytest.approx(0.6)
    assert frontiers.area([2.0], [0.1], max_kl=2.0) == pytest.approx(0.5)
    assert frontiers.area([2.0], [1.0], max_kl=2.0, base=0.0) == pytest.approx(0.5)


def test_the_peak():
    assert frontiers.peak(KL, SCORES) == (4.0, 0.8)
    assert frontiers.peak([3.0, 1.0], [0.5, 0.5]) == (1.0, 0.5)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 4))
def test_best_of_n_is_the_mean_over_all_subsets(scores, n):
    rewards = np.array([1.0, -2.0, 4.0, 0.5])
    scores = np.array(scores, float)
    means = []
    for subset in itertools.combinations(range(4), n):
        chosen = list(subset)
        best = scores[chosen] == scores[chosen].max()
        means.append(rewards[chosen][best].mean())
    estimate = frontiers.best_of_n(scores[None], rewards[None], n)
    np.testing.assert_allclose(estimate, [np.mean(means)], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        frontiers.best_of_n(scores[None], np.ones((1, 4)), n), 1.0, rtol=1e-12
    )


def test_best_of_n_by_hand():
    scores = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 1.0]])
    rewards = np.array([[6.0, 0.0, 3.0], [6.0, 0.0, 3.0]])
    np.testing.assert_allclose(frontiers.best_of_n(scores, rewards, 1), [3.0, 3.0])
    np.testing.assert_allclose(frontiers.best_of_n(scores, rewards, 2), [2.0, 3.0])
    np.testing.assert_allclose(frontiers.best_of_n(scores, rewards, 3), [3.0, 3.0])


def test_the_kl_of_best_of_n():
    np.testing.assert_allclose(
        frontiers.best_of_n_kl([1, 2, 16]), [0.0, math.log(2) - 0.5, math.log(16) - 15 / 16]
    )
    # Against the exact policy: on many equal actions the best has density n F^(n - 1).
    edges = (np.arange(100_001) / 100_000) ** 4
    policy = np.diff(edges)
    exact = np.sum(policy * np.log(policy * 100_000))
    np.testing.assert_allclose(frontiers.best_of_n_kl(4), exact, atol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="scores has shape"):
        frontiers.pareto_front([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="scores has shape"):
        frontiers.peak([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="none of the 1 points"):
        frontiers.at_kl([NAN], [1.0], [1.0])
    for max_kl in (0.0, -1.0):
        with pytest.raises(ValueError, match="max_kl is"):
            frontiers.area(KL, SCORES, max_kl=max_kl)
    for n in (0, 3):
        with pytest.raises(ValueError, match="n is .*1..N = 2"):
            frontiers.best_of_n(np.ones((1, 2)), np.ones((1, 2)), n)
    with pytest.raises(ValueError, match="rewards has shape"):
        frontiers.best_of_n(np.ones((1, 2)), np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match="expected \\[Q, N\\]"):
        frontiers.best_of_n(np.ones(2), np.ones(2), 1)
    with pytest.raises(ValueError, match="n is 0"):
        frontiers.best_of_n_kl(0)
