"""Annotators told apart by their choices, in a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import reward_models, tabular


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


ANSWERS, ANNOTATORS, PAIRS = 4, 9, 60
TRUTH = np.array([[2.0, 1.0, -1.0, -2.0], [-2.0, 1.5, 1.0, -0.5]])


def comparisons(seed):
    """Everybody but the last annotator judges; the first six belong to the first group."""
    rng = np.random.default_rng(seed)
    group = (np.arange(ANNOTATORS - 1) >= 6).astype(int)
    annotator = np.repeat(np.arange(ANNOTATORS - 1), PAIRS)
    first, second = rng.integers(0, ANSWERS, (2, len(annotator)))
    second = np.where(first == second, (second + 1) % ANSWERS, second)
    margin = TRUTH[group[annotator], first] - TRUTH[group[annotator], second]
    wins = rng.random(len(annotator)) < 1 / (1 + np.exp(-margin))
    chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
    table = np.eye(ANSWERS)
    return table[chosen] - table[rejected], annotator, group


def fit(differences, annotator, initial, **settings):
    return run(
        reward_models.fit_annotator_mixture,
        differences,
        annotator,
        initial,
        annotators=ANNOTATORS,
        **settings,
    )


def test_annotators_are_told_apart(x64):
    differences, annotator, group = comparisons(0)
    rng = np.random.default_rng(1)
    fits = [fit(differences, annotator, x) for x in rng.normal(size=(4, 2, ANSWERS))]
    assert all(len(f.loglikelihood) == 20 for f in fits)
    for history in (f.loglikelihood for f in fits):
        assert np.all(np.diff(history) >= -1e-9)
    best = max(fits, key=lambda f: f.loglikelihood[-1])
    found = np.asarray(best.assignment)
    assert found[-1] == -1  # judged nothing
    order = [0, 1] if found[0] == 0 else [1, 0]
    np.testing.assert_array_equal(np.asarray(order)[found[:-1]], group)
    rewards = np.asarray(best.parameters)[order]
    np.testing.assert_allclose(
        rewards - rewards.mean(1, keepdims=True), TRUTH - TRUTH.mean(1, keepdims=True), atol=0.8
    )
    # The optimum of each group's penalised likelihood, and the reported value.
    total = 0.0
    for u in range(2):
        theta = np.asarray(best.parameters)[u]
        mine = differences[found[annotator] == u]
        slope = (1 / (1 + np.exp(mine @ theta))) @ mine - 1e-3 * theta
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)
        total -= np.logaddexp(0, -mine @ theta).sum() + 0.5e-3 * theta @ theta
    assert float(best.loglikelihood[-1]) == pytest.approx(total, abs=1e-6)
    # The labels of the groups mean nothing.
    start = rng.normal(size=(2, ANSWERS))
    one, other = fit(differences, annotator, start), fit(differences, annotator, start[::-1].copy())
    np.testing.assert_allclose(one.loglikelihood, other.loglikelihood, rtol=1e-9)
    np.testing.assert_allclose(one.parameters, other.parameters[::-1], atol=1e-9)


def test_a_group_without_annotators_keeps_its_model(x64):
    differences, annotator, _ = comparisons(0)
    initial = np.stack([np.zeros(ANSWERS), np.array([-90.0, 0.0, 0.0, 90.0])])
    found = fit(differences, annotator, initial, rounds=1)
    np.testing.assert_array_equal(found.parameters[1], initial[1])
    np.testing.assert_array_equal(found.assignment[:-1], 0)
    assert np.all(np.abs(found.parameters[0]) > 1e-3)
    assert found.loglikelihood.shape == (1,)


def test_more_ridge_and_fewer_steps(x64):
    differences, annotator, _ = comparisons(0)
    initial = np.random.default_rng(1).normal(size=(2, ANSWERS))
    plain = fit(differences, annotator, initial, rounds=3)
    held = fit(differences, annotator, initial, rounds=3, ridge=50.0)
    assert np.abs(held.parameters).max() < 0.7 * np.abs(plain.parameters).max()
    short = fit(differences, annotator, initial, rounds=3, steps=1)
    assert np.all(np.diff(short.loglikelihood) > 0)
    assert short.loglikelihood[-1] < plain.loglikelihood[-1]


def test_bad_arguments():
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="beta is 0"):
        tabular.maxmin_policy(jnp.zeros(3), x, beta=0.0)
    with pytest.raises(ValueError, match="rewards has shape"):
        tabular.maxmin_policy(jnp.zeros(2), x, beta=1.0)
    who = jnp.zeros(3, int)
    for settings, message in (
        ({"ridge": 0.0}, "ridge is 0"),
        ({"rounds": 0}, "rounds is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            reward_models.fit_annotator_mixture(x, who, x, annotators=1, **settings)
    with pytest.raises(ValueError, match="differences has shape"):
        reward_models.fit_annotator_mixture(x[0], who, x, annotators=1)
    with pytest.raises(ValueError, match="initial has shape"):
        reward_models.fit_annotator_mixture(x, who, jnp.zeros((2, 3)), annotators=1)
    with pytest.raises(ValueError, match="other has shape"):
        tabular.preference_diversity(jnp.zeros((2, 2)), jnp.zeros((3, 3)))
