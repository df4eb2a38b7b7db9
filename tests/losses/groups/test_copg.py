"""CoPG: one gradient in three forms, exact expectations, the optimum, reductions, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from one_group import one_group

from polgrad import advantages, losses, tabular
from polgrad.losses import ipo
from polgrad.losses.pairs_online import copg

# Arrays of rank 1 are one group.
copg_group = one_group(losses.copg_group)
one_leave_one_out = one_group(advantages.leave_one_out)

REWARDS = np.array([2.5, 2.0, 1.0])
BETA = 0.5
FIRST, SECOND = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])
UNIFORM = np.full(3, -math.log(3.0))
ALL = np.array(list(itertools.product(range(3), repeat=2)))
# Log ratios and rewards of five samples of one prompt.
RATIOS, SCORES = np.array([0.3, -1.2, 0.8, 0.1, -0.4]), np.array([1.0, 0.2, -0.5, 0.7, 0.7])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def population(logits, first, second, beta=BETA):
    """The loss averaged over all pairs of two independent draws."""
    ratio = jax.nn.log_softmax(logits) - UNIFORM
    a, b = ALL.T
    pairs = copg(ratio[a], ratio[b], jnp.asarray(REWARDS)[a], jnp.asarray(REWARDS)[b], beta=beta)
    return (first[a] * second[b]) @ pairs


def objective(logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.exp(logp) @ (REWARDS - BETA * (logp - UNIFORM))


def test_the_optimum_of_the_bandit(x64):
    log_optimum = tabular.kl_regularized_optimum(
        jnp.asarray(UNIFORM), jnp.asarray(REWARDS), beta=BETA
    )
    np.testing.assert_allclose(jnp.exp(log_optimum), [0.705385, 0.259496, 0.035119], atol=1e-6)
    np.testing.assert_allclose(objective(log_optimum), 2.125200, atol=1e-6)
    np.testing.assert_allclose(objective(jnp.zeros(3)), 1.833333, atol=1e-6)


@pytest.mark.parametrize("swap", [False, True])
def test_the_optimum_is_stationary_whatever_drew_the_pairs(swap, x64):
    log_optimum = tabular.kl_regularized_optimum(
        jnp.asarray(UNIFORM), jnp.asarray(REWARDS), beta=BETA
    )
    slope = grad(population)
    pairs = (SECOND, FIRST) if swap else (FIRST, SECOND)
    np.testing.assert_allclose(slope(log_optimum, *pairs), 0.0, atol=1e-12)
    # Another policy is not.
    assert np.abs(slope(jnp.zeros(3), *pairs)).max() > 0.1


def test_each_side_is_contrasted_with_the_mean_of_the_other(x64):
    logits = jnp.array([0.4, -0.7, 0.1])
    logp = jax.nn.log_softmax(logits)
    regularized = REWARDS - BETA * (logp - UNIFORM)
    score = jnp.eye(3) - jnp.exp(logp)
    expected = (FIRST * (regularized - SECOND @ regularized)) @ score
    expected += (SECOND * (regularized - FIRST @ regularized)) @ score
    np.testing.assert_allclose(grad(population)(logits, FIRST, SECOND), -expected, atol=1e-12)


def test_on_policy_it_is_twice_the_policy_gradient(x64):
    logits = jnp.array([0.4, -0.7, 0.1])
    policy = jax.nn.softmax(logits)
    slope = grad(population)(logits, policy, policy)
    np.testing.assert_allclose(slope, -2.0 * grad(objective)(logits), atol=1e-10)


def test_value_by_hand(x64):
    # D = 2, reward difference 3: 0.25 * 4 - 3 * 2.
    two, half = jnp.array([1.5]), jnp.array([-0.5])
    loss = run(copg, two, half, jnp.array([4.0]), jnp.array([1.0]), beta=BETA)
    np.testing.assert_allclose(loss, -5.0, rtol=1e-12)
    # The least value, at D = difference / beta.
    best = run(copg, jnp.array([6.0]), jnp.zeros(1), jnp.array([4.0]), jnp.array([1.0]), beta=BETA)
    np.testing.assert_allclose(best, -(3.0**2) / (2 * BETA), rtol=1e-12)


def test_ipo_is_the_case_of_rewards_of_a_quarter(x64):
    chosen, rejected = jnp.array([0.3, -2.0]), jnp.array([0.1, 0.6])
    quarter = jnp.full(2, 0.25)
    ours = grad(lambda a, b: jnp.sum(copg(a, b, quarter, -quarter, beta=BETA)))(chosen, rejected)
    theirs = grad(lambda a, b: jnp.sum(ipo(a, b, beta=BETA)))(chosen, rejected)
    # copg regresses beta D on the reward difference 1/2, ipo D on 1 / (2 beta).
    np.testing.assert_allclose(ours, BETA / 2 * theirs, atol=1e-12)


def test_which_answer_comes_first_and_a_shift_of_the_scores_do_not_matter(x64):
    arguments = RATIOS[:3], RATIOS[2:], SCORES[:3], SCORES[2:]
    plain = run(copg, *arguments, beta=BETA)
    a, b, first, second = arguments
    np.testing.assert_allclose(run(copg, b, a, second, first, beta=BETA), plain, rtol=1e-12)
    np.testing.assert_allclose(run(copg, a, b, first + 7, second + 7, beta=BETA), plain, rtol=1e-9)
    # Rewards and beta are one knob.
    scaled = run(copg, a, b, 3 * first, 3 * second, beta=3 * BETA)
    np.testing.assert_allclose(scaled, 3 * plain, rtol=1e-12)


def test_a_group_of_two_is_the_pair(x64):
    group = run(copg_group, RATIOS[:2], SCORES[:2], beta=BETA)
    pair = run(copg, RATIOS[0], RATIOS[1], SCORES[0], SCORES[1], beta=BETA)
    np.testing.assert_allclose(group, pair / 2, rtol=1e-12)


def test_a_group_is_rloo_on_the_regularised_reward(x64):
    def rloo(ratios):
        rewards = advantages.regularized_rewards(SCORES, ratios, beta=BETA)
        return -jnp.sum(one_leave_one_out(rewards) * ratios)

    slope = grad(lambda x: jnp.sum(copg_group(x, SCORES, beta=BETA)))(RATIOS)
    np.testing.assert_allclose(slope, grad(rloo)(RATIOS), atol=1e-12)
    # The mean over the ten pairs is 2 / 5 of the sum over samples.
    pairs = np.array(list(itertools.combinations(range(5), 2))).T
    mean = lambda x: jnp.mean(copg(*x[pairs], *SCORES[pairs], beta=BETA))  # noqa: E731
    np.testing.assert_allclose(grad(mean)(jnp.asarray(RATIOS)), 2 / 5 * slope, atol=1e-12)


def test_invalid_samples_count_as_absent(x64):
    valid = jnp.array([1, 0, 1, 1, 1], bool)
    scores = jnp.asarray(SCORES).at[3].set(jnp.nan)
    total = lambda x, r, v: jnp.sum(copg_group(x, r, beta=BETA, valid=v))  # noqa: E731
    kept = np.array([0, 2, 4])
    everyone = jnp.sum(copg_group(jnp.asarray(RATIOS), SCORES, beta=BETA))
    all_valid = total(jnp.asarray(RATIOS), SCORES, np.ones(5, bool))
    np.testing.assert_allclose(all_valid, everyone, rtol=1e-12)
    value, slope = value_and_grad(total)(jnp.asarray(RATIOS), scores, valid)
    alone, expected = value_and_grad(total)(RATIOS[kept], SCORES[kept], np.ones(3, bool))
    np.testing.assert_allclose(value, alone, rtol=1e-12)
    np.testing.assert_allclose(slope[kept], expected, rtol=1e-12)
    np.testing.assert_array_equal(slope[jnp.array([1, 3])], 0.0)
    lonely = jnp.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(
        jax.jit(lambda v: copg_group(jnp.ones((2, 5)), jnp.ones((2, 5)), beta=1.0, valid=v))(
            lonely
        ),
        0.0,
    )


def flow(loss, steps=10_000, rate=0.1):
    """Gradient descent from the uniform policy on an exact expectation; the policy it ends at."""
    step = lambda _, z: z - rate * jax.grad(loss)(z)  # noqa: E731
    return jax.nn.softmax(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, jnp.zeros(3)))())


def policy_gradient(baseline):
    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        weight = advantages.regularized_rewards(REWARDS, logp - UNIFORM, beta=BETA)
        return -(FIRST + SECOND) @ (jax.lax.stop_gradient(weight - baseline(logp)) * logp)

    return loss


def population_ipo(logits):
    ratio = jax.nn.log_softmax(logits) - UNIFORM
    a, b = ALL.T
    preferred = jax.nn.sigmoid(jnp.asarray(REWARDS)[a] - jnp.asarray(REWARDS)[b])
    pairs = preferred * ipo(ratio[a], ratio[b], beta=BETA)
    pairs += (1.0 - preferred) * ipo(ratio[b], ratio[a], beta=BETA)
    return (FIRST[a] * SECOND[b]) @ pairs


@pytest.mark.parametrize(
    ("method", "policy", "regret"),
    [
        ("copg", [0.7054, 0.2595, 0.0351], 0.0),
        ("none", [0.1940, 0.2501, 0.5559], 0.6378),
        ("value", [0.8115, 0.1675, 0.0209], 0.01482),
        ("ipo", [0.4242, 0.3527, 0.2231], 0.1525),
    ],
)
def test_where_the_methods_of_the_paper_end(method, policy, regret, x64):
    loss = {
        "copg": lambda z: population(z, FIRST, SECOND),
        "none": policy_gradient(lambda logp: 0.0),
        "value": policy_gradient(lambda logp: jnp.exp(logp) @ REWARDS),
        "ipo": population_ipo,
    }[method]
    reached = flow(loss)
    np.testing.assert_allclose(reached, policy, atol=1e-4)
    best = tabular.kl_regularized_value(jnp.asarray(UNIFORM), jnp.asarray(REWARDS), beta=BETA)
    np.testing.assert_allclose(best - objective(jnp.log(reached)), regret, atol=1e-4)


def test_edges_are_finite():
    inf, nan = jnp.inf, jnp.nan
    first = jnp.array([-inf, -inf, inf, nan, 900.0, 0.3, 0.3])
    second = jnp.array([-inf, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1])
    scores = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, nan, inf])
    loss = lambda a, b: copg(a, b, scores, jnp.zeros(7), beta=0.1)  # noqa: E731
    value = jax.jit(loss)(first, second)
    assert np.all(np.isfinite(value))
    np.testing.assert_array_equal(value[-2:], 0.0)
    gradients = grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(first, second)
    assert np.all(np.isfinite(gradients))
    np.testing.assert_array_equal(gradients[0][jnp.array([0, 1, 2, 3, 5, 6])], 0.0)
    assert copg_group(jnp.zeros((2, 0)), jnp.zeros((2, 0)), beta=1.0).shape == (2, 0)


def test_bad_arguments():
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta is 0"):
        copg(zero, zero, zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="second_rewards has shape"):
        copg(zero, zero, zero, jnp.zeros(3), beta=1.0)
    with pytest.raises(ValueError, match="rewards has shape"):
        copg_group(zero[None], jnp.zeros(2), beta=1.0)
    with pytest.raises(ValueError, match="valid has shape"):
        copg_group(zero, zero, beta=1.0, valid=jnp.ones(3))
