"""Running means by hand: what counts, what is forgotten, what goes through no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import running

KINDS = {
    "mean": running.mean(),
    "exponential": running.exponential(0.5),
    "window": running.window(4),
    "log_mean": running.log_mean(),
}
NAN, INF = jnp.nan, jnp.inf


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def after(kind, *batches, shape=(), **kwargs):
    state = kind.init(shape)
    for batch in batches:
        state = kind.update(state, jnp.asarray(batch), **kwargs)
    return state


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_before_any_value(name):
    kind = KINDS[name]
    empty = -np.inf if name == "log_mean" else 0.0
    np.testing.assert_array_equal(kind.value(kind.init()), empty)
    np.testing.assert_array_equal(kind.value(kind.init((2, 3))), np.full((2, 3), empty))


@pytest.mark.parametrize("name", KINDS)
def test_values_that_do_not_count_change_nothing(name):
    kind = KINDS[name]
    state = after(kind, [1.0, 2.0])
    for values, valid in (([NAN, INF], None), ([7.0, 8.0], [False, False])):
        same = kind.update(
            state, jnp.array(values), valid=None if valid is None else jnp.array(valid)
        )
        np.testing.assert_array_equal(kind.value(same), kind.value(state))
        jax.tree.map(np.testing.assert_array_equal, same, state)
    empty = kind.update(kind.init(), jnp.array([NAN, INF]))
    np.testing.assert_array_equal(kind.value(empty), kind.value(kind.init()))


@pytest.mark.parametrize("name", KINDS)
def test_of_a_batch_in_part_the_part_counts(name):
    kind = KINDS[name]
    whole, part = after(kind, [1.0], [3.0]), after(kind, [1.0], [3.0, NAN])
    np.testing.assert_allclose(kind.value(part), kind.value(whole), rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_each_entry_of_the_shape_has_a_mean_of_its_own(name):
    kind = KINDS[name]
    values = jnp.array([[1.0, 2.0, NAN], [5.0, 3.0, 1.0]])
    both = kind.value(after(kind, values, values + 1, shape=(2,)))
    each = [kind.value(after(kind, row, row + 1)) for row in values]
    np.testing.assert_allclose(both, each, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_carries_no_gradient_and_lives_in_a_scan(name):
    kind = KINDS[name]

    def total(values):
        step = lambda state, x: (kind.update(state, x), kind.value(state))  # noqa: E731
        state, seen = jax.lax.scan(step, kind.init(), values)
        return kind.value(state), seen

    values = jax.random.normal(jax.random.key(0), (3, 2))
    last, seen = jax.jit(total)(values)
    np.testing.assert_allclose(last, kind.value(after(kind, *values)), rtol=1e-5)
    np.testing.assert_allclose(seen[2], kind.value(after(kind, *values[:2])), rtol=1e-5)
    slope = jax.grad(lambda v: total(v)[0])(values)
    np.testing.assert_array_equal(slope, 0.0)
    stacked = jax.vmap(lambda v: total(v)[0])(jnp.stack([values, 2 * values]))
    np.testing.assert_allclose(stacked[0], last, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_bad_arguments(name):
    kind = KINDS[name]
    with pytest.raises(ValueError, match="valid"):
        kind.update(kind.init(), jnp.ones(2), valid=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="values"):
        kind.update(kind.init((2,)), jnp.ones(3))


# --- mean ---------------------------------------------------------------------------------------


def test_the_mean_of_everything():
    kind = running.mean()
    np.testing.assert_allclose(after(kind, [3.0]), (3.0, 1.0))
    state = after(kind, [3.0], [1.0, 2.0, NAN, 9.0])
    np.testing.assert_allclose(state, ((3 + 1 + 2 + 9) / 4, 4.0))
    valid = jnp.array([True, False, True])
    state = kind.update(state, jnp.array([0.0, 100.0, 1.0]), valid=valid)
    np.testing.assert_allclose(state, (16 / 6, 6.0))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.integers(0, 12))
def test_the_mean_does_not_depend_on_the_cut(values, cut):
    found = after(running.mean(), values[:cut], values[cut:]).mean
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-4, atol=1e-4)


# --- exponential --------------------------------------------------------------------------------


def test_the_exponential_average_by_hand():
    kind = running.exponential(0.75)
    # The weight makes the first batch count in full.
    np.testing.assert_allclose(kind.value(after(kind, [4.0, 2.0])), 3.0)
    two = after(kind, [4.0, 2.0], [7.0, 7.0])
    np.testing.assert_allclose(two.weight, 0.75 * 0.25 + 0.25)
    np.testing.assert_allclose(kind.value(two), (0.75 * 3.0 + 7.0) / 1.75, rtol=1e-6)
    usual = running.exponential()
    np.testing.assert_allclose(usual.value(after(usual, [2.0], [1.0])), (0.95 * 2 + 1) / 1.95)
    last = running.exponential(0.0)
    np.testing.assert_allclose(last.value(after(last, [4.0], [1.0])), 1.0)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_of_its_range(decay):
    with pytest.raises(ValueError, match="decay"):
        running.exponential(decay)


# --- window -------------------------------------------------------------------------------------


def test_the_window_by_hand():
    kind = running.window(4)
    np.testing.assert_allclose(kind.value(after(kind, [1.0, 2.0, 6.0])), 3.0)
    found = kind.value(after(kind, [1.0, 2.0, 6.0], [10.0, 20.0]))
    np.testing.assert_allclose(found, (2.0 + 6.0 + 10.0 + 20.0) / 4)


def test_a_batch_longer_than_the_window_leaves_its_tail():
    kind = running.window(3)
    state = after(kind, [7.0], jnp.arange(8.0))
    np.testing.assert_allclose(kind.value(state), 6.0)
    state = kind.update(state, jnp.array([100.0]))
    np.testing.assert_allclose(kind.value(state), (6.0 + 7.0 + 100.0) / 3, rtol=1e-6)


def test_values_of_categories_go_to_their_own_windows():
    kind = running.window(2)
    state = kind.init((3,))
    values, category = jnp.array([1.0, 5.0, 2.0, 3.0, 9.0]), jnp.array([0, 2, 0, 0, 7])
    state = jax.jit(kind.update)(state, values, category=category)
    np.testing.assert_allclose(kind.value(state), [2.5, 0.0, 5.0])
    np.testing.assert_array_equal(state.count, [3, 0, 1])
    with pytest.raises(ValueError, match="category"):
        kind.update(state, values, category=category[:2])


def test_a_window_without_room():
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="size"):
            running.window(size)
    assert running.window().init().values.shape == (1024,)
    np.testing.assert_array_equal(
        running.window(1).value(after(running.window(1), [3.0, 5.0])), 5.0
    )


# --- log_mean -----------------------------------------------------------------------------------


def test_the_log_of_a_mean_however_cut(x64):
    weights = jnp.array([[1.0, 3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    state = after(running.log_mean(), jnp.log(weights[:, :1]), jnp.log(weights[:, 1:]), shape=(2,))
    np.testing.assert_allclose(jnp.exp(state.log_mean), [1.5, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(state.count, [4, 4])


def test_the_log_of_a_mean_does_not_overflow_in_float32():
    np.testing.assert_allclose(after(running.log_mean(), [401.0, 401.0]).log_mean, 401.0, rtol=1e-6)


def test_what_counts_in_the_log_of_a_mean():
    """Minus infinity is a weight of 0; the others are no numbers."""
    state = after(running.log_mean(), [1.0, -INF, NAN, INF])
    np.testing.assert_allclose(state.log_mean, np.log(np.e / 2), rtol=1e-6)
    assert int(state.count) == 2
