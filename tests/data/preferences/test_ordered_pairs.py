"""All pairs of the samples of a prompt."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled import grad, run, value_and_grad
from one_group import one_group

from polgrad import advantages, data, losses

# Arrays of rank 1 are one group.
best_of_n = one_group(losses.best_of_n)
reward_weighted = one_group(losses.reward_weighted)
ordered_pairs = one_group(data.preferences.ordered_pairs)
one_group_relative = one_group(advantages.group_relative)
one_above_worst = one_group(advantages.above_worst)

INF, NAN = np.inf, np.nan
LOGP = jnp.array([[-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -4.0, -8.0]])


def test_pairs_by_hand():
    logratio, rewards = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, 0.7])
    pairs = run(ordered_pairs, logratio, rewards)
    np.testing.assert_array_equal(pairs.chosen_logratio, [1.0, 3.0, 3.0])
    np.testing.assert_array_equal(pairs.rejected_logratio, [2.0, 1.0, 2.0])
    np.testing.assert_array_equal(pairs.valid, [1.0, 1.0, 1.0])
    gaps = run(ordered_pairs, logratio, jnp.array([0.5, 0.0, 0.75]), threshold=0.25)
    np.testing.assert_array_equal(gaps.valid, [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(gaps.chosen_logratio, [1.0, 0.0, 3.0])
    assert run(ordered_pairs, logratio[:2], rewards[:2]).valid.shape == (1,)
    # Equal rewards make no pair.
    tied = run(ordered_pairs, logratio, jnp.ones(3))
    np.testing.assert_array_equal(tied, np.zeros((3, 3)))


def dpo_on_pairs(logratio, rewards):
    pairs = ordered_pairs(logratio, rewards)
    chosen, rejected = (x.reshape(-1) for x in pairs[:2])
    losses_of_pairs = losses.dpo(chosen, rejected, beta=0.3).reshape(pairs.valid.shape)
    return jnp.sum(losses_of_pairs * pairs.valid)


def dpo_on_lists(logratio, rewards):
    return jnp.sum(losses.pairwise_logistic(0.3 * logratio, rewards))


pairs_and_slopes, lists_and_slopes = value_and_grad(dpo_on_pairs), value_and_grad(dpo_on_lists)


def test_pairs_carry_the_gradient_of_the_log_ratios_alone():
    total = lambda x, r: (ordered_pairs(x, r)[0] * jnp.arange(1.0, 7.0)).sum()  # noqa: E731
    slope, to_rewards = grad(total, argnums=(0, 1))(LOGP[0], jnp.array([0.0, 3.0, 1.0, 3.0]))
    # Pairs 01, 02, 03, 12, 13 (equal), 23: the better ones are 1, 2, 3, 1, none, 3.
    np.testing.assert_array_equal(slope, [0.0, 1.0 + 4.0, 2.0, 3.0 + 6.0])
    np.testing.assert_array_equal(to_rewards, 0.0)


def test_equal_rewards_teach_nothing():
    rewards = jnp.full((1, 4), 0.3)
    pairs = run(ordered_pairs, LOGP[:1], rewards, threshold=0.2)
    np.testing.assert_array_equal(pairs.valid, 0.0)
    np.testing.assert_array_equal(run(one_group_relative, rewards), 0.0)
    np.testing.assert_array_equal(run(one_above_worst, rewards), 0.0)


def test_low_precision_is_accumulated_in_float32():
    low = LOGP.astype(jnp.bfloat16)
    for function in (best_of_n, reward_weighted, ordered_pairs):
        for leaf in jax.tree.leaves(jax.eval_shape(function, low, low)):
            assert leaf.dtype == jnp.float32
