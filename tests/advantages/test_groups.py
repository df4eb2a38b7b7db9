import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from one_group import one_group

from polgrad import advantages

# Arrays of rank 1 are one group.
one_group_relative = one_group(advantages.group_relative)
one_leave_one_out = one_group(advantages.leave_one_out)

ONE = np.array([1.0, 0.0, 0.0, 0.0], np.float32)
REWARDS = hnp.arrays(np.float32, (3, 4), elements=st.integers(-8, 8).map(float))
SCALES = ("group", "none", "batch")


@pytest.mark.parametrize(
    ("function", "settings", "expected"),
    [
        (one_group_relative, {}, [1.5, -0.5, -0.5, -0.5]),
        (one_group_relative, {"ddof": 0}, [1.73205, -0.57735, -0.57735, -0.57735]),
        (one_group_relative, {"scale": "none"}, [0.75, -0.25, -0.25, -0.25]),
        (one_group_relative, {"epsilon": 0.5}, [0.75, -0.25, -0.25, -0.25]),
        (one_leave_one_out, {}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_hand_numbers(function, settings, expected):
    np.testing.assert_allclose(run(function, ONE, **settings), expected, atol=1e-5)


def test_batch_scale_divides_by_the_deviation_of_all_raw_rewards():
    rewards = np.array([[1.0, 0.0, 0.0, 0.0], [3.0, 3.0, 5.0, 5.0]], np.float32)
    expected = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(ddof=1)
    batch = run(one_group_relative, rewards, scale="batch")
    np.testing.assert_allclose(batch, expected, rtol=1e-5)


@given(rewards=REWARDS, shift=st.integers(-100, 100), factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_shift_and_scale_of_the_rewards(rewards, shift, factor):
    for scale in SCALES:
        base = run(one_group_relative, rewards, scale=scale, epsilon=0.0)
        shifted = run(one_group_relative, rewards + shift, scale=scale, epsilon=0.0)
        np.testing.assert_allclose(shifted, base, atol=1e-5)
        grown = run(one_group_relative, rewards * factor, scale=scale, epsilon=0.0)
        np.testing.assert_allclose(grown, base * (factor if scale == "none" else 1), atol=1e-5)
    alone = run(one_leave_one_out, rewards)
    np.testing.assert_allclose(run(one_leave_one_out, rewards + shift), alone, atol=1e-5)
    np.testing.assert_allclose(run(one_leave_one_out, rewards * factor), alone * factor, atol=1e-4)
    np.testing.assert_allclose(np.sum(alone, -1), 0.0, atol=1e-4)


@given(rewards=REWARDS, valid=hnp.arrays(bool, (3, 4), elements=st.booleans()))
def test_invalid_samples_count_as_absent(rewards, valid):
    """Against numpy on the valid ones alone; whatever stands at the invalid ones, NaN included."""
    poisoned = np.where(valid, rewards, np.nan).astype(np.float32)
    grouped = run(one_group_relative, poisoned, scale="group")
    alone = run(one_leave_one_out, poisoned)
    np.testing.assert_array_equal(run(_with_valid, poisoned, valid), grouped)
    np.testing.assert_array_equal(run(_with_valid, rewards, valid), grouped)
    for row in range(3):
        kept = rewards[row][valid[row]]
        expected_group, expected_alone = np.zeros(4), np.zeros(4)
        if kept.size > 1:
            expected_group[valid[row]] = (kept - kept.mean()) / (kept.std(ddof=1) + 1e-6)
            others = (kept.sum() - kept) / (kept.size - 1)
            expected_alone[valid[row]] = kept - others
        np.testing.assert_allclose(grouped[row], expected_group, atol=1e-4)
        np.testing.assert_allclose(alone[row], expected_alone, atol=1e-4)


def _with_valid(rewards, valid):
    return one_group_relative(rewards, valid=valid)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.1, -1e6 / 3])
def test_equal_rewards_are_exactly_zero(value):
    """The float mean of equal numbers may be off by an ulp, which the deviation then blows up."""
    rewards = np.full((2, 7), value, np.float32)
    for scale in SCALES:
        for epsilon in (0.0, 1e-6):
            result = run(one_group_relative, rewards, scale=scale, epsilon=epsilon)
            np.testing.assert_array_equal(result, 0.0)
    np.testing.assert_array_equal(run(one_leave_one_out, rewards), 0.0)
    np.testing.assert_array_equal(run(advantages.whiten, rewards, np.ones((2, 7))), 0.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [0, 1])
def test_groups_of_none_and_one(scale, size):
    rewards = np.full((2, size), 3.0, np.float32)
    result = run(one_group_relative, rewards, scale=scale)
    np.testing.assert_array_equal(result, np.zeros((2, size)))
    np.testing.assert_array_equal(run(one_leave_one_out, rewards), np.zeros((2, size)))


def test_remax():
    rewards = np.array([[1.0, 0.0], [np.nan, 2.0], [1.0, 1.0]], np.float32)
    greedy = np.array([0.5, 3.0, np.nan], np.float32)
    expected = [[0.5, -0.5], [0.0, -1.0], [0.0, 0.0]]
    np.testing.assert_array_equal(run(advantages.remax, rewards, greedy), expected)


def test_whiten_hand_numbers():
    x = np.array([1.0, 2.0, 3.0, 4.0, np.nan], np.float32)
    mask = np.array([1, 1, 1, 1, 0])
    expected = [-1.16190, -0.38730, 0.38730, 1.16190, 0.0]
    np.testing.assert_allclose(run(advantages.whiten, x, mask), expected, atol=1e-5)
    scaled = run(advantages.whiten, x, mask, center=False)
    np.testing.assert_allclose(scaled[:4], x[:4] / np.std(x[:4], ddof=1), rtol=1e-5)
    assert scaled[4] == 0.0


@given(
    x=hnp.arrays(np.float32, (3, 4), elements=st.integers(-50, 50).map(float)),
    mask=hnp.arrays(bool, (3, 4), elements=st.booleans()),
)
def test_whitened_values_have_mean_zero_and_unit_variance(x, mask):
    result = np.asarray(run(advantages.whiten, x, mask))
    assert np.all(result[~mask] == 0.0) and np.all(np.isfinite(result))
    if np.unique(x[mask]).size > 1:
        assert result[mask].mean() == pytest.approx(0.0, abs=1e-5)
        assert result[mask].var(ddof=1) == pytest.approx(1.0, abs=1e-4)
    else:
        assert np.all(result == 0.0)


def test_one_valid_entry_whitens_to_zero_or_stays():
    x, mask = np.array([[3.0, 5.0]], np.float32), np.array([[0, 1]])
    np.testing.assert_array_equal(run(advantages.whiten, x, mask), [[0.0, 0.0]])
    np.testing.assert_array_equal(run(advantages.whiten, x, mask, center=False), [[0.0, 5.0]])


def test_reinforce_plus_plus_whitens_returns_to_go():
    rewards = np.array([[0.0, -1.0, 2.0], [1.0, 0.0, 9.0]], np.float32)
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    returns = np.array([1.0, 1.0, 2.0, 1.0, 0.0])
    expected = (returns - returns.mean()) / returns.std(ddof=1)
    result = np.asarray(run(advantages.reinforce_plus_plus, rewards, mask))
    np.testing.assert_allclose(result[mask > 0], expected, rtol=1e-5)
    assert result[1, 2] == 0.0
    returns = np.array([-0.5 + 0.5, -1.0 + 1.0, 2.0, 1.0, 0.0])
    expected = (returns - returns.mean()) / returns.std(ddof=1)
    discounted = run(advantages.reinforce_plus_plus, rewards, mask, discount=0.5)
    np.testing.assert_allclose(np.asarray(discounted)[mask > 0], expected, atol=1e-6)


def test_reinforce_plus_plus_without_a_discount_is_the_limit_of_the_loop():
    rng = np.random.default_rng(0)
    rewards, mask = rng.normal(size=(5, 9)), rng.integers(0, 2, size=(5, 9))
    rewards[mask == 0] = np.nan
    rewards = rewards.astype(np.float32)
    found = advantages.reinforce_plus_plus(rewards, mask, discount=1.0)
    looped = advantages.reinforce_plus_plus(rewards, mask, discount=jnp.float32(1.0))
    np.testing.assert_allclose(found, looped, atol=1e-6)


def test_reinforce_plus_plus_with_a_group_mean():
    rewards = np.array([[0.0, 3.0], [1.0, 7.0], [2.0, 2.0], [0.0, 0.0]], np.float32)
    mask = np.array([[1, 1], [1, 0], [1, 1], [0, 0]])  # totals 3, 1 | 4, no sample
    centred = np.array([1.0, 1.0, -1.0, 0.0, 0.0])
    expected = (centred - centred.mean()) / centred.std(ddof=1)
    result = run(advantages.reinforce_plus_plus, rewards, mask, group_size=2)
    np.testing.assert_allclose(np.asarray(result)[mask > 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(result)[mask == 0], 0.0)


def test_gradients_are_finite_where_there_is_no_spread():
    rewards = jnp.array([[1.0, 1.0, 1.0], [jnp.nan, jnp.nan, 2.0], [jnp.nan] * 3])
    for scale in SCALES:
        total = lambda r, s=scale: one_group_relative(r, scale=s)[:, 0].sum()  # noqa: E731
        assert np.all(np.isfinite(grad(total)(rewards)))
    assert np.all(np.isfinite(grad(lambda r: one_leave_one_out(r)[:, 0].sum())(rewards)))
    whitened = lambda r: advantages.whiten(r, jnp.isfinite(rewards))[:, 0].sum()  # noqa: E731
    for x in (rewards, jnp.ones((3, 3))):
        assert np.all(np.isfinite(grad(whitened)(x)))


def test_leading_axes_are_independent_groups():
    rewards = jax.random.normal(jax.random.key(0), (2, 3, 4))
    whole = run(one_group_relative, rewards, scale="group")
    flat = run(one_group_relative, rewards.reshape(6, 4), scale="group")
    np.testing.assert_allclose(whole.reshape(6, 4), flat, rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="scale is 'std', expected one of 'group', 'none'"):
        one_group_relative(ONE, scale="std")
    with pytest.raises(ValueError, match="ddof is 2"):
        one_group_relative(ONE, ddof=2)
    with pytest.raises(ValueError, match=r"valid has shape \[3\]"):
        one_group_relative(ONE, valid=jnp.ones(3))
    with pytest.raises(ValueError, match=r"rewards has shape \[\]"):
        one_leave_one_out(1.0)
    with pytest.raises(
        ValueError, match=r"greedy_rewards has shape \[4\], expected \[...\] = \[1\]"
    ):
        advantages.remax(ONE[None], ONE)
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        advantages.whiten(ONE, jnp.ones(3))
    square = jnp.ones((4, 4))
    with pytest.raises(ValueError, match="group_size is 3, expected a divisor of B = 4"):
        advantages.reinforce_plus_plus(square, square, group_size=3)
    with pytest.raises(ValueError, match="discount is 0.9"):
        advantages.reinforce_plus_plus(square, square, group_size=2, discount=0.9)
    grouped = functools.partial(advantages.reinforce_plus_plus, square, square, group_size=2)
    with pytest.raises(ValueError, match="discount is traced, expected the number 1 when group_s"):
        jax.jit(lambda discount: grouped(discount=discount))(0.5)


def test_success_rate_is_the_mean_of_the_valid_rewards():
    rewards = np.array([[1, 0, 0, 1], [1, np.nan, 0, 1], [np.nan] * 4], np.float32)
    np.testing.assert_allclose(run(advantages.success_rate, rewards), [0.5, 2 / 3, 0.0])
    valid = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
    found = run(lambda r, v: advantages.success_rate(r, valid=v), rewards, valid)
    np.testing.assert_allclose(found, [1 / 3, 0.0, 0.0])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_difficulty_weight_is_finite_with_its_gradient_at_the_ends(scale):
    rate = np.array([0.0, 0.5, 1.0], np.float32)
    total = lambda p: advantages.difficulty_weight(p, scale=scale).sum()  # noqa: E731
    middle = 0.5 if scale == "group" else 0.25
    np.testing.assert_allclose(
        run(advantages.difficulty_weight, rate, scale=scale), [0.0, middle, 0.0]
    )
    assert np.all(np.isfinite(grad(total)(rate)))


def test_above_worst_pushes_nobody_down():
    nan, inf = np.nan, np.inf
    rewards = jnp.array([[1.0, -2.0, 0.5], [3.0, nan, inf], [nan, nan, nan]])
    lifted = run(advantages.above_worst, rewards)
    np.testing.assert_array_equal(lifted, [[3.0, 0.0, 2.5], [0, 0, 0], [0, 0, 0]])
    chosen = run(lambda r, v: advantages.above_worst(r, valid=v), rewards, jnp.eye(3)[::-1] == 0)
    np.testing.assert_array_equal(chosen, [[3.0, 0.0, 0.0], [0, 0, 0], [0, 0, 0]])


def test_whitening_adds_its_epsilon_to_the_variance():
    x, mask = jnp.array([[1.0, 3.0, 5.0, 9.0]]), jnp.array([[1, 1, 1, 0]])
    found = advantages.whiten(x, mask, epsilon=5.0)
    np.testing.assert_allclose(found, [[-2 / 3, 0.0, 2 / 3, 0.0]], rtol=1e-5)


def test_a_row_with_an_unknown_reward_leaves_reinforce_plus_plus():
    rewards = jnp.array([[0.5, 1.0], [jnp.nan, 2.0], [0.0, 3.0], [jnp.nan, 1.0]])
    mask = jnp.array([[1, 1], [1, 1], [1, 1], [0, 1]])
    kept = np.array([0, 2, 3])
    for settings in ({}, {"group_size": 2}, {"group_size": 1}):
        found = advantages.reinforce_plus_plus(rewards, mask, **settings)
        np.testing.assert_array_equal(found[1], 0.0)
        assert np.all(np.isfinite(found))
    known = jnp.where(mask > 0, rewards, 0.0)
    alone = advantages.reinforce_plus_plus(known[kept], mask[kept])
    np.testing.assert_allclose(
        advantages.reinforce_plus_plus(rewards, mask)[kept], alone, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="group_size is 0"):
        advantages.reinforce_plus_plus(rewards, mask, group_size=0)


def test_remax_without_a_greedy_reward():
    found = advantages.remax(jnp.array([[1.0, 2.0], [1.0, jnp.nan]]), jnp.array([jnp.nan, 0.5]))
    np.testing.assert_array_equal(found, [[0.0, 0.0], [0.5, 0.0]])


def test_equal_advantages_stay_what_they_are_without_centring():
    x, mask = jnp.full((1, 3), 2.0), jnp.ones((1, 3))
    same = advantages.whiten(x, mask, center=False, epsilon=3.0)
    np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_rewards_whose_squares_float32_cannot_hold_have_a_deviation(scale):
    rewards = np.array([[0.0, 1.0, 3.0, 0.5], [2.0, 2.5, 0.25, 1.0]], np.float32)
    wanted = run(advantages.group_relative, rewards, scale=scale, epsilon=0.0)
    for size in (1e-30, 1e-20, 1e20, 1e30, 1e38):
        found = run(advantages.group_relative, rewards * size, scale=scale, epsilon=0.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_gradient_of_a_large_deviation():
    rewards = np.array([[0.0, 1.0, 3.0, 0.5]], np.float32)
    slope = grad(lambda r, size: advantages.group_relative(r * size, epsilon=0.0)[0, 1])
    for size in (1e-20, 1e20, 1e30):
        np.testing.assert_allclose(slope(rewards, size), slope(rewards, 1.0), rtol=1e-4)


def test_whitening_of_large_figures():
    x, mask = np.array([[0.0, 1.0, 3.0, 9.0]], np.float32), np.array([[1, 1, 1, 0]])
    wanted = run(advantages.whiten, x, mask)
    for size in (1e20, 1e30):
        np.testing.assert_allclose(run(advantages.whiten, x * size, mask), wanted, rtol=1e-5)


def test_a_mean_of_large_rewards_is_not_infinite():
    rewards = np.array([[3e38, 3e38, 1e38, 0.0]], np.float32)
    np.testing.assert_allclose(
        run(advantages.group_relative, rewards, scale="none"),
        [[1.25e38, 1.25e38, -0.75e38, -1.75e38]],
        rtol=1e-5,
    )
