"""Imitation, RPO and implicit values: by hand, reductions, edges."""

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
