"""Best-of-N, reward-weighted regression, pairs of a group: hand numbers, limits, exact steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from hypothesis import given
from hypothesis import strategies as st
from one_group import one_group
from scipy.special import log_softmax, softmax

from polgrad import data, losses
from polgrad.tabular import kl_regularized_optimum

# Arrays of rank 1 are one group.
best_of_n = one_group(losses.best_of_n)
reward_weighted = one_group(losses.reward_weighted)
ordered_pairs = one_group(data.preferences.ordered_pairs)

INF, NAN = np.inf, np.nan
LOGP = jnp.array([[-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -4.0, -8.0]])
REWARDS = jnp.array([[0.0, 3.0, 1.0, 3.0], [0.0, 2.0, 0.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
NEGATIVES = ("none", "worst", "sum", "mean")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        ("none", [2.0, 2.0, 1.0]),
        ("worst", [1.0, 1.0, 1.0]),
        ("sum", [-3.0, -11.0, 1.0]),
        ("mean", [2.0 - 2.5, 2.0 - 13 / 3, 1.0]),
    ],
)
def test_best_of_n_by_hand(negative, expected):
    # The first of equal best ones counts; what equals it is not worse.
    np.testing.assert_allclose(run(best_of_n, LOGP, REWARDS, negative=negative), expected)
    half = run(best_of_n, LOGP, REWARDS, negative=negative, negative_weight=0.5)
    plain = np.array([2.0, 2.0, 1.0])
    np.testing.assert_allclose(half, plain + 0.5 * (np.array(expected) - plain), rtol=1e-6)


def test_imitation_of_the_best_is_the_default():
    np.testing.assert_array_equal(run(best_of_n, LOGP, REWARDS), [2.0, 2.0, 1.0])


def test_samples_that_are_left_out():
    rewards = jnp.array([9.0, NAN, 1.0, 0.5])
    logp = jnp.array([-INF, -2.0, -4.0, -8.0])
    for negative, expected in (("none", 4.0), ("worst", -4.0), ("sum", -4.0), ("mean", -4.0)):
        np.testing.assert_allclose(run(best_of_n, logp, rewards, negative=negative), expected)
    valid = jnp.array([True, True, False, True])
    assert best_of_n(logp, rewards, valid=valid) == 8.0
    nobody = run(
        lambda x, r, v: best_of_n(x, r, negative="mean", valid=v), logp, rewards, valid * 0
    )
    assert nobody == 0.0
    weighted = run(reward_weighted, logp, rewards)
    np.testing.assert_allclose(weighted, [0, 0, 4 * math.e, 8 * math.exp(0.5)], rtol=1e-6)
    weighted = reward_weighted(logp, rewards, valid=valid)
    np.testing.assert_allclose(weighted, [0, 0, 0, 8 * math.exp(0.5)], rtol=1e-6)
    pairs = run(ordered_pairs, logp, rewards)
    np.testing.assert_array_equal(pairs.valid, [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(pairs.chosen_logratio, [0, 0, 0, 0, 0, -4.0])
    np.testing.assert_array_equal(pairs.rejected_logratio, [0, 0, 0, 0, 0, -8.0])
    assert np.all(ordered_pairs(logp, rewards, valid=valid).valid == 0)


def test_the_better_of_two_is_imitated(x64):
    logp, rewards = jnp.array([[-1.0, -3.0], [-1.0, -3.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(run(best_of_n, logp, rewards), [3.0, 1.0])
    alone = run(best_of_n, logp[:, :1], rewards[:, :1], negative="mean")
    np.testing.assert_array_equal(alone, [1.0, 1.0])


@pytest.mark.parametrize("negative", NEGATIVES)
def test_only_the_policy_has_a_gradient(negative):
    total = lambda x, r: best_of_n(x, r, negative=negative).sum()  # noqa: E731
    slope, to_rewards = grad(total, argnums=(0, 1))(LOGP, REWARDS)
    np.testing.assert_array_equal(to_rewards, 0.0)
    expected = {
        "none": [[0, -1, 0, 0], [0, -1, 0, 0], [-1, 0, 0, 0]],
        "worst": [[1, -1, 0, 0], [1, -1, 0, 0], [-1, 0, 0, 0]],
        "sum": [[1, -1, 1, 0], [1, -1, 1, 1], [-1, 0, 0, 0]],
        "mean": [[0.5, -1, 0.5, 0], [1 / 3, -1, 1 / 3, 1 / 3], [-1, 0, 0, 0]],
    }[negative]
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_weights_by_hand():
    logp, rewards = jnp.full((1, 3), -2.0), jnp.array([[0.0, 1.0, -1.0]])
    weights = {
        "exponential": np.exp([0.0, 2.0, -2.0]),
        "sigmoid": 1 / (1 + np.exp([0.0, -2.0, 2.0])),
        "softmax": 3 * softmax([0.0, 2.0, -2.0]),
    }
    for weight, expected in weights.items():
        loss = run(reward_weighted, logp, rewards, beta=0.5, weight=weight)
        np.testing.assert_allclose(loss, 2.0 * expected[None], rtol=1e-6)
        cut = run(reward_weighted, logp, rewards, beta=0.5, weight=weight, clip=(0.2, 0.9))
        np.testing.assert_allclose(cut, 2.0 * np.clip(expected, 0.2, 0.9)[None], rtol=1e-6)
    plain = run(reward_weighted, logp, rewards)
    np.testing.assert_allclose(plain, 2.0 * np.exp(rewards), rtol=1e-6)


def test_exponents_are_bounded():
    logp, rewards = jnp.full((1, 3), -1.0), jnp.array([[300.0, -300.0, 21.0]])
    loss = run(reward_weighted, logp, rewards)
    np.testing.assert_allclose(loss, np.exp([[20.0, -20.0, 20.0]]), rtol=1e-6)
    # At zero temperature the softmax picks the best.
    sharp = run(reward_weighted, logp, rewards, beta=1e-3, weight="softmax")
    np.testing.assert_array_equal(sharp, [[3.0, 0.0, 0.0]])


def test_limits_of_the_temperature(x64):
    rng = np.random.default_rng(0)
    logp, rewards = -rng.random((3, 4)), rng.normal(size=(3, 4))
    flat = run(reward_weighted, logp, rewards, beta=1e9)
    np.testing.assert_allclose(flat, -logp, rtol=1e-6)
    flat = run(reward_weighted, logp, rewards, beta=1e9, weight="softmax")
    np.testing.assert_allclose(flat, -logp, rtol=1e-6)
    flat = run(reward_weighted, logp, rewards, beta=1e9, weight="sigmoid")
    np.testing.assert_allclose(flat, -0.5 * logp, rtol=1e-6)
    sharp = run(reward_weighted, logp, rewards, beta=1e-3, weight="softmax")
    best = run(best_of_n, logp, rewards)
    np.testing.assert_allclose(sharp.mean(-1), best, rtol=1e-6)


def test_on_samples_of_the_reference_the_weights_fit_the_optimum(x64):
    log_reference, rewards = log_softmax([0.3, -0.2, 0.5]), np.array([1.0, -1.0, 0.5])
    optimum = run(kl_regularized_optimum, log_reference, rewards, beta=0.5)

    def loss(z):
        return jnp.exp(log_reference) @ reward_weighted(jax.nn.log_softmax(z), rewards, beta=0.5)

    np.testing.assert_allclose(grad(loss)(optimum), 0.0, atol=1e-12)
    assert np.abs(grad(loss)(optimum + jnp.arange(3.0))).max() > 0.1


def test_the_slope_is_the_weight_and_rewards_are_stopped():
    for weight in ("exponential", "sigmoid", "softmax"):
        total = lambda x, r, w=weight: reward_weighted(x, r, weight=w).sum()  # noqa: E731
        slope, to_rewards = grad(total, argnums=(0, 1))(LOGP, REWARDS)
        np.testing.assert_array_equal(to_rewards, 0.0)
        loss = run(reward_weighted, LOGP, REWARDS, weight=weight)
        np.testing.assert_allclose(slope, loss / LOGP, rtol=1e-6)


def dpo_on_pairs(logratio, rewards):
    pairs = ordered_pairs(logratio, rewards)
    chosen, rejected = (x.reshape(-1) for x in pairs[:2])
    losses_of_pairs = losses.dpo(chosen, rejected, beta=0.3).reshape(pairs.valid.shape)
    return jnp.sum(losses_of_pairs * pairs.valid)


def dpo_on_lists(logratio, rewards):
    return jnp.sum(losses.pairwise_logistic(0.3 * logratio, rewards))


pairs_and_slopes, lists_and_slopes = value_and_grad(dpo_on_pairs), value_and_grad(dpo_on_lists)


@given(st.integers(0, 10_000))
def test_dpo_on_all_pairs_is_the_pairwise_loss_of_the_list(seed):
    rng = np.random.default_rng(seed)
    logratio, rewards = rng.normal(size=(2, 4)), rng.integers(0, 3, (2, 4)).astype(float)
    with jax.enable_x64(True):
        value, slope = pairs_and_slopes(logratio, rewards)
        expected, expected_slope = lists_and_slopes(logratio, rewards)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-12)


def step(loss, logits, rate=1.0):
    return np.asarray(jax.nn.softmax(logits - rate * grad(loss)(logits)))


def test_one_contrastive_step_moves_two_answers_and_one_of_likelihood_all(x64):
    start = jnp.log(jnp.array([0.6, 0.3, 0.1]))

    def contrast(z):
        ratio = jax.nn.log_softmax(z) - start
        return losses.dpo(ratio[1:2], ratio[:1], beta=0.1).sum()

    policy = step(contrast, start)
    np.testing.assert_allclose(policy, [0.578772, 0.319821, 0.101408], atol=1e-6)
    odds = np.log(policy[1] / policy[0]) - np.log(0.3 / 0.6)
    np.testing.assert_allclose(odds, 2 * 0.1 * 0.5, atol=1e-12)
    rewards = jnp.array([0.0, 1.0, 0.0])
    policy = step(lambda z: best_of_n(jax.nn.log_softmax(z), rewards), start)
    np.testing.assert_allclose(policy, [0.321602, 0.590026, 0.088372], atol=1e-6)


def test_a_contrastive_step_leaves_the_others_alone(x64):
    start = jnp.array([0.3, -0.7, 0.2, 1.0])

    def contrast(z):
        ratio = jax.nn.log_softmax(z) - jnp.array([-1.0, -2.0, -1.5, -1.2])
        return losses.dpo(ratio[2:3], ratio[3:], beta=0.5).sum()

    before, after = np.asarray(jax.nn.softmax(start)), step(contrast, start, 0.5)
    assert after[2] > before[2] and after[3] < before[3]
    np.testing.assert_allclose(after[0] / after[1], before[0] / before[1], rtol=1e-12)


def test_with_shared_features_both_answers_of_a_pair_may_fall(x64):
    features = jnp.array([[1.0, 0.0], [2.0, 0.2], [0.0, -3.0]])

    def contrast(theta):
        logp = jax.nn.log_softmax(features @ theta)
        return -(logp[0] - logp[1])

    theta = -0.1 * grad(contrast)(jnp.zeros(2))
    policy = np.asarray(jax.nn.softmax(features @ theta))
    np.testing.assert_allclose(policy[:2], [0.325231, 0.293107], atol=1e-6)
    assert policy[0] < 1 / 3 and policy[1] < 1 / 3
    np.testing.assert_allclose(np.log(policy[0] / policy[1]), 0.104, atol=1e-12)


def test_an_empty_group_is_nothing():
    empty = jnp.zeros((2, 0))
    np.testing.assert_array_equal(best_of_n(empty, empty, negative="worst"), [0.0, 0.0])
    assert reward_weighted(empty, empty, weight="softmax").shape == (2, 0)
    assert ordered_pairs(empty, empty).valid.shape == (2, 0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="negative is 'all'"):
        best_of_n(LOGP, REWARDS, negative="all")
    with pytest.raises(ValueError, match="negative_weight is -1"):
        best_of_n(LOGP, REWARDS, negative_weight=-1.0)
    np.testing.assert_array_equal(
        best_of_n(LOGP, REWARDS, negative="sum", negative_weight=0.0), [2.0, 2.0, 1.0]
    )
    with pytest.raises(ValueError, match="rewards has shape"):
        best_of_n(LOGP, REWARDS[0])
    with pytest.raises(ValueError, match="weight is 'x'"):
        reward_weighted(LOGP, REWARDS, weight="x")
    with pytest.raises(ValueError, match="beta is 0"):
        reward_weighted(LOGP, REWARDS, beta=0.0)
    for clip in ((0.5, 0.4), (-0.1, 1.0)):
        with pytest.raises(ValueError, match="clip is"):
            reward_weighted(LOGP, REWARDS, clip=clip)
    np.testing.assert_allclose(reward_weighted(LOGP, REWARDS, clip=(0.0, 0.0)), 0.0)
    with pytest.raises(ValueError, match="threshold is -1"):
        ordered_pairs(LOGP, REWARDS, threshold=-1.0)
    with pytest.raises(ValueError, match="valid has shape"):
        ordered_pairs(LOGP, REWARDS, valid=REWARDS[0])
