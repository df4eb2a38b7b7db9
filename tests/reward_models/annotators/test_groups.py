"""Annotators to groups, rewards for the worst-off group: by loops, the paper's numbers, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import reward_models
from polgrad.reward_models import annotators as mixture

N, H, U = 6, 4, 2
seeds = st.integers(0, 2**16)
ANNOTATOR = np.array([0, 2, 2, 0, 3, 0])  # nobody heard annotator 1


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, float))


def likelihood(margins, annotator, valid=None):
    return reward_models.annotator_loglikelihood(margins, annotator, annotators=H, valid=valid)


@given(seeds)
def test_likelihood_by_loops(seed):
    (margins,) = draw(seed, (N, U))
    expected = np.zeros((H, U))
    for row, h in zip(margins, ANNOTATOR):
        expected[h] += log_sigmoid(row)
    np.testing.assert_allclose(run(likelihood, 3 * margins, ANNOTATOR)[1], 0.0)
    np.testing.assert_allclose(run(likelihood, margins, ANNOTATOR), expected, rtol=1e-5, atol=1e-6)


def test_the_e_step_by_hand():
    margins = np.array([[2.0, -1.0], [1.0, 0.5], [-1.0, 3.0]], np.float32)
    found = reward_models.annotator_loglikelihood(margins, jnp.zeros(3, int), annotators=1)
    np.testing.assert_allclose(found, [[-1.753451, -1.835926]], atol=2e-6)
    np.testing.assert_array_equal(reward_models.hard_assignment(found), [0])


def test_likelihood_edges():
    (margins,) = draw(0, (N, U))
    whole = run(likelihood, margins, ANNOTATOR)
    outside = np.array([0, 2, 2, -1, 4, 0])
    valid = np.array([1, 1, 1, 0, 0, 1], bool)
    expected = run(likelihood, margins, np.array([0, 2, 2, 0, 3, 0]), valid)
    assert not np.allclose(expected, whole)
    np.testing.assert_allclose(run(likelihood, margins, outside), expected, rtol=1e-6)
    np.testing.assert_array_equal(expected[3], 0.0)
    odd = margins.copy()
    odd[:3, 0] = np.nan, np.inf, -np.inf
    found = run(likelihood, odd, np.array([1, 2, 3, 0, 0, 0]))
    np.testing.assert_allclose(found[1:, 0], [0.0, log_sigmoid(20.0), -20.0], atol=1e-6)
    slope = grad(lambda m: likelihood(m, ANNOTATOR).sum())
    np.testing.assert_allclose(slope(margins), 1 / (1 + np.exp(margins)), rtol=1e-5)
    np.testing.assert_array_equal(slope(odd)[:3, 0], 0.0)
    assert np.all(np.isfinite(slope(odd)))


LOGS = np.array([[-1.0, -2.0], [-3.0, -0.5], [-1.0, -1.0], [np.nan, -9.0]], np.float32)
SOME = np.array([True, False, True, True])


def test_hard_assignment():
    np.testing.assert_array_equal(run(reward_models.hard_assignment, LOGS), [0, 1, 0, 1])

    def call(logs, valid):
        return reward_models.hard_assignment(logs, valid=valid)

    np.testing.assert_array_equal(run(call, LOGS, SOME), [0, -1, 0, 1])


def soft_valid(logs, prior, valid):
    return reward_models.soft_assignment(logs, prior, valid=valid)


def test_soft_assignment_is_the_posterior():
    logs, prior = LOGS[:3], np.array([0.25, 0.75], np.float32)
    joint = prior * np.exp(logs.astype(float))
    expected = joint / joint.sum(1, keepdims=True)
    found = run(reward_models.soft_assignment, logs, prior)
    np.testing.assert_allclose(found.responsibilities, expected, rtol=1e-5)
    np.testing.assert_allclose(found.prior, expected.mean(0), rtol=1e-5)
    valid = np.array([True, False, True])
    found = run(soft_valid, logs, prior, valid)
    np.testing.assert_allclose(found.responsibilities, expected * valid[:, None], rtol=1e-5)
    np.testing.assert_allclose(found.prior, expected[valid].mean(0), rtol=1e-5)
    none = run(soft_valid, logs, prior, ~valid & False)
    np.testing.assert_array_equal(none.responsibilities, 0.0)
    np.testing.assert_allclose(none.prior, prior)
    slopes = grad(lambda a, p: reward_models.soft_assignment(a, p)[0][0, 0], argnums=(0, 1))(
        logs, prior
    )
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0.0)


def test_soft_assignment_of_one_annotator():
    found = run(reward_models.soft_assignment, LOGS[:1], np.array([0.25, 0.75], np.float32))
    np.testing.assert_allclose(found.prior, found.responsibilities[0], rtol=1e-6)
    assert abs(float(found.prior.sum()) - 1.0) < 1e-6


def test_soft_assignment_edges():
    prior = np.array([0.0, 1.0], np.float32)
    found = run(reward_models.soft_assignment, LOGS, prior)
    np.testing.assert_allclose(found.responsibilities, [[0, 1]] * 4, atol=1e-7)
    impossible = np.full((4, 2), -np.inf, np.float32)
    for logs, prior in ((impossible, np.full(2, 0.5, np.float32)), (LOGS, np.zeros(2, np.float32))):
        found = run(reward_models.soft_assignment, logs, prior)
        np.testing.assert_allclose(found.responsibilities, 0.5)
    sharp = run(reward_models.soft_assignment, 1000.0 * LOGS, np.full(2, 0.5, np.float32))
    np.testing.assert_allclose(sharp.responsibilities, [[1, 0], [0, 1], [0.5, 0.5], [0, 1]])


@given(seeds)
def test_mixture_loss_by_formula(seed):
    chosen, rejected, weights = draw(seed, (N, U), (N, U), (N, U))
    weights = np.abs(weights)
    expected = -(weights * log_sigmoid(chosen - rejected)).sum(1)
    args = chosen, rejected, weights
    np.testing.assert_allclose(run(reward_models.mixture_bradley_terry, *args), expected, rtol=1e-5)


def test_each_model_learns_from_its_own_annotators():
    chosen, rejected = draw(1, (N, U), (N, U))
    one_hot = jax.nn.one_hot(jnp.array([0, 1, -1, 0, 1, 1]), U)
    slopes = grad(lambda *x: reward_models.mixture_bradley_terry(*x).sum(), argnums=(0, 1, 2))
    up, down, to_weights = slopes(chosen, rejected, one_hot)
    np.testing.assert_array_equal(up != 0, one_hot == 1)
    np.testing.assert_allclose(up, -down)
    np.testing.assert_array_equal(to_weights, 0.0)
    single = run(
        reward_models.mixture_bradley_terry, chosen[:, :1], rejected[:, :1], np.ones((N, 1))
    )
    np.testing.assert_allclose(
        single, run(reward_models.bradley_terry, chosen[:, 0], rejected[:, 0]), rtol=1e-6
    )


def test_standardized_rewards():
    rewards = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    mean, deviation = np.array([2.0, 1.0], np.float32), np.array([0.5, 0.0], np.float32)
    found = run(reward_models.standardize_groups, rewards, mean, deviation)
    np.testing.assert_allclose(found, [[-2.0, 0.0], [2.0, 0.0]])
    slopes = grad(lambda *x: reward_models.standardize_groups(*x).sum(), argnums=(0, 1, 2))
    for slope in slopes(rewards, mean, deviation):
        np.testing.assert_array_equal(slope, 0.0)


REWARDS = np.array([[0.5, -1.0, 2.0], [1.0, 1.0, 3.0], [np.nan, 4.0, np.inf]], np.float32)


def test_weights_of_the_worst_off_group():
    found = run(reward_models.maxmin_weights, REWARDS)
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 0], [0, 1, 0]])
    found = run(reward_models.maxmin_weights, REWARDS, temperature=2.0)
    p = np.exp(-REWARDS[:2] / 2.0)
    np.testing.assert_allclose(found[:2], p / p.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(found[2], [0, 1, 0])
    cold = run(reward_models.maxmin_weights, REWARDS, temperature=1e-3)
    np.testing.assert_allclose(cold[::2], [[0, 1, 0], [0, 1, 0]], atol=1e-6)
    mean = run(reward_models.maxmin_weights, REWARDS, temperature=math.inf)
    np.testing.assert_allclose(mean, [[1 / 3] * 3, [1 / 3] * 3, [0, 1, 0]], rtol=1e-6)
    nothing = np.full((3, 3), np.nan, np.float32)
    for temperature in (0.0, 2.0):
        found = run(reward_models.maxmin_weights, nothing, temperature=temperature)
        np.testing.assert_array_equal(found, 0.0)
        slope = grad(lambda r, t=temperature: reward_models.maxmin_weights(r, temperature=t)[0, 1])
        np.testing.assert_array_equal(slope(REWARDS), 0.0)


@given(seeds)
def test_the_mean_of_the_minimum_is_below_the_minimum_of_the_mean(seed):
    (rewards,) = draw(seed, (5, 3))
    each = run(reward_models.aggregate_groups, rewards, run(reward_models.maxmin_weights, rewards))
    np.testing.assert_allclose(each, rewards.min(1))
    together = run(
        reward_models.aggregate_groups, rewards, run(reward_models.maxmin_weights, rewards.mean(0))
    )
    assert float(together.mean()) == pytest.approx(rewards.mean(0).min(), abs=1e-6)
    assert each.mean() <= together.mean() + 1e-6


def test_aggregated_rewards():
    rewards = np.array([[1.0, np.nan, 3.0], [2.0, 5.0, -1.0]], np.float32)
    weights = np.array([0.25, 0.0, 0.75], np.float32)
    found = run(reward_models.aggregate_groups, rewards, weights)
    np.testing.assert_allclose(found, [2.5, -0.25])
    rows = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(run(reward_models.aggregate_groups, rewards, rows), [1.0, 2.0])
    slopes = grad(lambda r, w: reward_models.aggregate_groups(r, w).sum(), argnums=(0, 1))
    for slope in slopes(rewards, weights):
        np.testing.assert_array_equal(slope, 0.0)


def test_exponentiated_weights():
    weights = np.array([0.2, 0.8, 0.0], np.float32)
    rewards = np.array([1.0, -1.0, -9.0], np.float32)
    moved = weights * np.exp(-0.5 * rewards.astype(float))
    found = run(reward_models.exponentiated_weights, weights, rewards, step_size=0.5)
    np.testing.assert_allclose(found, moved / moved.sum(), rtol=1e-6)
    odd = np.array([np.nan, -1.0, -9.0], np.float32)
    moved = weights * np.exp([0.0, 0.5, 0.0])
    found = run(reward_models.exponentiated_weights, weights, odd, step_size=0.5)
    np.testing.assert_allclose(found, moved / moved.sum(), rtol=1e-6)
    found = run(
        reward_models.exponentiated_weights, np.zeros(3, np.float32), rewards, step_size=0.5
    )
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)
    slope = grad(
        lambda w, r: reward_models.exponentiated_weights(w, r, step_size=0.5)[0], argnums=(0, 1)
    )
    for x in slope(weights, rewards):
        np.testing.assert_array_equal(x, 0.0)


def test_bad_arguments():
    x, y, z = jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2, int)
    for call, message in (
        (lambda: reward_models.annotator_loglikelihood(x, z, annotators=0), "annotators is 0"),
        (lambda: reward_models.annotator_loglikelihood(x[0], z, annotators=1), "margins has shape"),
        (
            lambda: reward_models.annotator_loglikelihood(x, z[:1], annotators=1),
            "annotator has shape",
        ),
        (
            lambda: reward_models.annotator_loglikelihood(
                x, z, annotators=1, valid=jnp.ones(3, bool)
            ),
            "valid has shape",
        ),
        (lambda: reward_models.hard_assignment(x[0]), "loglikelihood has shape"),
        (lambda: reward_models.hard_assignment(x, valid=jnp.ones(3, bool)), "valid has shape"),
        (lambda: reward_models.soft_assignment(x[0], x[0]), "loglikelihood has shape"),
        (lambda: reward_models.soft_assignment(x, y[0]), "prior has shape"),
        (
            lambda: reward_models.soft_assignment(x, x[0], valid=jnp.ones(3, bool)),
            "valid has shape",
        ),
        (lambda: reward_models.mixture_bradley_terry(x, x, y), "weights has shape"),
        (lambda: reward_models.standardize_groups(x, y, x), "reference_mean has shape"),
        (lambda: reward_models.standardize_groups(x, x, y), "reference_deviation has shape"),
        (lambda: reward_models.maxmin_weights(jnp.zeros(())), "rewards has shape"),
        (lambda: reward_models.maxmin_weights(x, temperature=-1.0), "temperature is -1"),
        (lambda: reward_models.exponentiated_weights(x, y, step_size=1.0), "rewards has shape"),
        (lambda: reward_models.exponentiated_weights(x, x, step_size=0.0), "step_size is 0"),
        (lambda: reward_models.aggregate_groups(x, y), "weights has shape"),
        (lambda: reward_models.aggregate_groups(jnp.zeros(()), jnp.zeros(())), "weights has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bfloat16_accumulates_in_float32():
    low = jnp.asarray(np.nan_to_num(REWARDS, posinf=0.0), jnp.bfloat16)

    def everything(x):
        return (
            likelihood(x, jnp.array([0, 1, 1])),
            *mixture.soft_assignment(x, jnp.abs(x[0])),
            reward_models.mixture_bradley_terry(x, -x, x > 0),
            reward_models.standardize_groups(x, x[0], x[2]),
            reward_models.maxmin_weights(x),
            reward_models.maxmin_weights(x, temperature=1.0),
            reward_models.exponentiated_weights(x, x, step_size=1.0),
            reward_models.aggregate_groups(x, x),
        )

    for found, wanted in zip(run(everything, low), run(everything, low.astype(jnp.float32))):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
