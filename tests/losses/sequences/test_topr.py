"""TOPR: the table of truncations, exact gradients, reductions, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.losses.inputs import topr_weights
from polgrad.losses.sequences import topr

REWARDS = (1.0, -1.0, -1.0)
INF = math.inf
METHODS = {
    "supervised": ((1.0, 1.0), (0.0, 0.0)),
    "naive": ((1.0, 1.0), (1.0, 1.0)),
    "importance": ((0.0, INF), (0.0, INF)),
    "truncated": ((0.0, 1.0), (0.0, 1.0)),
    "topr": ((1.0, 1.0), (0.0, 1.0)),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def expected_gradient(logits, behavior, rewards, **limits):
    """Ascent direction of the loss averaged over the behaviour policy."""

    def mean_loss(z):
        return behavior @ topr(jax.nn.log_softmax(z), jnp.log(behavior), rewards, **limits)

    return -grad(mean_loss)(logits)


def test_on_policy_it_is_reinforce(x64):
    uniform = jnp.full(3, 1 / 3)
    gradient = expected_gradient(jnp.zeros(3), uniform, jnp.array(REWARDS))
    np.testing.assert_allclose(gradient, [4 / 9, -2 / 9, -2 / 9], atol=1e-12)

    logits, rewards = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.7, -0.4, 0.0])
    exact = grad(lambda z: jax.nn.softmax(z) @ rewards)(logits)
    np.testing.assert_allclose(
        expected_gradient(logits, jax.nn.softmax(logits), rewards), exact, atol=1e-12
    )


def test_full_importance_weights_are_unbiased_off_policy(x64):
    logits, behavior = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.2, 0.5, 0.3])
    rewards = jnp.array(REWARDS)
    exact = grad(lambda z: jax.nn.softmax(z) @ rewards)(logits)
    positive, negative = METHODS["importance"]
    np.testing.assert_allclose(
        expected_gradient(logits, behavior, rewards, positive=positive, negative=negative),
        exact,
        atol=1e-12,
    )


@pytest.mark.parametrize("method", METHODS)
def test_table_of_methods(method, x64):
    ratio = np.array([0.3, 0.3, 2.5, 2.5, 1.0, 0.7])
    rewards = np.array([1.0, -1.0, 2.0, -2.0, -0.5, 0.0])
    by_hand = {
        "supervised": [1, 0, 1, 0, 0, 0],
        "naive": [1, 1, 1, 1, 1, 0],
        "importance": [0.3, 0.3, 2.5, 2.5, 1, 0],
        "truncated": [0.3, 0.3, 1, 1, 1, 0],
        "topr": [1, 0.3, 1, 1, 1, 0],
    }[method]
    positive, negative = METHODS[method]
    behavior_logp = jnp.full(6, -3.0)
    weights = topr_weights(
        behavior_logp + jnp.log(ratio), behavior_logp, rewards, positive=positive, negative=negative
    )
    np.testing.assert_allclose(weights, by_hand, rtol=1e-12)
    logp = behavior_logp + jnp.log(ratio)
    losses = topr(logp, behavior_logp, rewards, positive=positive, negative=negative)
    np.testing.assert_allclose(losses, -np.array(by_hand) * rewards * logp, rtol=1e-12)


def test_all_positive_data_is_supervised_learning_bit_for_bit():
    logp, behavior_logp = jax.random.normal(jax.random.key(0), (2, 16)) * 30.0 - 50.0
    np.testing.assert_array_equal(topr(logp, behavior_logp, jnp.ones(16)), -logp)


def test_far_log_ratios_give_exactly_the_limits():
    logp, behavior_logp = jnp.array([-10.0, -860.0]), jnp.array([-60.0, -60.0])
    weights = topr_weights(logp, behavior_logp, -jnp.ones(2))
    np.testing.assert_array_equal(weights, [1.0, 0.0])
    gradient = grad(lambda x: topr(x, behavior_logp, -jnp.ones(2)).sum())(logp)
    np.testing.assert_array_equal(gradient, [1.0, 0.0])


def test_gradient_reaches_the_policy_alone_and_not_the_weight():
    logp, behavior_logp, rewards = jnp.array([-2.0]), jnp.array([-1.0]), jnp.array([-1.0])
    gradients = grad(lambda *a: topr(*a).sum(), argnums=(0, 1, 2))(logp, behavior_logp, rewards)
    # Through the weight the first would be exp(-1) (1 - 2).
    np.testing.assert_allclose(gradients[0], math.exp(-1.0), rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[2], 0.0)


def ascend(steps, **limits):
    uniform = jnp.full(3, 1 / 3)
    step = lambda _, z: z + 0.1 * expected_gradient(z, uniform, jnp.array(REWARDS), **limits)  # noqa: E731
    return jax.jit(lambda: jax.lax.fori_loop(0, steps, step, jnp.zeros(3)))()


def test_logged_negatives_are_bounded_under_topr_and_diverge_without(x64):
    logits = ascend(20_000)
    np.testing.assert_allclose(jax.nn.softmax(logits), [0.99975, 0.000125, 0.000125], atol=1e-5)
    assert logits[0] < 10.0
    naive = ascend(2_000, positive=(1.0, 1.0), negative=(1.0, 1.0))
    np.testing.assert_allclose(naive, [132.9, -66.4, -66.4], atol=0.1)


def test_the_negative_part_of_the_objective_is_bounded(x64):
    # Integrating the gradient over log policy gives -mu (1 + log(policy / mu)) above mu and
    # -policy below; the scan runs over policies in (0, 1].
    mu = 0.2
    logp = jnp.linspace(math.log(1e-8), 0.0, 20_001)
    slope = jax.vmap(grad(lambda x: mu * topr(x[None], jnp.log(jnp.array([mu])), -jnp.ones(1))[0]))
    objective = -np.concatenate([[0.0], np.cumsum(np.asarray(slope(logp))[:-1] * np.diff(logp))])
    expected = np.where(logp < math.log(mu), -np.exp(logp), -mu * (1.0 + logp - math.log(mu)))
    np.testing.assert_allclose(objective, expected, atol=2e-4)
    assert objective.min() >= -mu * (1.0 + math.log(1.0 / mu)) - 1e-3
    assert objective.max() <= 0.0


@pytest.mark.parametrize("method", METHODS)
def test_edges_are_finite(method):
    positive, negative = METHODS[method]
    logp = jnp.array([-INF, -INF, -1.0, 0.0, -1.0, -INF])
    behavior_logp = jnp.array([-INF, -1.0, -INF, 0.0, -2.0, -1.0])
    rewards = jnp.array([1.0, 1.0, -1.0, 1.0, 0.0, -1.0])
    losses = lambda x: topr(x, behavior_logp, rewards, positive=positive, negative=negative)  # noqa: E731
    assert np.all(np.isfinite(losses(logp)))
    gradient = grad(lambda x: losses(x).sum())(logp)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[jnp.array([0, 1, 4, 5])], 0.0)


@pytest.mark.parametrize("limits", [(1.0, 0.5), (-0.1, 1.0), (math.nan, 1.0)])
def test_limits_are_checked(limits):
    for side in ("positive", "negative"):
        with pytest.raises(ValueError, match=f"{side} is "):
            topr(jnp.zeros(2), jnp.zeros(2), jnp.ones(2), **{side: limits})


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="rewards"):
        topr(jnp.zeros(2), jnp.zeros(2), jnp.ones(1))
    with pytest.raises(ValueError, match="logp"):
        topr(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_jit_vmap_and_dtype(dtype):
    logp, behavior_logp, rewards = jax.random.normal(jax.random.key(0), (3, 2, 8)).astype(dtype)
    plain = jnp.stack([topr(*row) for row in zip(logp, behavior_logp, rewards)])
    assert plain.dtype == jnp.float32
    mapped = jax.jit(jax.vmap(topr))(logp, behavior_logp, rewards)
    np.testing.assert_allclose(mapped, plain, rtol=1e-5, atol=1e-6)


def test_no_reward_and_no_probability_cost_nothing():
    logp = jnp.array([-1.0, -jnp.inf, -2.0])
    rewards = jnp.array([jnp.nan, 1.0, 1.0])
    np.testing.assert_array_equal(topr(logp, logp, rewards), [0.0, 0.0, 2.0])
    slope = jax.grad(lambda x: topr(x, logp, rewards).sum())(logp)
    np.testing.assert_array_equal(slope, [0.0, 0.0, -1.0])


def test_an_infinite_reward_is_unknown():
    found = topr(-jnp.ones(2), -jnp.ones(2), jnp.array([jnp.inf, -jnp.inf]))
    np.testing.assert_array_equal(found, 0.0)
