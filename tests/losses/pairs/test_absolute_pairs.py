"""NCA, BCO and APO: slopes, optima, defaults; the values are in the table of test_pairs.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses

ALL = {"nca": 0.01, "bco": 0.01, "apo_zero": 0.1, "apo_down": 0.1}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ALL)
def test_values_and_defaults(name):
    w, r = np.array([1.0, -2.0]), np.array([-0.5, 3.0])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    loss = lambda x: np.log1p(np.exp(-x))  # noqa: E731
    x, y = ALL[name] * w, ALL[name] * r
    by_hand = {
        "nca": loss(x) + loss(-x) / 2 + loss(-y) / 2,
        "bco": loss(x) + loss(-y),
        "apo_zero": 1 - sigmoid(x) + sigmoid(y),
        "apo_down": sigmoid(x) + 1 - sigmoid(x - y),
    }[name]
    np.testing.assert_allclose(getattr(losses, name)(w, r), by_hand, rtol=1e-12)


def test_optima_of_frequencies():
    c = 0.7

    def slope(loss, u):
        mean = lambda x: (c * loss(x, 0 * x) + (1 - c) * loss(0 * x, x)).sum()  # noqa: E731
        return jax.grad(mean)(jnp.array([u]))

    nca = lambda w, r: losses.nca(w, r, beta=1.0)  # noqa: E731
    np.testing.assert_allclose(slope(nca, math.log(c / 0.5)), 0.0, atol=1e-12)
    bco = lambda w, r: losses.bco(w, r, beta=1.0, reward_shift=0.3)  # noqa: E731
    np.testing.assert_allclose(slope(bco, 0.3 + math.log(c / (1 - c))), 0.0, atol=1e-12)


def test_the_shift_of_bco_has_no_gradient():
    zero = jnp.zeros(1)
    slope = jax.grad(lambda d: losses.bco(zero, zero + 1, reward_shift=d).sum())(0.2)
    np.testing.assert_array_equal(slope, 0.0)


def test_apo_down_starts_flat_in_the_chosen_answer():
    slope = jax.grad(lambda w, r: losses.apo_down(w, r).sum())
    np.testing.assert_allclose(slope(jnp.zeros(1), jnp.zeros(1)), 0.0, atol=1e-15)
    assert slope(jnp.zeros(1), -jnp.ones(1)) > 0


@pytest.mark.parametrize("name", ALL)
def test_bad_arguments(name):
    loss, zero = getattr(losses, name), jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        loss(zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="rejected_logratio"):
        loss(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="chosen_logratio"):
        loss(zero[None], zero[None])
