"""Windows and confidence bounds: hand numbers, a list as the reference, limits, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad.curricula import bandit, windows
from polgrad.curricula.windows import Windows


def scored(means, counts, **settings):
    """Scores and probabilities of categories with these means and counts."""
    scores = run(windows.ucb_scores, jnp.array(means), jnp.array(counts), **settings)
    return scores, run(bandit.boltzmann, scores, tau=0.1)


# --- scores --------------------------------------------------------------------------------------


def test_scores_and_probabilities_by_hand():
    scores, chances = scored([0.5, 0.2, 0.0], [100.0, 10.0, 0.0])
    np.testing.assert_allclose(scores, [0.80538, 1.12535, 3.06905], atol=1e-5)
    np.testing.assert_allclose(chances, [1.48e-10, 3.62e-9, 1.0], rtol=3e-3)
    scores, chances = scored([0.8, 0.6, 0.1], [4000.0] * 3)
    np.testing.assert_allclose(scores, [0.86852, 0.66852, 0.16852], atol=1e-5)
    np.testing.assert_allclose(chances, [0.88009, 0.11911, 0.00080], atol=1e-5)
    other, _ = scored([0.5, 0.2], [3.0, 1.0], exploration=3.0)
    bonus = [3 * math.sqrt(math.log(5) / n) for n in (4, 2)]
    np.testing.assert_allclose(other, np.array([0.5, 0.2]) + bonus, rtol=1e-6)
    none, _ = scored([0.5, 0.2], [3.0, 1.0], exploration=0.0)
    np.testing.assert_allclose(none, [0.5, 0.2])


def test_before_any_visit_the_scores_are_the_values():
    scores, chances = scored([0.0] * 4, [0.0] * 4)
    np.testing.assert_array_equal(scores, 0.0)
    np.testing.assert_allclose(chances, 0.25)


def test_equal_counts_cancel_and_many_visits_leave_the_mean():
    means = jnp.array([0.3, 0.1, 0.25])
    _, chances = scored(means, [7.0] * 3)
    np.testing.assert_allclose(chances, jax.nn.softmax(means / 0.1), rtol=1e-5)
    _, even = scored([0.4] * 3, [1e9, 2e9, 3e9])
    np.testing.assert_allclose(even, 1 / 3, rtol=1e-3)


def test_a_category_rises_with_its_mean_and_falls_with_its_visits():
    chance = lambda mean, count: scored([mean, 0.3, 0.3], [count, 50.0, 50.0])[1][0]  # noqa: E731
    assert chance(0.2, 50.0) < chance(0.3, 50.0) < chance(0.4, 50.0)
    assert chance(0.3, 40.0) > chance(0.3, 50.0) > chance(0.3, 60.0)


# --- windows -------------------------------------------------------------------------------------


def test_a_ring_forgets_the_oldest_and_an_unfilled_one_is_not_diluted():
    state = run(windows.push, windows.init(1), jnp.arange(1.0, 306.0), jnp.zeros(305, int))
    assert state.values.shape == (1, 300)
    np.testing.assert_allclose(windows.mean(state), 155.5)
    np.testing.assert_array_equal(state.values[0, :6], [301, 302, 303, 304, 305, 6])
    few = run(windows.push, windows.init(1), jnp.array([1.0, 2.0]), jnp.zeros(2, int))
    np.testing.assert_allclose(windows.mean(few), 1.5)
    np.testing.assert_array_equal(few.values[0, :3], [1.0, 2.0, 0.0])
    np.testing.assert_array_equal(windows.mean(windows.init(2)), [0.0, 0.0])


def as_lists(batches, size):
    """Windows as lists of what was pushed."""
    kept, counts = [[] for _ in range(3)], np.zeros(3)
    for values, category, valid in batches:
        for value, c, counted in zip(values, category, valid):
            if counted and np.isfinite(value) and 0 <= c < 3:
                kept[c] = [*kept[c], value][-size:]
                counts[c] += 1
    return kept, counts


@given(seed=st.integers(0, 10_000))
def test_pushes_equal_lists(seed):
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(3):
        values = rng.integers(1, 99, 9).astype(np.float32)
        values[rng.random(9) < 0.1] = np.nan
        batches.append((values, rng.integers(-1, 4, 9), rng.random(9) < 0.8))
    state = windows.init(3, window=4)
    for values, category, valid in batches:
        state = push(state, values, category, valid)
    kept, counts = as_lists(batches, 4)
    for c in range(3):
        filled = len(kept[c])
        found = np.asarray(state.values[c])
        assert sorted(found[found != 0].tolist()) == sorted(kept[c])
        np.testing.assert_allclose(windows.mean(state)[c], sum(kept[c]) / max(filled, 1), rtol=1e-6)
    np.testing.assert_allclose(state.counts, counts / 2)


push = jax.jit(lambda s, v, c, ok: windows.push(s, v, c, valid=ok, group_size=2))


def test_by_default_every_sample_is_a_visit():
    state = run(windows.push, windows.init(2), jnp.ones(3), jnp.array([0, 1, 1]))
    np.testing.assert_array_equal(state.counts, [1.0, 2.0])
    np.testing.assert_array_equal(state.pushed, [1, 2])


# --- a step --------------------------------------------------------------------------------------


def test_a_step_is_push_score_softmax():
    values, category = jnp.array([0.5, 1.0, 0.25]), jnp.array([0, 0, 2])
    state, chances = run(windows.update, windows.init(3), values, category)
    np.testing.assert_allclose(windows.mean(state), [0.75, 0.0, 0.25])
    np.testing.assert_array_equal(state.counts, [2.0, 0.0, 1.0])
    expected = scored([0.75, 0.0, 0.25], [2.0, 0.0, 1.0])[1]
    np.testing.assert_allclose(chances, expected, rtol=1e-5)
    settings = {"tau": 2.0, "exploration": 0.5, "group_size": 4}
    prompts, chances = run(windows.update, windows.init(3), values, category, **settings)
    np.testing.assert_array_equal(prompts.counts, [0.5, 0.0, 0.25])
    scores = run(windows.ucb_scores, windows.mean(prompts), prompts.counts, exploration=0.5)
    np.testing.assert_allclose(chances, jax.nn.softmax(scores / 2), rtol=1e-5)


def test_a_step_leaves_out_what_is_invalid_and_what_has_no_prompts():
    step = jax.jit(lambda s, v, c, ok, m: windows.update(s, v, c, valid=ok, mask=m))
    ok, there = jnp.array([True, False, True]), jnp.array([True, True, False])
    state, chances = step(windows.init(3), jnp.ones(3), jnp.array([0, 1, 2]), ok, there)
    np.testing.assert_array_equal(state.counts, [1.0, 0.0, 1.0])
    assert chances[2] == 0.0
    np.testing.assert_allclose(chances.sum(), 1.0, rtol=1e-6)
    same, even = step(windows.init(3), jnp.ones(3), jnp.array([0, 1, 2]), ok & False, there | True)
    np.testing.assert_array_equal(same.pushed, 0)
    np.testing.assert_allclose(even, 1 / 3, rtol=1e-6)


def test_the_curriculum_leaves_what_pays_nothing():
    """Category 0 pays nothing, 2 most; the bonus makes each be visited first."""
    pays = jnp.array([0.0, 0.2, 0.9])

    def step(carry, key):
        state, chances = carry
        category = bandit.sample_categories(chances, jax.random.uniform(key, (16,)))
        return windows.update(state, pays[category], category), chances

    start = windows.init(3, window=20), jnp.full(3, 1 / 3)
    run_all = jax.jit(lambda keys: jax.lax.scan(step, start, keys))
    (state, chances), _ = run_all(jax.random.split(jax.random.key(0), 200))
    assert np.all(np.asarray(state.counts) > 20)
    assert chances[2] > 0.9
    np.testing.assert_allclose(windows.mean(state), pays, atol=1e-6)


# --- gradients and mistakes ----------------------------------------------------------------------


def test_nothing_carries_a_gradient():
    def total(values, buffer, counts):
        state = Windows(buffer, jnp.array([1, 1]), counts)
        following, chances = windows.update(state, values, jnp.array([0, 1]))
        return following.values.sum() + (chances * jnp.array([1.0, 2.0])).sum()

    to_values = grad(total)(jnp.ones(2), jnp.ones((2, 3)), jnp.ones(2))
    np.testing.assert_array_equal(to_values, 0.0)
    scores = lambda v, n: windows.ucb_scores(v, n).sum()  # noqa: E731
    for gradient in grad(scores, argnums=(0, 1))(jnp.ones(2), jnp.ones(2)):
        np.testing.assert_array_equal(gradient, 0.0)


def test_bad_arguments_are_named():
    state, one = windows.init(2), jnp.ones(3)
    with pytest.raises(ValueError, match="categories is 0"):
        windows.init(0)
    with pytest.raises(ValueError, match="window is 0"):
        windows.init(2, window=0)
    windows.init(1, window=1)
    with pytest.raises(ValueError, match="values"):
        windows.push(state, one[None], one[None].astype(int))
    with pytest.raises(ValueError, match="category"):
        windows.push(state, one, jnp.zeros(2, int))
    with pytest.raises(ValueError, match="valid"):
        windows.push(state, one, jnp.zeros(3, int), valid=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="group_size is 0"):
        windows.push(state, one, jnp.zeros(3, int), group_size=0)
    with pytest.raises(ValueError, match="counts"):
        windows.ucb_scores(one, one[:2])
    with pytest.raises(ValueError, match="values"):
        windows.ucb_scores(one[None], one[None])
    with pytest.raises(ValueError, match="exploration"):
        windows.ucb_scores(one, one, exploration=-0.1)
    with pytest.raises(ValueError, match="tau"):
        windows.update(state, one, jnp.zeros(3, int), tau=0.0)
