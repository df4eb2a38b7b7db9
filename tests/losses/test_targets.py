"""Targets, partition functions and the running baseline, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import divergences
from polgrad.tabular.bandits import kl_regularized_optimum
from polgrad.losses import targets
from polgrad.losses.sequences import f_dpg

update_partition = jax.jit(targets.update_partition)

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
    scores = targets.tilt(log_reference, rewards, beta=0.5)
    np.testing.assert_allclose(
        jax.nn.log_softmax(scores),
        kl_regularized_optimum(log_reference, rewards, beta=0.5),
        rtol=1e-12,
    )
    np.testing.assert_allclose(0.5 * jax.nn.logsumexp(scores), 1.056645, atol=1e-6)
    with pytest.raises(ValueError, match="beta"):
        targets.tilt(log_reference, rewards, beta=0.0)


def test_filter_is_the_conditional_distribution():
    keep = jnp.array([True, False, True, False, False])
    scores = targets.filtered(jnp.log(jnp.array(REFERENCE)), keep)
    np.testing.assert_allclose(jnp.exp(scores).sum(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(scores), [0.6, 0.0, 0.4, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    "behavior", [REFERENCE, (0.2, 0.2, 0.2, 0.2, 0.2), (0.05, 0.5, 0.1, 0.3, 0.05)]
)
def test_partition_weights_average_to_z_under_any_behavior(behavior, x64):
    # One exhaustive "sample" in which outcome x occurs in proportion to behavior(x).
    scores = targets.tilt(jnp.log(jnp.array(REFERENCE)), jnp.array(REWARDS), beta=0.5)
    counts = np.rint(np.array(behavior) * 20).astype(int)
    rows = np.repeat(np.arange(5), counts)
    state = update_partition(
        targets.init_partition(), scores[rows], jnp.log(jnp.array(behavior))[rows]
    )
    np.testing.assert_allclose(state.log_mean, jax.nn.logsumexp(scores), rtol=1e-6)
    assert state.count == 20


def test_partition_is_the_mean_over_all_batches_however_cut(x64):
    weights = jnp.array([[1.0, 3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    state = targets.init_partition((2,))
    for part in (slice(0, 1), slice(1, 4)):
        state = update_partition(state, jnp.log(weights[:, part]), jnp.zeros_like(weights[:, part]))
    np.testing.assert_allclose(jnp.exp(state.log_mean), [1.5, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(state.count, [4, 4])


def test_partition_ignores_invalid_samples_and_survives_having_none():
    log_score, behavior_logp = jnp.log(jnp.array([2.0, 5.0])), jnp.zeros(2)
    state = update_partition(
        targets.init_partition(), log_score, behavior_logp, valid=jnp.array([True, False])
    )
    np.testing.assert_allclose(jnp.exp(state.log_mean), 2.0, rtol=1e-6)
    same = update_partition(state, log_score, behavior_logp, valid=jnp.zeros(2, bool))
    np.testing.assert_allclose(same.log_mean, state.log_mean, rtol=1e-6)
    empty = update_partition(
        targets.init_partition(), log_score, behavior_logp, valid=jnp.zeros(2, bool)
    )
    assert empty.log_mean == -jnp.inf and empty.count == 0


def test_partition_does_not_overflow_in_float32():
    state = update_partition(
        targets.init_partition(), jnp.array([400.0, 400.0]), jnp.array([-1.0, -1.0])
    )
    np.testing.assert_allclose(state.log_mean, 401.0, rtol=1e-6)


def test_a_context_without_a_hit_is_skipped_by_the_loss():
    # Context 0 has met the constraint, context 1 has not.
    logp = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]]))
    scores = targets.filtered(logp, jnp.array([[True, False], [False, False]]))
    state = update_partition(targets.init_partition((2,)), scores, logp)
    log_target = targets.normalize(scores, state)
    np.testing.assert_allclose(log_target[0], [0.0, -jnp.inf], atol=1e-6)
    np.testing.assert_array_equal(log_target[1], jnp.inf)

    def loss(x):
        losses = [f_dpg(a, b, divergence=divergences.jensen_shannon) for a, b in zip(x, log_target)]
        return jnp.stack(losses).sum()

    gradient = grad(loss)(logp)
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert gradient[0, 0] < 0.0 < gradient[0, 1]


def test_no_gradient_through_the_states():
    scores = jnp.array([0.3, -0.4])
    through_partition = grad(
        lambda s: update_partition(targets.init_partition(), s, s * 0.5).log_mean
    )
    np.testing.assert_array_equal(through_partition(scores), 0.0)
    through_baseline = grad(
        lambda r: targets.baseline_value(targets.update_baseline(targets.init_baseline(4), r))
    )
    np.testing.assert_array_equal(through_baseline(scores), 0.0)


def test_fit_tilt_on_a_fair_coin():
    features = jnp.array([[0.0], [1.0]] * 256)
    fitted = jax.jit(targets.fit_tilt)(features, jnp.array([0.8]))
    np.testing.assert_allclose(fitted, np.log(4.0), atol=1e-3)


def test_fitted_tilt_has_the_wanted_moments(x64):
    features = jax.random.normal(jax.random.key(0), (64, 2))
    wanted = jnp.array([0.3, -0.2])
    fitted = targets.fit_tilt(features, wanted, learning_rate=0.5)
    scores = targets.moment_tilt(jnp.full(64, -jnp.log(64.0)), features, fitted)
    np.testing.assert_allclose(jax.nn.softmax(scores) @ features, wanted, atol=1e-5)


def test_fit_tilt_out_of_reach_stays_finite():
    fitted = targets.fit_tilt(jnp.array([[0.0], [1.0]]), jnp.array([1.5]))
    assert np.all(np.isfinite(fitted))


def test_baseline_is_the_mean_of_the_window():
    state = targets.init_baseline(4)
    assert targets.baseline_value(state) == 0.0
    state = targets.update_baseline(state, jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(targets.baseline_value(state), 3.0)
    state = targets.update_baseline(state, jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(targets.baseline_value(state), (2.0 + 6.0 + 10.0 + 20.0) / 4)


def test_a_batch_longer_than_the_window_leaves_its_tail():
    state = targets.update_baseline(targets.init_baseline(3), jnp.array([7.0]))
    state = jax.jit(targets.update_baseline)(state, jnp.arange(8.0))
    np.testing.assert_allclose(targets.baseline_value(state), 6.0)
    state = targets.update_baseline(state, jnp.array([100.0]))
    np.testing.assert_allclose(targets.baseline_value(state), (6.0 + 7.0 + 100.0) / 3, rtol=1e-6)
    with pytest.raises(ValueError, match="window"):
        targets.init_baseline(0)


def test_states_live_in_a_scan():
    def step(carry, inputs):
        partition, baseline = carry
        scores, rewards = inputs
        partition = update_partition(partition, scores, jnp.zeros(4))
        return (partition, targets.update_baseline(baseline, rewards)), partition.log_mean

    inputs = jax.random.normal(jax.random.key(0), (2, 5, 4))
    (partition, baseline), _ = jax.lax.scan(
        step, (targets.init_partition(), targets.init_baseline(8)), tuple(inputs)
    )
    np.testing.assert_allclose(partition.log_mean, np.log(np.exp(inputs[0]).mean()), rtol=1e-5)
    np.testing.assert_allclose(targets.baseline_value(baseline), inputs[1][-2:].mean(), rtol=1e-5)


def test_fit_tilt_step_by_step():
    features, moments = jnp.array([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]), jnp.array([2.0, 1.0])
    once = targets.fit_tilt(features, moments, iterations=1)
    np.testing.assert_allclose(once, [0.05 * (2.0 - 4 / 3), 0.0], rtol=1e-5)
    slow = {"learning_rate": 1e-4}
    np.testing.assert_array_equal(
        targets.fit_tilt(features, moments, **slow),
        targets.fit_tilt(features, moments, iterations=1000, tolerance=1e-5, **slow),
    )
    done = targets.fit_tilt(features, moments, tolerance=10.0)
    np.testing.assert_array_equal(done, 0.0)


def test_what_does_not_count_in_a_partition():
    start = targets.init_partition(())
    scores = jnp.array([-1.0, jnp.nan, -2.0, -3.0])
    behavior = jnp.array([-2.0, -1.0, -jnp.inf, -1.0])
    found = targets.update_partition(start, scores, behavior)
    np.testing.assert_allclose(found.log_mean, np.log((np.e + np.exp(-2.0)) / 2), rtol=1e-5)
    assert int(found.count) == 2
    nobody = targets.update_partition(start, scores[1:3], behavior[1:3])
    assert int(nobody.count) == 0 and float(nobody.log_mean) == -np.inf
    np.testing.assert_array_equal(targets.normalize(scores[:1], start), np.inf)


def test_the_first_rewards_of_a_baseline():
    assert targets.init_baseline().values.shape == (1024,)
    one = targets.update_baseline(targets.init_baseline(1), jnp.array([3.0, 5.0]))
    np.testing.assert_allclose(targets.baseline_value(one), 5.0)
    first = targets.update_baseline(targets.init_baseline(8), jnp.array([3.0]))
    np.testing.assert_allclose(targets.baseline_value(first), 3.0)
    kept = targets.update_baseline(first, jnp.array([jnp.nan, jnp.inf]))
    np.testing.assert_allclose(targets.baseline_value(kept), 3.0)
    with pytest.raises(ValueError, match="window"):
        targets.init_baseline(0)
