"""P3O: exact gradients by enumeration, hand-computed clips, invariances, reductions, edges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st
from one_group import one_group

from polgrad import advantages, losses, tabular

# Arrays of rank 1 are one group.
one_p3o_v1 = one_group(losses.p3o_v1)
one_p3o_v2 = one_group(losses.p3o_v2)
one_pairwise_policy_gradient = one_group(losses.pairwise_policy_gradient)
one_leave_one_out = one_group(advantages.leave_one_out)

RNG = np.random.default_rng(0)
LOGITS, OLDER, REWARDS = RNG.normal(size=(3, 4))
UNCLIPPED = {
    "pairwise": one_pairwise_policy_gradient,
    "v1": lambda *x, **k: one_p3o_v1(*x, clip=np.inf, **k),
    "v2": lambda *x, **k: one_p3o_v2(*x, clip=np.inf, **k),
}
CLIPPED = {"pairwise": one_pairwise_policy_gradient, "v1": one_p3o_v1, "v2": one_p3o_v2}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def expected(function, size, logits, older, rewards):
    """The loss averaged over all groups of independent draws of the older policy."""
    groups = np.array(list(itertools.product(range(len(rewards)), repeat=size)))
    before = jax.nn.log_softmax(jnp.asarray(older))[groups]
    chance = jnp.exp(before.sum(-1))
    logp = jax.nn.log_softmax(logits)[groups]
    return chance @ function(logp, before, jnp.asarray(rewards)[groups]).mean(-1)


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNCLIPPED)
def test_without_clips_the_gradient_is_exact_off_policy(name, x64):
    slope = grad(lambda z: expected(UNCLIPPED[name], 2, z, OLDER, REWARDS))(jnp.asarray(LOGITS))
    exact = tabular.policy_gradient(jnp.asarray(LOGITS), jnp.asarray(REWARDS))
    np.testing.assert_allclose(slope, -exact, atol=1e-12)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("size", [2, 3])
def test_on_policy_it_is_the_policy_gradient(name, size, x64):
    policy, rewards = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, -1.0])
    at = jnp.log(jnp.asarray(policy))
    slope = grad(lambda z: expected(CLIPPED[name], size, z, at, rewards))(at)
    np.testing.assert_allclose(slope, [-0.35, 0.09, 0.26], atol=1e-12)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("size", [2, 4])
def test_on_policy_every_group_has_the_gradient_of_leave_one_out(name, size, x64):
    logp = jnp.asarray(RNG.normal(-9, 1, (3, size)))
    rewards = jnp.asarray(RNG.normal(size=(3, size)))
    slope = grad(lambda x: CLIPPED[name](x, logp, rewards).sum())(logp)
    np.testing.assert_allclose(slope, -one_leave_one_out(rewards), atol=1e-12)


# --- clips -------------------------------------------------------------------------------------


@functools.cache
def of_pair(function, settings):
    return jax.jit(jax.value_and_grad(lambda *x: function(*x, **dict(settings)).mean()))


def coefficients(function, ratios, rewards, before=(0.0, 0.0), **settings):
    """Loss of a pair and what multiplies the two score functions in -grad."""
    before = jnp.asarray(before)
    logp = before + jnp.log(jnp.asarray(ratios))
    value, slope = of_pair(function, tuple(settings.items()))(logp, before, jnp.asarray(rewards))
    return value, -slope


def test_clips_by_hand(x64):
    for function in (one_p3o_v1, one_p3o_v2):
        _, slope = coefficients(function, (1.3, 0.7), (2.0, -1.0))
        np.testing.assert_array_equal(slope, 0.0)
        value, slope = coefficients(function, (1.1, 0.95), (2.0, -1.0))
        np.testing.assert_allclose(slope, [1.5675, -1.5675], rtol=1e-12)
    np.testing.assert_allclose(value, -0.229801, atol=1e-6)
    value, _ = coefficients(one_p3o_v1, (1.1, 0.95), (2.0, -1.0))
    np.testing.assert_allclose(value, 0.5 * 3 * (1.1 * 0.95 - 0.95 * 1.1), atol=1e-12)
    value, _ = coefficients(one_p3o_v1, (1.3, 0.95), (2.0, -1.0))
    # -1/2 (0.95 * 3 * 1.2 - 1.2 * 3 * 0.95): winner clipped, its ratio as a weight too.
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    value, _ = coefficients(one_p3o_v1, (0.7, 0.95), (2.0, -1.0))
    np.testing.assert_allclose(value, -0.5 * 3 * (0.95 * 0.7 - 0.8 * 0.95), rtol=1e-12)


def test_the_harmful_side_is_not_clipped(x64):
    """The winner has become rarer, the loser likelier: the way back is open."""
    _, slope = coefficients(one_p3o_v1, (0.6, 1.5), (1.0, 0.0))
    np.testing.assert_allclose(slope, [0.5 * 1.2 * 0.6, -0.5 * 0.8 * 1.5], rtol=1e-12)
    _, slope = coefficients(one_p3o_v2, (0.6, 1.5), (1.0, 0.0))
    np.testing.assert_allclose(slope, [0.5 * 0.9, -0.5 * 0.9], rtol=1e-12)
    _, slope = coefficients(one_p3o_v2, (0.5, 1.5), (1.0, 0.0))
    np.testing.assert_allclose(slope, [0.5 * 0.8, -0.5 * 0.8], rtol=1e-12)


def test_v2_moves_from_where_the_behaviour_was(x64):
    before = (-3.0, -1.0)
    value, slope = coefficients(one_p3o_v2, (1.1, 1.0), (1.0, 0.0), before)
    np.testing.assert_allclose(value, -0.5 * 1.1 * (-2.0 + np.log(1.1)), rtol=1e-12)
    np.testing.assert_allclose(slope, [0.55, -0.55], rtol=1e-12)
    value, slope = coefficients(one_p3o_v2, (1.15, 0.9), (1.0, 0.0), before)
    np.testing.assert_allclose(value, -0.5 * 1.035 * (-2.0 + 0.2), rtol=1e-12)
    np.testing.assert_array_equal(slope, 0.0)
    # Another bound for the logits than for the product, on both sides.
    wide = {"clip": 0.01, "clip_logits": 0.5}
    value, slope = coefficients(one_p3o_v2, (1.15, 0.9), (1.0, 0.0), before, **wide)
    np.testing.assert_allclose(slope, [0.5 * 1.01, -0.5 * 1.01], rtol=1e-12)
    _, slope = coefficients(one_p3o_v2, (0.7, 1.2), (0.0, 1.0), before, **wide)
    np.testing.assert_array_equal(slope, 0.0)
    value, _ = coefficients(one_p3o_v2, (0.7, 1.2), (0.0, 1.0), before, **wide)
    np.testing.assert_allclose(value, 0.5 * 0.99 * (-2.0 - 0.5), rtol=1e-12)


@pytest.mark.parametrize("function", [one_p3o_v1, one_p3o_v2])
def test_at_an_exact_edge_the_whole_gradient_is_kept(function, x64):
    for rewards in ((1.0, 0.0), (0.0, 1.0)):
        _, slope = coefficients(function, (1.0, 1.0), rewards, clip=0.0)
        sign = rewards[0] - rewards[1]
        np.testing.assert_array_equal(slope, [0.5 * sign, -0.5 * sign])


def test_settings_of_the_separate_clip(x64):
    _, slope = coefficients(one_p3o_v1, (1.3, 0.7), (2.0, -1.0), clip=0.35)
    np.testing.assert_allclose(slope, [1.5 * 0.91, -1.5 * 0.91], rtol=1e-12)


# --- against the formulas --------------------------------------------------------------------


def reference(name, logp, before, rewards, valid):
    """Losses in numpy, pair by pair, with every clip at 0.2."""
    found = np.zeros(logp.shape)
    clip = lambda x, middle=1.0: np.clip(x, middle - 0.2, middle + 0.2)  # noqa: E731
    for b in range(len(logp)):
        on = np.flatnonzero(valid[b] & np.isfinite(rewards[b]))
        for i in on:
            for j in on[on != i]:
                a = rewards[b, i] - rewards[b, j]
                r = np.exp(logp[b] - before[b])
                q, q_before = logp[b, i] - logp[b, j], before[b, i] - before[b, j]
                if name == "pairwise":
                    term = -0.5 * r[i] * r[j] * a * q
                elif name == "v1":
                    term = -clip(r[j]) * min(a * r[i], a * clip(r[i]))
                else:
                    term = -0.5 * clip(r[i] * r[j]) * min(a * q, a * clip(q, q_before))
                found[b, i] += term / (on.size - 1)
    return found


@pytest.mark.parametrize("name", CLIPPED)
@given(seed=st.integers(0, 10_000))
def test_losses_follow_the_formula(name, seed):
    rng = np.random.default_rng(seed)
    before, rewards = rng.normal(size=(2, 2, 4))
    rewards[rng.random((2, 4)) < 0.2] = np.nan
    arguments = before + rng.normal(0, 0.3, (2, 4)), before, rewards
    valid = rng.random((2, 4)) < 0.8
    with jax.enable_x64(True):
        found = COMPILED[name](*(jnp.asarray(x) for x in arguments), jnp.asarray(valid))
    np.testing.assert_allclose(found, reference(name, *arguments, valid), atol=1e-12)


COMPILED = {
    name: jax.jit(lambda x, b, r, v, f=f: f(x, b, r, valid=v)) for name, f in CLIPPED.items()
}


# --- invariances, edges, mistakes ------------------------------------------------------------


@pytest.mark.parametrize("name", CLIPPED)
def test_a_shift_of_a_prompts_rewards_and_the_order_do_not_matter(name, x64):
    logp, before = RNG.normal(size=(2, 3, 2))
    logp = before + 0.2 * logp
    rewards = RNG.normal(size=(3, 2))
    slope = grad(lambda x, b, r: CLIPPED[name](x, b, r).sum())
    plain = run(CLIPPED[name], logp, before, rewards), slope(logp, before, rewards)
    shifted = rewards + np.array([[5.0], [-3.0], [100.0]])
    moved = run(CLIPPED[name], logp, before, shifted), slope(logp, before, shifted)
    np.testing.assert_allclose(moved, plain, atol=1e-11)
    swapped = run(CLIPPED[name], *(x[:, ::-1] for x in (logp, before, rewards)))
    np.testing.assert_allclose(swapped[:, ::-1], plain[0], atol=1e-12)
    tripled = slope(logp, before, 3 * rewards)
    np.testing.assert_allclose(tripled, 3 * plain[1], atol=1e-12)
    equal = np.broadcast_to(rewards[:, :1], (3, 2))
    np.testing.assert_array_equal(run(CLIPPED[name], logp, before, equal), 0.0)


@pytest.mark.parametrize("name", CLIPPED)
def test_only_the_current_policy_carries_a_gradient(name):
    logp, before, rewards = RNG.normal(size=(3, 2, 3))
    total = lambda x, b, r: (CLIPPED[name](x, b, r) * jnp.arange(1.0, 4.0)).sum()  # noqa: E731
    to_logp, *stopped = grad(total, argnums=(0, 1, 2))(before + 0.05 * logp, before, rewards)
    assert np.any(to_logp != 0)
    for gradient in stopped:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", CLIPPED)
def test_edges_are_finite(name):
    inf = np.inf
    logp = np.array([[-inf, -1.0, -2.0], [-inf, -inf, -1.0], [-1.0, -900.0, -1.0], [0, 0, np.nan]])
    before = np.array([[-1.0, -inf, -2.0], [-inf, -1.0, -1.0], [-1.0, -1.0, -1.0], [0, 0, inf]])
    rewards = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, np.nan, inf]])
    loss = jax.jit(CLIPPED[name])(logp, before, rewards)
    assert np.all(np.isfinite(loss))
    np.testing.assert_array_equal(loss[3], 0.0)
    slope = grad(lambda x: CLIPPED[name](x, before, rewards).sum())(logp)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[[0, 1, 1, 3], [0, 0, 1, 0]], 0.0)


def test_bad_arguments_are_named():
    x = jnp.zeros((2, 3))
    for function in CLIPPED.values():
        with pytest.raises(ValueError, match="behavior_logp"):
            function(x, x[:, :2], x)
        with pytest.raises(ValueError, match="rewards"):
            function(x, x, x[:1])
        with pytest.raises(ValueError, match="valid"):
            function(x, x, x, valid=x[:1])
        with pytest.raises(ValueError, match=r"logp has shape \[\]"):
            function(0.0, 0.0, 0.0)
    for function in (one_p3o_v1, one_p3o_v2):
        with pytest.raises(ValueError, match="clip is"):
            function(x, x, x, clip=-0.1)
    with pytest.raises(ValueError, match="clip_logits is"):
        one_p3o_v2(x, x, x, clip_logits=-0.1)
    run(one_p3o_v2, x, x, x, clip_logits=0.0)
