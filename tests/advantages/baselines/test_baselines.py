"""Baselines: hand-computed advantages, float64 references, exact expectations, edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st
from one_group import one_group

from polgrad import advantages, running

# Arrays of rank 1 are one group.
one_opo = one_group(advantages.opo)
one_pass_at_k = one_group(advantages.pass_at_k)

CARD = np.array([1.0, 0.0, 0.0, 0.0], np.float32)
# A group with one reward missing, one with two equal best, one with a single valid sample.
GROUPS = np.array([[1.0, np.nan, 0.0, 3.0], [2.0, 2.0, 1.0, 0.0], [5.0, np.inf, -np.inf, np.nan]])
VALID = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]], bool)


def drawn(seed, shape=(3, 4)):
    """Rewards of few values, with gaps, and what is valid of them."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 4, shape).astype(np.float64)
    return rewards, rng.random(shape) < 0.8


def valid_groups(rewards, valid):
    for g in np.ndindex(rewards.shape[:-1]):
        yield g, np.flatnonzero(valid[g] & np.isfinite(rewards[g]))


# --- OPO ---------------------------------------------------------------------------------------


def test_opo_by_hand():
    advantage = run(one_opo, CARD, np.array([2, 4, 4, 6]))
    np.testing.assert_allclose(advantage, [0.875, -0.125, -0.125, -0.125], rtol=1e-6)


def test_opo_of_single_tokens_and_of_none():
    rewards = np.array([[1.0, 3.0, 5.0]] * 3, np.float32)
    lengths = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]])
    advantage = run(one_opo, rewards, lengths)
    np.testing.assert_allclose(advantage, [[-2, 0, 2], [-2, 0, 2], [0, 0, 0]], atol=1e-6)


@given(seed=st.integers(0, 10_000))
def test_opo_follows_the_formula(seed):
    rewards, valid = drawn(seed)
    lengths = np.random.default_rng(seed + 1).integers(0, 6, (3, 4)).astype(np.float64)
    expected = np.zeros((3, 4))
    for g, on in valid_groups(rewards, valid):
        n = lengths[g][on]
        if n.sum():
            expected[g][on] = rewards[g][on] - (n @ rewards[g][on]) / n.sum()
    with jax.enable_x64(True):
        found = opo(jnp.asarray(rewards), jnp.asarray(lengths), jnp.asarray(valid))
    np.testing.assert_allclose(found, expected, atol=1e-12)


opo = jax.jit(lambda r, n, v: one_opo(r, n, valid=v))


def test_opo_with_equal_lengths_is_the_group_mean_and_shifts_cancel():
    rewards = np.array([[0.1, 0.7, 0.3, 0.3]], np.float32)
    ours = run(one_opo, rewards, np.full((1, 4), 3))
    np.testing.assert_allclose(
        ours, run(advantages.group_relative, rewards, scale="none"), atol=1e-6
    )
    uneven = np.array([[1, 2, 3, 9]])
    moved = run(one_opo, rewards + 4, uneven)
    np.testing.assert_allclose(moved, run(one_opo, rewards, uneven), atol=1e-5)
    # Exactly 0, although 0.1 has no exact form.
    np.testing.assert_array_equal(run(one_opo, np.full((1, 4), 0.1, np.float32), uneven), 0.0)


# --- GPG ---------------------------------------------------------------------------------------


def test_gpg_by_hand():
    rewards = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    # One group of three has a spread: alpha = 3.
    np.testing.assert_allclose(
        run(advantages.gpg, rewards), [[1.5, -1.5], [0, 0], [0, 0]], rtol=1e-6
    )
    halved = run(advantages.gpg, rewards, scale=2.0)
    np.testing.assert_allclose(halved[0], [0.75, -0.75], rtol=1e-6)
    # Where the zero of the rewards is does not matter.
    np.testing.assert_allclose(run(advantages.gpg, rewards + 1), run(advantages.gpg, rewards))


def test_gpg_counts_valid_samples():
    rewards = np.array([[1.0, 0.0, np.nan], [1.0, 1.0, 9.0]], np.float32)
    valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = jax.jit(lambda r, v: advantages.gpg(r, valid=v))(rewards, valid)
    # Four valid samples, two of them in a group with a spread.
    np.testing.assert_allclose(found, [[1.0, -1.0, 0.0], [0, 0, 0]], rtol=1e-6)
    nothing = np.zeros_like(valid)
    np.testing.assert_array_equal(jax.jit(advantages.gpg)(np.ones((2, 3))), 0.0)
    np.testing.assert_array_equal(
        jax.jit(lambda r, v: advantages.gpg(r, valid=v))(rewards, nothing), 0.0
    )


# --- the best of k -----------------------------------------------------------------------------


