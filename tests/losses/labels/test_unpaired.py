"""KTO: by hand, its reference point, what is stopped, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import agrees_with

from polgrad import losses

RATIO, GOOD = np.array([1.0, -0.5]), np.array([True, False])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_values_by_hand():
    np.testing.assert_allclose(losses.kto(RATIO, GOOD, 0.2), [0.480011, 0.482507], atol=1e-6)
    weighted = losses.kto(RATIO, GOOD, 0.2, lambda_desirable=2.0, lambda_undesirable=3.0)
    np.testing.assert_allclose(weighted, [0.960022, 1.447521], atol=3e-6)
    halved = losses.kto(RATIO, GOOD, 0.2, lambda_desirable=0.5, lambda_undesirable=0.25)
    np.testing.assert_allclose(halved, weighted / np.array([4.0, 12.0]), rtol=1e-12)
    both = losses.kto(RATIO, GOOD, 0.0).sum()
    np.testing.assert_allclose(both, losses.apo_zero(RATIO[:1], RATIO[1:])[0], rtol=1e-12)


def test_gradients():
    slopes = jax.grad(lambda u, z: losses.kto(u, GOOD, z).sum(), argnums=(0, 1))(
        jnp.asarray(RATIO), 0.2
    )
    assert slopes[0][0] < 0 < slopes[0][1]
    np.testing.assert_array_equal(slopes[1], 0.0)
    ends = jnp.array([-jnp.inf, jnp.nan])
    np.testing.assert_array_equal(jax.grad(lambda u: losses.kto(u, GOOD, 0.2).sum())(ends), 0.0)


@pytest.mark.parametrize("good", [True, False])
def test_value_and_gradient_are_those_of_the_formula(good):
    label, sign = np.full(6, good), 1 if good else -1
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    agrees_with(
        lambda u: losses.kto(u, label, 0.2), lambda u: 1 - sigmoid(sign * 0.1 * (u - 0.2)), 1
    )
    agrees_with(
        lambda u: losses.bco_unpaired(u, label, 0.2),
        lambda u: np.logaddexp(0, -sign * (0.01 * u - 0.2)),
        1,
    )


def test_bco_of_the_two_answers_of_a_pair_is_bco():
    both = losses.bco_unpaired(RATIO, GOOD, 0.3, beta=0.5)
    pair = losses.bco(RATIO[:1], RATIO[1:], beta=0.5, reward_shift=0.3)
    np.testing.assert_allclose(both.sum(), pair[0], rtol=1e-12)
    weighted = losses.bco_unpaired(RATIO, GOOD, 0.3, beta=0.5, weights=jnp.array([3.0, 2.0]))
    np.testing.assert_allclose(weighted, both * np.array([1.0, 2.0]), rtol=1e-12)
    none = losses.bco_unpaired(RATIO, GOOD, 0.3, weights=jnp.zeros(2))
    np.testing.assert_array_equal(none[1], 0.0)
    slopes = jax.grad(
        lambda d, w: losses.bco_unpaired(RATIO, GOOD, d, weights=w).sum(), argnums=(0, 1)
    )(0.3, jnp.ones(2))
    assert not np.any(slopes[0]) and not np.any(slopes[1])


def test_optimum_of_bco_is_the_log_odds_of_being_good():
    share, shift = 0.7, 0.4
    reward = shift + np.log(share / (1 - share))

    def mean(u):
        good, bad = (losses.bco_unpaired(u, jnp.array([x]), shift, beta=1.0) for x in (True, False))
        return (share * good + (1 - share) * bad).sum()

    np.testing.assert_allclose(jax.grad(mean)(jnp.array([reward])), 0.0, atol=1e-12)


def test_bad_arguments_of_bco():
    with pytest.raises(ValueError, match="beta"):
        losses.bco_unpaired(RATIO, GOOD, 0.0, beta=0.0)
    with pytest.raises(ValueError, match="desirable"):
        losses.bco_unpaired(RATIO, GOOD[:1], 0.0)
    with pytest.raises(ValueError, match="logratio"):
        losses.bco_unpaired(RATIO[None], GOOD[None], 0.0)
    with pytest.raises(ValueError, match="weights"):
        losses.bco_unpaired(RATIO, GOOD, 0.0, weights=jnp.ones(3))
    with pytest.raises(ValueError, match="low"):
        losses.density_weight(RATIO, low=-0.1)
    with pytest.raises(ValueError, match="high"):
        losses.density_weight(RATIO, low=1.0, high=0.5)


def test_bad_arguments():
    for name in ("lambda_desirable", "lambda_undesirable"):
        with pytest.raises(ValueError, match=name):
            losses.kto(RATIO, GOOD, 0.0, **{name: -1.0})
    with pytest.raises(ValueError, match="beta"):
        losses.kto(RATIO, GOOD, 0.0, beta=0.0)
    with pytest.raises(ValueError, match="desirable"):
        losses.kto(RATIO, GOOD[:1], 0.0)
    with pytest.raises(ValueError, match="logratio"):
        losses.kto(RATIO[None], GOOD[None], 0.0)
    with pytest.raises(ValueError, match="mismatched_logratio"):
        losses.kto_reference_point(RATIO[None])
