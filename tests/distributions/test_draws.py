"""The inverse of a cumulative distribution: exact draws, never a weight of zero."""

import jax
import numpy as np
import pytest

from polgrad.distributions import inverse_cdf

JIT_CDF = jax.jit(inverse_cdf)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 300, 50_257])
def test_inverse_cdf_is_searchsorted_in_float64_away_from_boundaries(vocabulary):
    rng = np.random.default_rng(vocabulary)
    rows, draws = 4, 500
    # Peaked, flat, mostly zero, and long-tailed rows.
    scale = np.array([[3.0], [0.0], [1.0], [6.0]])
    weights = np.exp(scale * rng.standard_normal((rows, vocabulary))).astype(np.float32)
    weights[2, rng.permutation(vocabulary)[: vocabulary * 9 // 10]] = 0
    u = rng.random((rows, draws), np.float32)
    tokens, totals = JIT_CDF(weights, u)
    tokens = np.asarray(tokens)
    np.testing.assert_allclose(totals, weights.sum(-1, dtype=np.float64), rtol=1e-6)

    cumulative = weights.astype(np.float64).cumsum(-1)
    cumulative /= cumulative[:, -1:]
    for row in range(rows):
        exact = np.searchsorted(cumulative[row], u[row].astype(np.float64), side="right")
        edges = np.concatenate([[0.0], cumulative[row]])
        # On a boundary rounding may decide, but u lies within 1e-6 of the drawn token's share.
        assert np.all(u[row] > edges[tokens[row]] - 1e-6)
        assert np.all(u[row] < edges[tokens[row] + 1] + 1e-6)
        clear = np.abs(u[row, :, None] - np.stack([edges[exact], edges[exact + 1]], -1)) > 1e-6
        clear = clear.all(-1)
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(tokens[row][clear], exact[clear])


@pytest.mark.parametrize("vocabulary", [5, 300])
def test_inverse_cdf_never_draws_a_weight_of_zero(vocabulary):
    rng = np.random.default_rng(0)
    weights = rng.random((64, vocabulary)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.7] = 0
    weights[:16, :2] = weights[:16, -2:] = 0  # u = 0 and u -> 1 would fall on these
    weights[:, 2] += 1e-30
    largest = np.nextafter(np.float32(1), np.float32(0))
    u = np.tile(np.array([0.0, 2**-23, 0.5, 1 - 2**-23, largest], np.float32), (64, 1))
    tokens = np.asarray(JIT_CDF(weights, u)[0])
    assert tokens.min() >= 0 and tokens.max() < vocabulary
    assert np.all(np.take_along_axis(weights, tokens, 1) > 0)
