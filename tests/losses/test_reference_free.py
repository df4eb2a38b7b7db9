"""SimPO, CPO, ORPO and log-odds: by hand, defaults, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_log_odds():
    p = np.array([0.1, 0.5, 0.999])
    np.testing.assert_allclose(losses.log_odds(np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    ends = jnp.array([0.0, -jnp.inf])
    np.testing.assert_array_equal(losses.log_odds(ends), [20.0, -20.0])
    slope = jax.grad(lambda x: losses.log_odds(x).sum())(ends)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("loss", [losses.simpo, losses.cpo, losses.orpo])
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
