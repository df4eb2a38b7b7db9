"""Weights of importance ratios: truncation, masks, a mean of 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import ratios

LOGP = jnp.log(jnp.array([[0.3, 1.0, 2.5, 9.0]]))
BEHAVIOR = jnp.zeros((1, 4))
MASK = jnp.array([[1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.3, 1.0, 2.0, 0.0]),
        ({"floor": 0.5}, [0.5, 1.0, 2.0, 0.0]),
        ({"mode": "mask", "floor": 0.5}, [0.0, 1.0, 0.0, 0.0]),
        ({"level": "sequence"}, [0.75, 0.75, 0.75, 0.0]),
        ({"level": "sequence", "cap": 0.5}, [0.5, 0.5, 0.5, 0.0]),
        ({"level": "sequence", "mode": "mask", "cap": 0.5}, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_hand_numbers(settings, expected):
    weights = run(ratios.truncated_importance_weights, LOGP, BEHAVIOR, MASK, **settings)
    np.testing.assert_allclose(weights, [expected], rtol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_are_stopped_and_total(level):
    logp = jnp.array([[-np.inf, -1.0, -1.0, jnp.nan], [-1.0, -np.inf, -np.inf, -1.0]])
    behavior = jnp.array([[-1.0, -1.0, -1.0, -1.0], [-1.0, -np.inf, -1.0, -np.inf]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 1]])
    weigh = lambda x, b: ratios.truncated_importance_weights(x, b, mask, level=level)  # noqa: E731
    expected = {
        "token": [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 2.0]],
        "sequence": [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 2.0]],
    }[level]
    np.testing.assert_array_equal(run(weigh, logp, behavior), expected)
    for gradient in grad(lambda *x: weigh(*x).sum(), argnums=(0, 1))(logp, behavior):
        np.testing.assert_array_equal(gradient, 0.0)


# --- normalisation -----------------------------------------------------------------------------


def test_normalized_weights_have_mean_one():
    weights = jnp.array([[0.5, 1.5, np.nan], [4.0, 0.0, 7.0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0]])
    normalized = run(ratios.normalized_weights, weights, mask)
    np.testing.assert_allclose(normalized, np.array([[0.5, 1.5, 0], [4, 0, 0]]) / 1.5, rtol=1e-6)
    for nothing in (jnp.zeros((2, 3)), mask):
        np.testing.assert_array_equal(run(ratios.normalized_weights, mask * 0.0, nothing), 0.0)
    slope = grad(lambda w: ratios.normalized_weights(w, mask).sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(slope, 0.0)
    with pytest.raises(ValueError, match="mask"):
        ratios.normalized_weights(weights, mask[:1])


def test_normalisation_raises_small_weights():
    small = run(ratios.normalized_weights, jnp.array([0.5, 0.25, 0.75]), jnp.ones(3))
    np.testing.assert_allclose(small, [1.0, 0.5, 1.5], rtol=1e-6)


# --- at the bounds themselves -----------------------------------------------------------------------


def test_a_weight_at_its_bound_is_kept():
    one = jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2))
    for bounds in ({"floor": 1.0}, {"cap": 1.0}):
        kept = run(ratios.truncated_importance_weights, *one, mode="mask", **bounds)
        np.testing.assert_array_equal(kept, 1.0)


def test_normalized_weights_carry_no_gradient():
    weights, mask = jnp.array([1.0, 3.0, 5.0]), jnp.array([1, 1, 0])
    np.testing.assert_allclose(ratios.normalized_weights(weights, mask), [0.5, 1.5, 0.0])
    slope = jax.grad(lambda w: jnp.sum(ratios.normalized_weights(w, mask) ** 2))(weights)
    np.testing.assert_array_equal(slope, 0.0)
