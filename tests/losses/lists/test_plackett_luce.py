"""Plackett-Luce: rankings of more than two answers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses
from polgrad.tabular.bandits import kl_regularized_optimum

# Compiled once a shape; beta is traced, as under a schedule.
dpo = jax.jit(losses.dpo, static_argnames="label_smoothing")
implicit_reward = jax.jit(losses.implicit_reward)
plackett_luce = jax.jit(losses.plackett_luce)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def minimise(loss, size, steps=4_000, rate=1.0):
    step = lambda _, z: z - rate * grad(loss)(z)  # noqa: E731
    return jax.nn.softmax(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, jnp.zeros(size)))())


def test_plackett_luce_by_hand_and_for_two(x64):
    np.testing.assert_allclose(plackett_luce(jnp.array([[1.0, 0.0, -1.0]])), 0.720868, atol=1e-6)
    scores = jnp.array([[0.7, -0.4], [-3.0, 2.0]])
    np.testing.assert_allclose(
        plackett_luce(0.3 * scores), dpo(scores[:, 0], scores[:, 1], beta=0.3), rtol=1e-12
    )


def test_plackett_luce_is_a_distribution_over_rankings(x64):
    scores = jnp.array([0.3, -1.0, 0.8, 0.1])
    orders = jnp.array(list(itertools.permutations(range(4))))
    np.testing.assert_allclose(jnp.exp(-plackett_luce(scores[orders])).sum(), 1.0, rtol=1e-12)


@pytest.mark.slow
def test_both_derivatives_of_plackett_luce_are_those_of_its_formula(x64):
    def formula(scores):
        rounds = [jax.nn.logsumexp(scores[k:]) - scores[k] for k in (0, 2, 3, 5)]  # without 1, 4
        return sum(rounds)

    kept = jnp.array([0, 2, 3, 5])
    # Far apart and equal: sums of exponentials that would overflow, and ties.
    for scores in (jnp.array([900.0, -0.4, 0.7, 0.7]), jnp.array([-900.0, 0.2, 800.0, -1.0])):
        spread = jnp.full(6, -jnp.inf).at[kept].set(scores)
        loss = lambda s: plackett_luce(s[None], valid=jnp.arange(6)[None] % 3 != 1)[0]  # noqa: E731
        np.testing.assert_allclose(loss(spread), formula(spread), rtol=1e-12)
        for derivative in (jax.grad, jax.hessian):
            expected = derivative(lambda s: formula(jnp.full(6, -jnp.inf).at[kept].set(s)))(scores)
            found = derivative(lambda s: loss(jnp.zeros(6).at[kept].set(s)))(scores)  # noqa: B023
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_plackett_luce_minimiser_is_the_regularised_optimum(x64):
    rewards, log_reference = jnp.array([0.5, -0.2, 0.1]), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    orders = jnp.array(list(itertools.permutations(range(3))))
    weights = jnp.exp(-plackett_luce(rewards[orders]))

    def loss(z):
        scores = implicit_reward(jax.nn.log_softmax(z), log_reference, beta=0.5)
        return weights @ plackett_luce(scores[orders])

    optimum = jnp.exp(kl_regularized_optimum(log_reference, rewards, beta=0.5))
    np.testing.assert_allclose(minimise(loss, 3), optimum, atol=1e-8)


def test_plackett_luce_drops_invalid_answers(x64):
    scores = jnp.array([[0.3, 99.0, -0.5, -jnp.inf], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    valid = jnp.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    losses = plackett_luce(scores, valid=valid)
    np.testing.assert_allclose(losses[0], plackett_luce(jnp.array([[0.3, -0.5]]))[0], rtol=1e-12)
    np.testing.assert_array_equal(losses[1:], 0.0)
    gradient = grad(lambda s: plackett_luce(s, valid=valid).sum())(scores)
    np.testing.assert_array_equal(gradient[~valid], 0.0)
    assert np.all(np.isfinite(gradient))


def test_a_ranking_of_nobody_costs_nothing(x64):
    scores = jnp.array([[1.0, 2.0, 3.0], [5.0, -jnp.inf, jnp.nan]])
    valid = jnp.array([[False, False, False], [True, False, False]])
    loss = lambda s: losses.plackett_luce(s, valid=valid)  # noqa: E731
    np.testing.assert_allclose(loss(scores), 0.0, atol=1e-12)
    slope = jax.grad(lambda s: loss(s).sum())(scores)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