def test_pass_at_k_by_hand():
    rewards = np.array([1.0, 4.0, 2.0, 1.0], np.float32)
    plain = run(one_pass_at_k, rewards, scale="none")
    np.testing.assert_allclose(plain, [0, 2, 0, 0], rtol=1e-6)
    scaled = run(one_pass_at_k, rewards)
    np.testing.assert_allclose(scaled, [0, 2 / (np.std(rewards, ddof=1) + 1e-6), 0, 0], rtol=1e-6)
    wide = run(one_pass_at_k, rewards, epsilon=1.0)
    np.testing.assert_allclose(wide[1], 2 / (np.std(rewards, ddof=1) + 1), rtol=1e-6)
    # The default is 1e-6: rewards a thousandth of it apart show it.
    tiny = run(one_pass_at_k, np.array([0.0, 1e-6], np.float32))
    np.testing.assert_allclose(tiny[1], 1 / (np.sqrt(0.5) + 1), rtol=1e-5)


def test_pass_at_k_with_ties_and_gaps():
    found = run(one_pass_at_k, GROUPS, scale="none")
    np.testing.assert_allclose(found, [[0, 0, 0, 2], [0] * 4, [0] * 4], rtol=1e-6)
    masked = jax.jit(lambda r, v: one_pass_at_k(r, scale="none", valid=v))
    found = masked(np.array([[3.0, 9.0, 1.0, 2.0]]), np.array([[1, 0, 1, 1]], bool))
    np.testing.assert_allclose(found, [[1, 0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_reinforce_on_pass_at_k_follows_the_expected_maximum(k):
    rewards, logits = np.array([0.2, 1.0, -0.5, 0.6]), jnp.array([0.5, -0.3, 0.1, 0.9])
    groups = np.array(list(itertools.product(range(4), repeat=k)))
    weight = run(one_pass_at_k, rewards[groups], scale="none")

    def surrogate(z):
        logp = jax.nn.log_softmax(z)[groups]
        chance = jax.lax.stop_gradient(jnp.exp(logp.sum(-1)))
        return chance @ (weight * logp).sum(-1)

    def best(z):
        return jnp.exp(jax.nn.log_softmax(z)[groups].sum(-1)) @ rewards[groups].max(-1)

    np.testing.assert_allclose(grad(surrogate)(logits), grad(best)(logits), atol=1e-6)


# --- several rewards ---------------------------------------------------------------------------


def gdpo_reference(rewards, weights, valid, epsilon=1e-4):
    on = np.isfinite(rewards) & valid
    total = np.zeros(rewards.shape[1:])
    for k in range(len(rewards)):
        for g, index in valid_groups(rewards[k], on[k]):
            if index.size > 1:
                r = rewards[k][g][index]
                total[g][index] += weights[k] * (r - r.mean()) / (r.std(ddof=1) + epsilon)
    some = on.any(0)
    if some.sum() < 2:
        return np.zeros_like(total)
    spread = total[some].std(ddof=1) + epsilon
    return np.where(some, (total - total[some].mean()) / spread, 0.0)


gdpo = jax.jit(lambda r, w, v: advantages.gdpo(r, w, valid=v))


@given(seed=st.integers(0, 10_000))
def test_gdpo_follows_the_formula(seed):
    rewards, _ = drawn(seed, (2, 3, 4))
    rng = np.random.default_rng(seed)
    rewards[1] *= 100.0
    rewards[rng.random(rewards.shape) < 0.2] = np.nan
    weights, valid = np.array([0.7, 0.3]), rng.random((3, 4)) < 0.8
    with jax.enable_x64(True):
        found = gdpo(jnp.asarray(rewards), jnp.asarray(weights), jnp.asarray(valid))
    np.testing.assert_allclose(found, gdpo_reference(rewards, weights, valid), atol=1e-9)


def test_gdpo_tells_mixtures_apart_that_share_a_sum():
    rewards = np.array([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]], np.float32)
    found = run(advantages.gdpo, rewards, np.array([1.0, 2.0], np.float32))[0]
    assert found[0] < 0 < found[1]
    np.testing.assert_allclose(found.sum(), 0.0, atol=1e-5)
    coarse = run(advantages.gdpo, rewards[:1], np.ones(1, np.float32), epsilon=1.0)
    each = CARD - 0.25
    each = each / (0.5 + 1)
    np.testing.assert_allclose(coarse[0], each / (each.std(ddof=1) + 1), rtol=1e-5)


# --- REINFORCE's own ----------------------------------------------------------------------------


def test_batch_baseline_by_hand_and_masked():
    rewards = np.array([[3.0, 0.0], [np.nan, 6.0]], np.float32)
    found = run(advantages.batch_baseline, rewards)
    np.testing.assert_allclose(found, [[0.0, -3.0], [0.0, 3.0]], atol=1e-6)
    valid = np.array([[1, 1], [1, 0]], bool)
    found = jax.jit(lambda r, v: advantages.batch_baseline(r, valid=v))(rewards, valid)
    np.testing.assert_allclose(found, [[1.5, -1.5], [0.0, 0.0]], atol=1e-6)
    assert run(advantages.batch_baseline, np.float32(3.0)) == 0.0


def test_the_moving_average_has_not_seen_its_samples():
    step = jax.jit(lambda s, r: advantages.moving_average_baseline(s, r, decay=0.75))
    state = running.exponential().init()
    state, first = step(state, jnp.array([4.0, 2.0]))
    np.testing.assert_allclose(first, [4.0, 2.0])
    # The weight makes the first mean count in full.
    state, second = step(state, jnp.array([7.0, 7.0]))
    np.testing.assert_allclose(second, [4.0, 4.0], rtol=1e-6)
    _, third = step(state, jnp.array([0.0, 1.0]))
    mean = (0.75 * 3.0 + 7.0) / 1.75
    np.testing.assert_allclose(third, [-mean, 1 - mean], rtol=1e-6)


def test_the_moving_average_forgets_at_its_default_rate_and_skips_gaps():
    state = running.exponential().init()
    for mean in (2.0, 1.0):
        state, _ = run(advantages.moving_average_baseline, state, jnp.array([mean, jnp.nan]))
    baseline = -run(advantages.moving_average_baseline, state, jnp.zeros(2))[1]
    np.testing.assert_allclose(baseline, (0.95 * 2 + 1) / 1.95, rtol=1e-6)
    masked = jax.jit(lambda s, r, v: advantages.moving_average_baseline(s, r, valid=v))
    same, nothing = masked(state, jnp.ones(2), jnp.zeros(2, bool))
    np.testing.assert_array_equal(same, state)
    np.testing.assert_array_equal(nothing, 0.0)
    partly, advantage = masked(state, jnp.array([9.0, 1.0]), jnp.array([False, True]))
    np.testing.assert_allclose(partly.total, 0.95 * state.total + 0.05 * 1.0, rtol=1e-6)
    np.testing.assert_allclose(advantage, [0.0, 1.0 - baseline[0]], rtol=1e-5)


def test_the_moving_average_carries_no_gradient():
    state = running.ExponentialState(jnp.asarray(1.0), jnp.asarray(0.5))

    def total(rewards):
        following, advantage = advantages.moving_average_baseline(state, rewards)
        return following.total + following.weight + advantage.sum()

    np.testing.assert_array_equal(grad(total)(jnp.ones(3)), 0.0)


# --- edges and mistakes ---------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["opo", "gpg", "pass_at_k", "gdpo", "batch_baseline"])
def test_missing_rewards_have_no_advantage_and_nothing_is_nan(name):
    call = {
        "opo": lambda r: one_opo(r, jnp.ones(r.shape)),
        "gdpo": lambda r: advantages.gdpo(r[None], jnp.ones(1)),
    }.get(name, getattr(advantages, name))
    rewards = jnp.asarray(GROUPS, jnp.float32)
    found = jax.jit(call)(rewards)
    assert found.dtype == jnp.float32
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[~np.isfinite(GROUPS)], 0.0)
    if name not in ("batch_baseline", "gdpo"):
        np.testing.assert_array_equal(found[2], 0.0)
    slope = grad(lambda r: (call(r) ** 2).sum())(rewards)
    assert np.all(np.isfinite(slope))
    equal = jax.jit(call)(jnp.full((2, 4), 0.1))
    np.testing.assert_array_equal(equal, 0.0)


def test_bad_arguments_are_named():
    rewards, other = jnp.ones((2, 4)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match="lengths"):
        one_opo(rewards, jnp.ones((2, 3)))
    for function in (advantages.gpg, one_pass_at_k, advantages.batch_baseline):
        with pytest.raises(ValueError, match="valid"):
            function(rewards, valid=other)
    with pytest.raises(ValueError, match="valid"):
        one_opo(rewards, rewards, valid=other)
    for scale in (0.0, -1.0):
        with pytest.raises(ValueError, match="scale"):
            advantages.gpg(rewards, scale=scale)
    with pytest.raises(ValueError, match="scale"):
        one_pass_at_k(rewards, scale="none at all")
    with pytest.raises(ValueError, match="rewards has shape"):
        advantages.gdpo(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="weights"):
        advantages.gdpo(rewards[:, None], jnp.ones(3))
    with pytest.raises(ValueError, match="valid"):
        advantages.gdpo(rewards[:, None], jnp.ones(2), valid=other)
    state = running.exponential().init()
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="decay"):
            advantages.moving_average_baseline(state, rewards, decay=decay)
    advantages.moving_average_baseline(state, rewards, decay=0.0)
    with pytest.raises(ValueError, match="valid"):
        advantages.moving_average_baseline(state, rewards, valid=other)


def test_opo_of_one_token_in_all():
    found = one_opo(jnp.array([1.0, 0.0]), jnp.array([1, 0]))
    np.testing.assert_allclose(found, [0.0, -1.0], atol=1e-6)
