"""Imitation, RPO and implicit values: by hand, reductions, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_imitation():
    logp, lengths = jnp.array([-10.0, 0.0, -jnp.inf]), jnp.array([5, 0, 2])
    np.testing.assert_array_equal(losses.imitation(logp), [10.0, 0.0, 20.0])
    np.testing.assert_array_equal(losses.imitation(logp, lengths), [2.0, 0.0, 10.0])
    slope = jax.grad(lambda x: losses.imitation(x, lengths).sum())(logp)
    np.testing.assert_allclose(slope, [-0.2, -1.0, 0.0])
    of_length = jax.grad(lambda n: losses.imitation(logp, n).sum())(lengths.astype(float))
    np.testing.assert_array_equal(of_length, 0.0)


PAIR = np.array([1.0]), np.array([-0.5])


def test_rpo_by_hand_and_its_slope():
    logp = jnp.array([-10.0])
    np.testing.assert_allclose(losses.rpo(*PAIR, logp, beta=0.1), 0.625957, atol=1e-6)
    np.testing.assert_array_equal(
        losses.rpo(*PAIR, logp, adversary_weight=0.0), losses.dpo(*PAIR, beta=0.01)
    )
    loss = lambda x: losses.rpo(x + 11.0, PAIR[1], x, beta=0.1, adversary_weight=0.3).sum()  # noqa: E731
    sigma = 1 / (1 + math.exp(0.15))
    np.testing.assert_allclose(jax.grad(loss)(logp), -0.1 * (sigma + 0.3), rtol=1e-12)
    np.testing.assert_array_equal(
        losses.rpo(*PAIR, logp), losses.rpo(*PAIR, logp, beta=0.01, adversary_weight=0.005)
    )


def test_rpo_average_is_rpo_with_alpha_over_the_length():
    logp, lengths = jnp.array([-10.0]), jnp.array([5.0])
    average = losses.rpo_average(*PAIR, logp, lengths, beta=0.1, alpha=0.3 * 0.1 * 5)
    np.testing.assert_allclose(
        average, losses.rpo(*PAIR, logp, beta=0.1, adversary_weight=0.3), rtol=1e-12
    )
    np.testing.assert_allclose(
        losses.rpo_average(*PAIR, logp, lengths), math.log1p(math.exp(-0.75)) + 0.4, rtol=1e-9
    )
    empty = losses.rpo_average(*PAIR, 0 * logp, 0 * lengths)
    np.testing.assert_allclose(empty, losses.dpo(*PAIR, beta=0.5), rtol=1e-12)


def test_implicit_value_makes_advantages_log_probabilities():
    logits = jnp.array([[0.3, -1.0, 2.0], [0.0, -jnp.inf, 1.0]])
    value = losses.implicit_value(logits, beta=0.5)
    advantage = 0.5 * logits - value[:, None]
    np.testing.assert_allclose(advantage, 0.5 * jax.nn.log_softmax(logits), rtol=1e-12)
    np.testing.assert_array_equal(losses.implicit_value(logits), 2.0 * value)
    excluded = jnp.full((1, 3), -jnp.inf)
    np.testing.assert_array_equal(losses.implicit_value(excluded), 0.0)
    slope = jax.grad(lambda z: losses.implicit_value(z).sum())(excluded)
    np.testing.assert_array_equal(slope, 0.0)


def test_bad_arguments():
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="lengths"):
        losses.imitation(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="adversary_weight"):
        losses.rpo(zero, zero, zero, adversary_weight=-0.1)
    with pytest.raises(ValueError, match="baseline_logp"):
        losses.rpo(zero, zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="alpha"):
        losses.rpo_average(zero, zero, zero, zero, alpha=-0.1)
    with pytest.raises(ValueError, match="baseline_lengths"):
        losses.rpo_average(zero, zero, zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="beta"):
        losses.implicit_value(zero, beta=0.0)
