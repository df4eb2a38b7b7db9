"""Unlikelihood: hand-computed values, its slope, precision at both ends, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import losses


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_values_by_hand(x64):
    loss = run(losses.unlikelihood, jnp.log(jnp.array([0.5, 0.9, 0.01])))
    np.testing.assert_allclose(loss, [0.693147, 2.302585, 0.010050], atol=1e-6)


def test_slope_is_the_odds(x64):
    p = jnp.array([0.2, 0.5, 0.6, 0.999])
    slope = grad(lambda x: losses.unlikelihood(x).sum())(jnp.log(p))
    np.testing.assert_allclose(slope, p / (1 - p), rtol=1e-9)


def test_gradient_in_the_logits_takes_from_the_token_in_proportion_to_its_probability(x64):
    logits = jnp.array([0.5, -0.3, 1.1])
    p = jax.nn.softmax(logits)
    slope = grad(lambda z: losses.unlikelihood(jax.nn.log_softmax(z)[0]))(logits)
    expected = p[0] / (1 - p[0]) * (jnp.eye(3)[0] - p)
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_precise_where_one_minus_p_cancels():
    x = -np.logspace(-6, 1.2, 50)
    exact = -np.log(-np.expm1(x))
    np.testing.assert_allclose(run(losses.unlikelihood, x.astype(np.float32)), exact, rtol=3e-6)
    # exp(-60) is below the resolution of 1 - p.
    np.testing.assert_allclose(
        run(losses.unlikelihood, jnp.array([-60.0])), math.exp(-60), rtol=1e-5
    )


def test_edges_are_finite():
    logp = jnp.array([0.0, -1e-12, 1e-8, -jnp.inf, -1.0])
    loss = run(losses.unlikelihood, logp)
    np.testing.assert_allclose(loss[:4], [20.0, 20.0, 20.0, 0.0], rtol=1e-6)
    slope = grad(lambda x: losses.unlikelihood(x).sum())(logp)
    # A token to avoid that is almost certain is still pushed away.
    np.testing.assert_allclose(slope[:4], [*[math.exp(20.0)] * 3, 0.0], rtol=1e-6)
    assert slope[4] > 0


def test_where_certainty_begins_and_what_cannot_be():
    with jax.enable_x64(True):
        edge = jnp.array([-math.exp(-20.0), -jnp.inf, 0.0])
        np.testing.assert_allclose(losses.unlikelihood(edge), [20.0, 0.0, 20.0], rtol=1e-9)
        slope = jax.grad(lambda x: losses.unlikelihood(x).sum())(edge)
        np.testing.assert_allclose(slope, [math.exp(20.0), 0.0, math.exp(20.0)], rtol=1e-6)
