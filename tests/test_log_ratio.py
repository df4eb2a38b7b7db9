import jax
import jax.numpy as jnp
import numpy as np

from polgrad._log_ratio import importance_ratio, log_ratio

INF = np.inf
CURRENT = jnp.array([-1.0, -INF, -1.0, -INF, -50.0, -1.0, -1.0, -21.0])
BEHAVIOR = jnp.array([-1.5, -1.0, -INF, -INF, -1.0, -50.0, -1.0, -1.0])


def test_every_pair_of_finite_and_infinite():
    expected = [0.5, -20.0, 20.0, 0.0, -20.0, 20.0, 0.0, -20.0]
    np.testing.assert_allclose(log_ratio(CURRENT, BEHAVIOR), expected)
    ratios = importance_ratio(CURRENT, BEHAVIOR)
    np.testing.assert_allclose(ratios, np.exp(expected) * [1, 0, 1, 1, 1, 1, 1, 1], rtol=1e-5)
    assert ratios[1] == 0.0


def test_gradient_is_one_inside_the_limits_and_zero_elsewhere():
    gradient = jax.grad(lambda x: log_ratio(x, BEHAVIOR).sum())(CURRENT)
    # The last entry sits exactly on the limit, where jnp.clip would give one half.
    np.testing.assert_array_equal(gradient, [1, 0, 0, 0, 0, 0, 1, 1])
    gradient = jax.grad(lambda x: importance_ratio(x, BEHAVIOR).sum())(CURRENT)
    assert np.all(np.isfinite(gradient)) and gradient[1] == 0.0


def test_behavior_is_stopped():
    gradient = jax.grad(lambda x: importance_ratio(CURRENT, x).sum())(BEHAVIOR)
    np.testing.assert_array_equal(gradient, 0.0)


def test_bfloat16_differences_are_formed_in_float32():
    a, b = jnp.bfloat16(-7.03125), jnp.bfloat16(-7.0)
    assert log_ratio(a, b).dtype == jnp.float32
    assert float(log_ratio(a, b)) == float(a) - float(b)


def test_a_nan_is_not_hidden():
    assert np.isnan(log_ratio(jnp.array([np.nan]), jnp.array([-1.0]))[0])


def test_no_nan_on_the_way():
    with jax.debug_nans(True):
        jax.jit(jax.value_and_grad(lambda x: importance_ratio(x, BEHAVIOR).sum()))(CURRENT)
        log_ratio(CURRENT, BEHAVIOR)
