"""What a baseline does to data of +1 and -1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.advantages.baselines import baseline_for_fraction, effective_positive_fraction


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "p, c, effective", [(0.5, 0.8, 0.1), (0.1, -0.5, 0.25), (0.5, 0.0, 0.5), (0.3, -1.0, 1.0)]
)
def test_effective_fraction_and_its_inverse(p, c, effective, x64):
    np.testing.assert_allclose(effective_positive_fraction(p, c), effective, rtol=1e-12)
    np.testing.assert_allclose(baseline_for_fraction(p, effective), c, atol=1e-12)


def test_effective_fraction_is_what_the_losses_do(x64):
    # Share of the positive part in the total weight after subtracting the baseline.
    rewards, c = jnp.array([1.0, -1.0, -1.0, -1.0]), 0.4
    shifted = jnp.abs(rewards - c)
    share = shifted[0] / shifted.sum()
    np.testing.assert_allclose(effective_positive_fraction(0.25, c), share, rtol=1e-12)


def test_degenerate_fractions_are_defined():
    np.testing.assert_array_equal(effective_positive_fraction(0.0, -1.0), 0.0)
    np.testing.assert_array_equal(effective_positive_fraction(1.0, 1.0), 1.0)
    np.testing.assert_array_equal(baseline_for_fraction(0.0, 0.0), 0.0)
    np.testing.assert_array_equal(baseline_for_fraction(1.0, 1.0), 0.0)
