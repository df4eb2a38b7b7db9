import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import advantages


def test_overlong_penalty_hand_numbers():
    lengths = jnp.array([80, 81, 90, 100, 101, 500])
    penalty = run(advantages.overlong_penalty, lengths, max_length=100, buffer=20)
    np.testing.assert_allclose(penalty, [0.0, -0.05, -0.5, -1.0, -1.0, -1.0], rtol=1e-6)


def test_dynamic_sampling_keeps_the_groups_that_vary():
    nan, inf = np.nan, np.inf
    metric = jnp.array(
        [[1, 0, 0], [1, 1, 1], [0, 0, 0], [1, nan, nan], [1, nan, 1], [nan, 0, 1], [1, inf, 1]]
    )
    expected = [True, False, False, False, False, True, False]
    np.testing.assert_array_equal(run(advantages.dynamic_sampling_filter, metric), expected)


def test_dynamic_sampling_reads_valid_samples_only():
    metric = jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    valid = jnp.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    keep = run(lambda m, v: advantages.dynamic_sampling_filter(m, valid=v), metric, valid)
    np.testing.assert_array_equal(keep, [False, True, False])


def test_the_groups_that_go_are_those_without_advantage():
    metric = jnp.array([[1.0, 0.0, 0.0], [0.1, 0.1, 0.1], [100.1, 100.1, 100.1]])
    keep = run(advantages.dynamic_sampling_filter, metric)
    some = jnp.any(run(advantages.group_relative, metric) != 0, axis=-1)
    np.testing.assert_array_equal(keep, some)


def test_regularized_rewards_have_the_regularised_objective_as_mean():
    logp, reference = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    rewards = jnp.array([1.0, -1.0, 2.0])
    priced = run(advantages.regularized_rewards, rewards, logp - reference, beta=0.5)
    np.testing.assert_allclose(priced[0], 1.0 - 0.5 * np.log(2.5), rtol=1e-6)
    policy = np.exp(logp)
    objective = policy @ rewards - 0.5 * policy @ (logp - reference)
    np.testing.assert_allclose(policy @ priced, objective, rtol=1e-6)
    inf = jnp.inf
    edges = run(
        advantages.regularized_rewards, jnp.zeros(3), jnp.array([-inf, inf, jnp.nan]), beta=0.5
    )
    np.testing.assert_array_equal(edges, [10.0, -10.0, 0.0])
    slope = jax.grad(lambda x: advantages.regularized_rewards(rewards, x, beta=0.5).sum())(logp)
    np.testing.assert_array_equal(slope, 0.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="buffer is 0"):
        advantages.overlong_penalty(jnp.ones(2), max_length=10, buffer=0)
    with pytest.raises(ValueError, match="buffer is 11, expected at most max_length = 10"):
        advantages.overlong_penalty(jnp.ones(2), max_length=10, buffer=11)
    with pytest.raises(ValueError, match="max_length is 0.5, expected a number of at least 1$"):
        advantages.overlong_penalty(jnp.ones(2), max_length=0.5, buffer=1)
    with pytest.raises(ValueError, match=r"valid has shape \[3\]"):
        advantages.dynamic_sampling_filter(jnp.ones((1, 2)), valid=jnp.ones(3))
    with pytest.raises(ValueError, match=r"metric has shape \[\]"):
        advantages.dynamic_sampling_filter(1.0)
    with pytest.raises(ValueError, match="beta is -1"):
        advantages.regularized_rewards(jnp.zeros(2), jnp.zeros(2), beta=-1.0)
    with pytest.raises(ValueError, match="logratio has shape"):
        advantages.regularized_rewards(jnp.zeros(2), jnp.zeros(1), beta=1.0)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
def test_overlong_filter_masks_what_did_not_stop(dtype):
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]]).astype(dtype)
    kept = run(advantages.overlong_filter, mask, np.array([True, False, True]))
    assert kept.dtype == bool
    np.testing.assert_array_equal(kept, mask * np.array([[1], [0], [1]]))


def test_overlong_filter_names_bad_shapes():
    with pytest.raises(ValueError, match="mask"):
        advantages.overlong_filter(np.ones(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="stopped"):
        advantages.overlong_filter(np.ones((3, 2)), np.ones(2, bool))


def test_structured_reward_by_hand():
    # well-formed, parsed, correct: right, wrong, nothing to read; then the same ill-formed.
    table = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]], bool)
    rewards = run(advantages.structured_reward, *table.T)
    np.testing.assert_array_equal(rewards, [3.0, -0.5, -1.0, 1.0, -2.5, -3.0])
    with pytest.raises(ValueError, match="correct"):
        advantages.structured_reward(table[:, 0], table[:, 1], table[:2, 2])


def test_the_penalty_of_short_completions_is_never_a_reward():
    lengths = jnp.array([1, 9, 10, 11])
    penalty = run(advantages.overlong_penalty, lengths, max_length=10, buffer=1)
    np.testing.assert_array_equal(penalty, [0.0, 0.0, -1.0, -1.0])
