"""Bandit curricula: hand-computed payments, values and probabilities, limits, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from one_group import one_group
from scipy import stats

from polgrad import advantages
from polgrad.curricula import bandit

# Arrays of rank 1 are one group.
one_group_relative = one_group(advantages.group_relative)
one_unnormalized = one_group(bandit.unnormalized)

VALUES = hnp.arrays(np.float32, (5,), elements=st.integers(0, 8).map(lambda x: x / 8))
RULES = {
    "boltzmann": (bandit.boltzmann, {"tau": 0.3}),
    "normalized": (bandit.normalized, {}),
    "epsilon_greedy": (bandit.epsilon_greedy, {}),
}


def payment(successes, group=8, **settings):
    """Mean |advantage| of a group with so many successes."""
    rewards = (np.arange(group) < successes).astype(np.float32)
    advantage = run(one_group_relative, rewards, **settings)[:, None]
    return run(bandit.absolute_advantage, advantage, np.ones((group, 3), np.float32)).mean()


@pytest.mark.parametrize(
    ("successes", "population", "sample"),
    [(0, 0.0, 0.0), (1, 0.661438, 0.618719), (4, 1.0, 0.935413), (7, 0.661438, 0.618719)],
)
def test_a_group_pays_most_at_half_right(successes, population, sample):
    np.testing.assert_allclose(payment(successes, ddof=0), population, atol=1e-5)
    np.testing.assert_allclose(payment(successes), sample, atol=1e-5)


@pytest.mark.parametrize(("p", "expected"), [(0.05, 0.2349), (0.1, 0.4190), (0.25, 0.7598)])
def test_small_groups_pay_less_than_their_limit(p, expected):
    chances = stats.binom.pmf(np.arange(9), 8, p)
    paid = sum(chances[k] * payment(k, ddof=0) for k in range(9))
    np.testing.assert_allclose(paid, expected, atol=1e-4)
    assert paid < 2 * np.sqrt(p * (1 - p))


def test_unnormalized_payment_is_that_of_the_raw_rewards():
    rewards = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], np.float32)
    paid = run(one_unnormalized, rewards)
    # 2 p (1 - p) on average.
    np.testing.assert_allclose(paid.mean(-1), [0.375, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(paid[0], [0.75, 0.25, 0.25, 0.25], rtol=1e-6)
    valid = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
    alone = jax.jit(lambda r, v: one_unnormalized(r, valid=v))(rewards, valid)
    np.testing.assert_allclose(
        alone, [[0.5, 0.5, 0, 0], [1 / 3, 1 / 3, 2 / 3, 0], [0] * 4], atol=1e-6
    )


def test_values_and_probabilities_by_hand():
    rewards, count = jnp.array([0.8, 0.0, 0.2]), jnp.array([3, 2, 1])
    state = run(bandit.update, bandit.init(3), rewards, count, alpha=0.5)
    np.testing.assert_allclose(state.values, [0.4, 0.0, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(state.counts, [3, 2, 1])
    warm = run(bandit.boltzmann, state.values, tau=1.0)
    np.testing.assert_allclose(warm, [0.41474, 0.27801, 0.30725], atol=1e-5)
    cool = run(bandit.boltzmann, state.values, tau=0.2)
    np.testing.assert_allclose(cool, [0.73612, 0.09962, 0.16425], atol=1e-5)
    np.testing.assert_allclose(
        run(bandit.normalized, state.values), np.array([0.4, 0.01, 0.1]) / 0.51, rtol=1e-6
    )
    greedy = run(bandit.epsilon_greedy, state.values, epsilon=0.3)
    np.testing.assert_allclose(greedy, [0.8, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_a_constant_payment_is_approached_geometrically(alpha):
    def after(steps):
        step = lambda _, s: bandit.update(s, jnp.full(1, 0.8), jnp.ones(1), alpha=alpha)  # noqa: E731
        return jax.lax.fori_loop(0, steps, step, bandit.init(1))

    state = jax.jit(after)(7)
    np.testing.assert_allclose(state.values, 0.8 * (1 - (1 - alpha) ** 7), rtol=1e-6)
    np.testing.assert_array_equal(state.counts, 7)


@pytest.mark.parametrize(("decay_unseen", "left"), [(False, 0.6), (True, 0.6 * 0.5**4)])
def test_a_category_that_is_not_visited(decay_unseen, left):
    def after(state):
        step = lambda _, s: bandit.update(  # noqa: E731
            s, jnp.array([jnp.nan, 1.0]), jnp.array([0, 1]), decay_unseen=decay_unseen
        )
        return jax.lax.fori_loop(0, 4, step, state)

    state = jax.jit(after)(bandit.BanditState(jnp.array([0.6, 0.0]), jnp.zeros(2)))
    np.testing.assert_allclose(state.values, [left, 1 - 0.5**4], rtol=1e-6)
    np.testing.assert_array_equal(state.counts, [0, 4])


@given(values=VALUES, shift=st.integers(-64, 64))
def test_a_constant_changes_no_boltzmann_probability(values, shift):
    plain = run(bandit.boltzmann, values, tau=0.25)
    np.testing.assert_allclose(run(bandit.boltzmann, values + shift, tau=0.25), plain, rtol=1e-5)
    np.testing.assert_allclose(plain, np.exp(4 * values) / np.exp(4 * values).sum(), rtol=1e-5)


def test_limits_of_the_temperature():
    values = jnp.array([0.2, 0.9, 0.9, -0.5])
    np.testing.assert_allclose(run(bandit.boltzmann, values, tau=1e6), 0.25, atol=1e-6)
    np.testing.assert_array_equal(run(bandit.boltzmann, values, tau=1e-8), [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(run(bandit.epsilon_greedy, values, epsilon=0.0), [0, 0.5, 0.5, 0])


@given(values=VALUES, mask=hnp.arrays(bool, (5,), elements=st.booleans()))
@pytest.mark.parametrize("rule", RULES)
def test_probabilities_of_the_categories_that_exist(rule, values, mask):
    function, settings = RULES[rule]
    poisoned = np.where(mask, values, np.nan).astype(np.float32)
    probabilities = np.asarray(run(_with_mask(rule), poisoned, mask))
    assert np.all(probabilities[~mask] == 0.0)
    np.testing.assert_allclose(probabilities.sum(), float(mask.any()), rtol=1e-5)
    if mask.all():
        np.testing.assert_allclose(probabilities, run(function, values, **settings), rtol=1e-6)


def _with_mask(rule, cache={}):  # noqa: B006  (one function a rule, so that it is compiled once)
    function, settings = RULES[rule]
    return cache.setdefault(rule, lambda v, m: function(v, mask=m, **settings))


@pytest.mark.parametrize("rule", RULES)
def test_equal_values_are_the_random_curriculum(rule):
    function, settings = RULES[rule]
    probabilities = run(function, bandit.init(5).values, **settings)
    np.testing.assert_allclose(probabilities, bandit.uniform(5), rtol=1e-6)


def test_fixed_orders():
    order = jax.jit(jax.vmap(lambda t: bandit.easy_to_hard(t, steps=6, categories=3)))
    turns = order(jnp.arange(8))
    np.testing.assert_array_equal(turns.argmax(-1), [0, 0, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(turns.sum(-1), 1.0)
    np.testing.assert_array_equal(bandit.reverse(0, steps=6, categories=3), [0, 0, 1])


def test_categories_are_drawn_in_proportion_and_never_at_probability_zero():
    noise = jnp.arange(1000) / 1000
    probabilities = jnp.array([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    drawn = run(bandit.sample_categories, probabilities, noise)
    np.testing.assert_allclose(np.bincount(drawn, minlength=6), [0, 500, 0, 250, 250, 0], atol=1)
    edges = run(bandit.sample_categories, probabilities, jnp.array([0.0, 1.0 - 2**-23]))
    np.testing.assert_array_equal(edges, [1, 4])


def test_category_mean_pools_samples_and_leaves_out_what_does_not_count():
    values = jnp.array([1.0, 2.0, 4.0, jnp.nan, 8.0, 16.0, 32.0, jnp.inf])
    category = jnp.array([0, 0, 2, 2, 0, -1, 4, 3])
    valid = jnp.array([1, 1, 1, 1, 0, 1, 1, 1], bool)
    mean, count = jax.jit(lambda *a: bandit.category_mean(*a[:2], categories=4, valid=a[2]))(
        values, category, valid
    )
    np.testing.assert_allclose(mean, [1.5, 0.0, 4.0, 0.0])
    np.testing.assert_array_equal(count, [2, 0, 1, 0])


def test_a_sample_pays_the_mean_over_its_tokens():
    advantage = jnp.array([[1.0, -3.0, 7.0], [-2.0, 5.0, 5.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(run(bandit.absolute_advantage, advantage, mask), [2.0, 2.0, 0.0])
    shared = run(bandit.absolute_advantage, advantage[:, :1], mask)
    np.testing.assert_allclose(shared, [1.0, 2.0, 0.0])


def test_progress_is_the_rise_since_the_last_visit():
    previous = jnp.zeros(3)
    paid, previous = run(
        bandit.progress, jnp.array([0.5, 9.0, 0.2]), jnp.array([4, 0, 1]), previous
    )
    np.testing.assert_allclose(paid, [0.5, 0.0, 0.2], rtol=1e-6)
    paid, previous = run(
        bandit.progress, jnp.array([0.4, 0.3, 9.0]), jnp.array([1, 2, 0]), previous
    )
    np.testing.assert_allclose(paid, [-0.1, 0.3, 0.0], atol=1e-6)
    np.testing.assert_allclose(previous, [0.4, 0.3, 0.2], rtol=1e-6)


def test_no_gradient_flows_through_a_curriculum():
    def total(advantage, rewards):
        paid = bandit.absolute_advantage(advantage, jnp.ones((2, 3)))
        state = bandit.update(bandit.init(2), rewards, jnp.ones(2))
        return paid.sum() + state.values.sum() + one_unnormalized(rewards).sum()

    gradients = grad(total, argnums=(0, 1))(jnp.ones((2, 3)), jnp.array([0.3, 0.1]))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_run_vmaps_over_seeds():
    def steps(key):
        def step(state, key):
            drawn = bandit.sample_categories(
                bandit.boltzmann(state.values, tau=0.2), jax.random.uniform(key, (16,))
            )
            paid = bandit.category_mean(drawn * 0.5, drawn, categories=3)
            return bandit.update(state, paid.mean, paid.count), drawn

        return jax.lax.scan(step, bandit.init(3), jax.random.split(key, 30))

    state, drawn = jax.jit(jax.vmap(steps))(jax.random.split(jax.random.key(0), 2))
    assert drawn.shape == (2, 30, 16) and np.all(state.counts.sum(-1) == 480)
    # Category 2 pays 1, category 0 nothing; both drift to what they pay.
    np.testing.assert_allclose(state.values[:, 2], 1.0, atol=1e-3)
    assert np.all(np.mean(np.asarray(drawn[:, 15:]) == 2, axis=(1, 2)) > 0.8)


def test_bad_arguments():
    state = bandit.init(2)
    with pytest.raises(ValueError, match="categories is 0"):
        bandit.init(0)
    with pytest.raises(ValueError, match="alpha is 1.5"):
        bandit.update(state, jnp.ones(2), jnp.ones(2), alpha=1.5)
    with pytest.raises(ValueError, match="count has shape"):
        bandit.update(state, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="tau is 0"):
        bandit.boltzmann(jnp.ones(2), tau=0)
    with pytest.raises(ValueError, match="mask has shape"):
        bandit.normalized(jnp.ones(2), mask=jnp.ones(3))
    with pytest.raises(ValueError, match="epsilon is -1"):
        bandit.epsilon_greedy(jnp.ones(2), epsilon=-1)
    with pytest.raises(ValueError, match="advantages has shape"):
        bandit.absolute_advantage(jnp.ones(2), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="steps is 0"):
        bandit.easy_to_hard(0, steps=0, categories=2)
