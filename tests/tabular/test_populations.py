"""The exact MaxMin policy against known optima, duality and a grid; clustering by EM."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import reward_models, tabular

SYMMETRIC = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]]).T  # [A, U]
ASYMMETRIC = np.array([[1.0, 0.2, 0.6], [0.0, 0.8, 0.5]]).T
UNIFORM = np.log(np.full(3, 1 / 3))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@jax.jit
def solve(log_reference, rewards, beta):
    return tabular.maxmin_policy(log_reference, rewards, beta=beta)


@pytest.mark.parametrize(
    ("rewards", "beta", "weight", "policy", "expected", "value"),
    [
        (SYMMETRIC, 0.1, 0.5, (0.211942, 0.211942, 0.576117), 0.557612, 0.545283),
        (SYMMETRIC, 1.0, 0.5, (0.322043, 0.322043, 0.355913), 0.535591, 0.534456),
        (ASYMMETRIC, 0.1, 0.454175, (0.179466, 0.373600, 0.446934), 0.522347, 0.516091),
        (SYMMETRIC, 0.003, 0.5, (0.0, 0.0, 1.0), 0.6, 0.6),
    ],
)
def test_known_optima(rewards, beta, weight, policy, expected, value, x64):
    found = solve(UNIFORM, rewards, beta)
    loose = {"atol": 2e-6} if beta > 0.01 else {"atol": 0.004}
    np.testing.assert_allclose(found.weights, [weight, 1 - weight], atol=2e-6)
    np.testing.assert_allclose(jnp.exp(found.log_policy), policy, **loose)
    np.testing.assert_allclose(found.value, value, **loose)
    served = np.exp(found.log_policy) @ rewards
    np.testing.assert_allclose(served[0], served[1], atol=1e-9)
    np.testing.assert_allclose(served[0], expected, **loose)
    assert 0 <= found.gap + 1e-12 < 1e-9


def test_no_policy_on_a_grid_is_better(x64):
    """The objective itself, policy by policy; and its value by the optimal weights of a grid."""
    found = solve(UNIFORM, ASYMMETRIC, 0.1)
    ticks = np.linspace(0, 1, 201)
    a, b = (x.ravel() for x in np.meshgrid(ticks, ticks))
    policies = np.stack([a, b, 1 - a - b], 1)[a + b <= 1]
    safe = np.where(policies > 0, policies, 1.0)
    kl = (policies * (np.log(safe) - UNIFORM)).sum(1)
    objective = (policies @ ASYMMETRIC).min(1) - 0.1 * kl
    assert found.value >= objective.max() > found.value - 1e-3
    best = policies[objective.argmax()]
    np.testing.assert_allclose(np.exp(found.log_policy), best, atol=0.05)
    dual = [
        0.1 * np.log((np.exp(UNIFORM) * np.exp(ASYMMETRIC @ [w, 1 - w] / 0.1)).sum()) for w in ticks
    ]
    assert found.value <= min(dual) < found.value + 1e-4
    np.testing.assert_allclose(ticks[np.argmin(dual)], found.weights[0], atol=0.005)


def test_a_single_reward_serves_the_majority(x64):
    weights = jnp.array([0.9, 0.1])
    policy = jnp.exp(tabular.kl_regularized_optimum(UNIFORM, ASYMMETRIC @ weights, beta=0.1))
    np.testing.assert_allclose(policy, (0.955374, 0.001587, 0.043039), atol=1e-6)
    np.testing.assert_allclose(policy @ ASYMMETRIC, (0.981515, 0.022789), atol=1e-6)
    # The gradient of the dual are the expected rewards.
    dual = lambda w: tabular.maxmin_dual(w, UNIFORM, ASYMMETRIC, beta=0.1)  # noqa: E731
    np.testing.assert_allclose(grad(dual)(weights), policy @ ASYMMETRIC, atol=1e-9)


def test_prompts_share_the_weights(x64):
    rng = np.random.default_rng(0)
    log_reference = np.log(rng.dirichlet(np.ones(3), size=2))
    rewards = rng.normal(size=(2, 3, 3))
    found = solve(log_reference, rewards, 0.3)
    policy = np.exp(found.log_policy)
    np.testing.assert_allclose(policy.sum(-1), 1.0)
    served = (policy[..., None] * rewards).sum(1).mean(0)
    kl = (policy * (found.log_policy - log_reference)).sum(-1).mean()
    np.testing.assert_allclose(found.value, served.min() - 0.3 * kl, atol=1e-12)
    assert 0 <= found.gap + 1e-12 < 1e-8
    weighed = np.asarray(found.weights) > 1e-6
    assert weighed.sum() >= 2
    np.testing.assert_allclose(served[weighed], served.min(), atol=1e-7)
    unnormalized = np.exp(log_reference + rewards @ np.asarray(found.weights) / 0.3)
    np.testing.assert_allclose(
        policy, unnormalized / unnormalized.sum(-1, keepdims=True), rtol=1e-9
    )
    # An offset makes one group the worst off whatever happens: it is all that counts.
    poor = solve(log_reference, rewards - np.array([0.0, 9.0, 0.0]), 0.3)
    np.testing.assert_allclose(poor.weights, [0, 1, 0], atol=1e-9)
    alone = tabular.kl_regularized_optimum(log_reference, rewards[..., 1], beta=0.3)
    np.testing.assert_allclose(poor.log_policy, alone, atol=1e-7)


def test_one_group_and_groups_that_agree(x64):
    rewards = ASYMMETRIC[:, :1]
    alone = tabular.kl_regularized_optimum(UNIFORM, rewards[:, 0], beta=0.1)
    for same in (rewards, np.repeat(rewards, 2, axis=1)):
        found = run(tabular.maxmin_policy, UNIFORM, same, beta=0.1, iterations=5)
        np.testing.assert_allclose(found.log_policy, alone, atol=1e-9)
        np.testing.assert_allclose(found.weights, 1 / same.shape[1])
    flat = run(tabular.maxmin_policy, UNIFORM, np.ones((3, 2)), beta=0.1, iterations=5)
    np.testing.assert_allclose(flat.log_policy, UNIFORM, atol=1e-9)
    np.testing.assert_allclose(flat.value, 1.0)


def test_exponentiated_weights_descend_the_dual(x64):
    weights = jnp.array([0.9, 0.1])
    for _ in range(60):
        log_policy = tabular.kl_regularized_optimum(UNIFORM, ASYMMETRIC @ weights, beta=0.1)
        weights = reward_models.exponentiated_weights(
            weights, jnp.exp(log_policy) @ ASYMMETRIC, step_size=0.4
        )
    np.testing.assert_allclose(weights, solve(UNIFORM, ASYMMETRIC, 0.1).weights, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "pooled", "margin"),
    [(0.8, 0.728478, 0.986916), (0.9, 0.804638, 1.415536), (0.5, 0.5, 0.0)],
)
def test_one_reward_model_of_two_groups(share, pooled, margin, x64):
    """Margins +2 and -2 pooled: what a single Bradley-Terry model learns."""
    p = share * jax.nn.sigmoid(2.0) + (1 - share) * jax.nn.sigmoid(-2.0)
    np.testing.assert_allclose(p, pooled, atol=1e-6)
    preference = jnp.array([[0.5, p], [1 - p, 0.5]])
    rewards = tabular.bradley_terry_fit(preference, jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(rewards[0] - rewards[1], margin, atol=1e-6)


ANSWERS, ANNOTATORS, PAIRS = 4, 9, 60


def test_diversity():
    first = tabular.bradley_terry_game(jnp.array([0.0, 1.0, 2.0]))
    second = tabular.bradley_terry_game(jnp.array([1.0, -1.0, 0.5]))
    expected = np.mean(
        [abs(first[i, j] - second[i, j]) for i, j in itertools.permutations(range(3), 2)]
    )
    assert float(tabular.preference_diversity(first, second)) == pytest.approx(expected, rel=1e-6)
    changed = first.at[0, 0].set(9.0)
    assert float(tabular.preference_diversity(changed, first)) == 0.0
    assert float(tabular.preference_diversity(jnp.ones((1, 1)), jnp.zeros((1, 1)))) == 0.0
