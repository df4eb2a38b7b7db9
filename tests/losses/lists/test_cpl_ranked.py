"""CPL of ranked segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_ranked_segments_leave_out_ties_and_invalid_ones():
    scores = jnp.array([[0.1, -0.2, 0.3], [5.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    labels = jnp.array([[2.0, 1.0, 1.0], [0.0, 2.0, 1.0], [7.0, 7.0, 7.0]])
    valid = jnp.array([[True, True, True], [False, True, True], [True, True, True]])
    found = losses.cpl_ranked(scores, labels, lambda_=1.0, valid=valid)
    soft = np.log1p(np.exp(-np.array([0.3, -0.2])))
    np.testing.assert_allclose(found, [soft.mean(), np.log1p(np.exp(1.0)), 0.0], rtol=1e-5)
    slopes = jax.grad(
        lambda x, y: losses.cpl_ranked(x, y, lambda_=1.0, valid=valid).sum(), argnums=(0, 1)
    )(scores, labels)
    assert slopes[0][1, 0] == 0.0 and not np.any(slopes[0][2]) and not np.any(slopes[1])
    assert slopes[0][0, 0] < 0 < slopes[0][0, 1]
