"""Target distributions and their normalisers, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import distributions, divergences, running
from polgrad.losses.sequences import f_dpg
from polgrad.tabular.bandits import kl_regularized_optimum

PARTITION = running.log_mean()
update = jax.jit(PARTITION.update)

REFERENCE = (0.3, 0.3, 0.2, 0.1, 0.1)
REWARDS = (1.0, 0.0, -1.0, 0.5, 2.0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def test_tilt_normalises_to_the_regularised_optimum(x64):
    log_reference, rewards = jnp.log(jnp.array(REFERENCE)), jnp.array(REWARDS)
    scores = distributions.tilt(log_reference, rewards, beta=0.5)
    np.testing.assert_allclose(
        jax.nn.log_softmax(scores),
        kl_regularized_optimum(log_reference, rewards, beta=0.5),
        rtol=1e-12,
    )
    np.testing.assert_allclose(0.5 * jax.nn.logsumexp(scores), 1.056645, atol=1e-6)
    with pytest.raises(ValueError, match="beta"):
        distributions.tilt(log_reference, rewards, beta=0.0)


def test_filter_is_the_conditional_distribution():
    keep = jnp.array([True, False, True, False, False])
    scores = distributions.filtered(jnp.log(jnp.array(REFERENCE)), keep)
    np.testing.assert_allclose(jnp.exp(scores).sum(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(scores), [0.6, 0.0, 0.4, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    "behavior", [REFERENCE, (0.2, 0.2, 0.2, 0.2, 0.2), (0.05, 0.5, 0.1, 0.3, 0.05)]
)
def test_partition_weights_average_to_z_under_any_behavior(behavior, x64):
    # One exhaustive "sample" in which outcome x occurs in proportion to behavior(x).
    scores = distributions.tilt(jnp.log(jnp.array(REFERENCE)), jnp.array(REWARDS), beta=0.5)
    counts = np.rint(np.array(behavior) * 20).astype(int)
    rows = np.repeat(np.arange(5), counts)
    state = update(PARTITION.init(), scores[rows] - jnp.log(jnp.array(behavior))[rows])
    np.testing.assert_allclose(state.log_mean, jax.nn.logsumexp(scores), rtol=1e-6)
    assert state.count == 20


def test_a_context_without_a_hit_is_skipped_by_the_loss():
    # Context 0 has met the constraint, context 1 has not.
    logp = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    scores = distributions.filtered(logp, jnp.array([[True, False], [False, False]]))
    state = update(PARTITION.init((2,)), scores - logp)
    log_target = distributions.normalize(scores, PARTITION.value(state))
    np.testing.assert_allclose(log_target[0], [0.0, -jnp.inf], atol=1e-6)
    np.testing.assert_array_equal(log_target[1], jnp.inf)

    def loss(x):
        losses = [f_dpg(a, b, divergence=divergences.jensen_shannon) for a, b in zip(x, log_target)]
        return jnp.stack(losses).sum()

    gradient = grad(loss)(logp)
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert gradient[0, 0] < 0.0 < gradient[0, 1]


def test_fit_tilt_on_a_fair_coin():
    features = jnp.array([[0.0], [1.0]] * 256)
    fitted = jax.jit(distributions.fit_tilt)(features, jnp.array([0.8]))
    np.testing.assert_allclose(fitted, np.log(4.0), atol=1e-3)


def test_fitted_tilt_has_the_wanted_moments(x64):
    features = jax.random.normal(jax.random.key(0), (64, 2))
    wanted = jnp.array([0.3, -0.2])
    fitted = distributions.fit_tilt(features, wanted, learning_rate=0.5)
    scores = distributions.moment_tilt(jnp.full(64, -jnp.log(64.0)), features, fitted)
    np.testing.assert_allclose(jax.nn.softmax(scores) @ features, wanted, atol=1e-5)


def test_fit_tilt_out_of_reach_stays_finite():
    fitted = distributions.fit_tilt(jnp.array([[0.0], [1.0]]), jnp.array([1.5]))
    assert np.all(np.isfinite(fitted))


def test_fit_tilt_step_by_step():
    features, moments = jnp.array([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]), jnp.array([2.0, 1.0])
    once = distributions.fit_tilt(features, moments, iterations=1)
    np.testing.assert_allclose(once, [0.05 * (2.0 - 4 / 3), 0.0], rtol=1e-5)
    slow = {"learning_rate": 1e-4}
    np.testing.assert_array_equal(
        distributions.fit_tilt(features, moments, **slow),
        distributions.fit_tilt(features, moments, iterations=1000, tolerance=1e-5, **slow),
    )
    done = distributions.fit_tilt(features, moments, tolerance=10.0)
    np.testing.assert_array_equal(done, 0.0)


def test_without_a_sample_there_is_no_normaliser():
    start = PARTITION.value(PARTITION.init())
    np.testing.assert_array_equal(distributions.normalize(jnp.array([-1.0]), start), np.inf)


def test_a_normaliser_of_another_shape_is_refused():
    scores = jnp.zeros((2, 3))
    for wrong in (PARTITION.init((2,)), jnp.zeros((2, 1)), jnp.zeros(3)):
        with pytest.raises(ValueError, match="log_z has shape"):
            distributions.normalize(scores, wrong)
