"""SimPO, CPO, ORPO and log-odds: by hand, defaults, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import agrees_with

from polgrad import losses

SUMS = np.array([-10.0]), np.array([-12.0])
MEANS = np.array([-2.0]), np.array([-2.0])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_values_by_hand():
    np.testing.assert_allclose(losses.simpo(*MEANS), 1.313262, atol=1e-6)
    np.testing.assert_allclose(losses.cpo(*SUMS, alpha=0.0), 0.598139, atol=1e-6)
    np.testing.assert_allclose(losses.cpo(*SUMS), 10.598139, atol=1e-6)
    np.testing.assert_allclose(losses.orpo(*MEANS), 2.069315, atol=1e-6)
    w, r = np.array([-0.5]), np.array([-1.5])
    np.testing.assert_allclose(losses.simpo(w, r), math.log1p(math.exp(-1)), rtol=1e-9)
    odds = math.log(math.exp(1.5) - 1) - math.log(math.exp(0.5) - 1)
    np.testing.assert_allclose(
        losses.orpo(w, r, beta=0.3), 0.5 + 0.3 * math.log1p(math.exp(-odds)), rtol=1e-9
    )


def test_without_a_margin_simpo_is_dpo_with_a_uniform_reference():
    w, r = np.array([-0.5]), np.array([-1.5])
    np.testing.assert_allclose(
        losses.simpo(w, r, beta=0.7, gamma=0.0), losses.dpo(w, r, beta=0.7), rtol=1e-12
    )


def log_sigmoid(z):
    return -np.logaddexp(0.0, -z)


def odds(x):
    return x - np.log1p(-np.exp(x))


def bent(x):
    return (1 - np.exp(-0.25 * x)) / 0.25


REFERENCES = {
    "simpo": (losses.simpo, lambda w, r: -log_sigmoid(2 * (w - r) - 1), 2),
    "alphapo": (losses.alphapo, lambda w, r: -log_sigmoid(2.5 * (bent(w) - bent(r)) - 0.1), 2),
    "cpo": (losses.cpo, lambda w, r: -log_sigmoid(0.1 * (w - r)) - w, 2),
    "slic": (losses.slic, lambda w, r, t: np.maximum(0, 1 - w + r) - 0.1 * t, 3),
    "tpo": (losses.tpo, lambda w, r, g: -log_sigmoid(0.01 * (w - r)) - g, 3),
    "orpo": (losses.orpo, lambda w, r: -w - 0.1 * log_sigmoid(odds(w) - odds(r)), 2),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradient_are_those_of_the_formula(name):
    agrees_with(*REFERENCES[name], below=0)


def test_reductions():
    w, r, g = -np.random.default_rng(0).uniform(0.1, 5, (3, 4))
    straight = losses.alphapo(w, r, beta=2.0, gamma=0.5, alpha=0.0)
    np.testing.assert_allclose(straight, losses.simpo(w, r, beta=2.0, gamma=0.5), rtol=1e-12)
    weak = losses.alphapo(w, r, beta=0.5, gamma=0.5, alpha=0.0)
    np.testing.assert_allclose(weak, losses.simpo(w, r, beta=0.5, gamma=0.5), rtol=1e-12)
    nearly = losses.alphapo(w, r, beta=2.0, gamma=0.5, alpha=1e-12)
    np.testing.assert_allclose(nearly, straight, rtol=1e-9)
    np.testing.assert_allclose(
        losses.tpo(w, r, w, beta=0.3, alpha=0.5), losses.cpo(w, r, beta=0.3, alpha=0.5)
    )
    np.testing.assert_allclose(losses.slic(w, r, g, alpha=0.0), losses.hinge(w, r, beta=1.0))
    np.testing.assert_allclose(
        losses.slic(w, r, g, delta=2.0) - losses.slic(w, r, 0 * g, delta=2.0), -0.1 * g
    )


def test_log_probabilities_far_below_are_held():
    far = jnp.array([-jnp.inf, -30.0, jnp.nan])
    value, slope = jax.value_and_grad(lambda x: losses.alphapo(x, -jnp.ones(3)).sum())(far)
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope[jnp.array([0, 2])], 0.0)
    held = losses.alphapo(far, -jnp.ones(3))
    np.testing.assert_allclose(held[:2], losses.alphapo(jnp.full(2, -20.0), -jnp.ones(2)))
    edge = jax.grad(lambda x: losses.alphapo(x, -jnp.ones(1)).sum())(jnp.array([-20.0]))
    assert edge[0] < 0.0
    # A chosen answer that has become very unlikely is still raised.
    np.testing.assert_allclose(slope[1], edge[0])
    flat = jax.grad(lambda x: losses.slic(x, 0 * x, 0 * x).sum())(jnp.array([0.9, 1.0, 1.1]))
    np.testing.assert_array_equal(flat, [-1.0, 0.0, 0.0])


@pytest.mark.parametrize("loss", [losses.simpo, losses.cpo, losses.orpo, losses.alphapo])
def test_bad_arguments(loss):
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        loss(zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="rejected_logp"):
        loss(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="chosen_logp"):
        loss(zero[None], zero[None])
    with pytest.raises(ValueError, match="gamma"):
        losses.simpo(zero, zero, gamma=-1.0)
    with pytest.raises(ValueError, match="alpha"):
        losses.cpo(zero, zero, alpha=-1.0)
    with pytest.raises(ValueError, match="gamma"):
        losses.alphapo(zero, zero, gamma=-1.0)
    for alpha in (-4.1, 4.1):
        with pytest.raises(ValueError, match="alpha"):
            losses.alphapo(zero, zero, alpha=alpha)
    with pytest.raises(ValueError, match="delta"):
        losses.slic(zero, zero, zero, delta=0.0)
    with pytest.raises(ValueError, match="beta"):
        losses.alphapo(zero, zero, beta=0.0)
    for loss, third in ((losses.slic, "target_logp"), (losses.tpo, "gold_logp")):
        with pytest.raises(ValueError, match="alpha"):
            loss(zero, zero, zero, alpha=-0.1)
        with pytest.raises(ValueError, match=third):
            loss(zero, zero, jnp.zeros(3))
        with pytest.raises(ValueError, match="rejected_logp"):
            loss(zero, jnp.zeros(3), zero)
    with pytest.raises(ValueError, match="beta"):
        losses.tpo(zero, zero, zero, beta=0.0)
