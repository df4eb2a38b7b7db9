"""DNO: soft policy iteration as its minimiser, DPO as its hard form, values by formula, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses, tabular

PREVIOUS = np.array([0.6, 0.3, 0.1])
INVERSE_STEP = 0.5
FIRST, SECOND = (x.ravel() for x in np.indices((3, 3)))
numbers = st.floats(-10.0, 10.0, width=32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def population(logits, sampler, rewards):
    """Mean loss over all pairs of a sampler."""
    ratio = jax.nn.log_softmax(logits) - jnp.log(PREVIOUS)
    pairs = jnp.outer(sampler, sampler).ravel()
    return pairs @ losses.dno(
        ratio[FIRST], ratio[SECOND], rewards[FIRST] - rewards[SECOND], inverse_step=INVERSE_STEP
    )


@pytest.mark.parametrize("sampler", [np.full(3, 1 / 3), PREVIOUS], ids=["uniform", "previous"])
def test_the_minimiser_is_soft_policy_iteration(sampler, x64):
    rewards = tabular.win_rates(tabular.rps_game(), PREVIOUS)
    np.testing.assert_allclose(rewards, [0.6, 0.25, 0.65], atol=1e-12)
    weights = PREVIOUS * np.exp(np.asarray(rewards) / INVERSE_STEP)
    target = weights / weights.sum()
    np.testing.assert_allclose(target, (0.698086, 0.173330, 0.128584), atol=1e-6)
    wins = tabular.policy_win_rate(tabular.rps_game(), target, PREVIOUS)
    assert float(wins) == pytest.approx(0.545764, abs=1e-6)

    value, slope = jax.jit(jax.value_and_grad(population))(np.log(target), sampler, rewards)
    p = 1 / (1 + np.exp(-(rewards[FIRST] - rewards[SECOND])))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(value, np.outer(sampler, sampler).ravel() @ entropy, rtol=1e-12)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    for logits in np.random.default_rng(0).normal(size=(5, 3)):
        assert run(population, logits, sampler, rewards) > value + 1e-4


@given(numbers, numbers, st.floats(-1.0, 1.0, width=32))
def test_value_and_gradient_by_formula(first, second, gap):
    args = [np.full(2, x, np.float32) for x in (first, second, gap)]
    value, (up, down, to_gap) = both(*args)
    z, p = INVERSE_STEP * (first - second), 1 / (1 + math.exp(-gap))
    expected = p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)
    np.testing.assert_allclose(value, 2 * expected, rtol=1e-5, atol=1e-6)
    push = INVERSE_STEP * (1 / (1 + math.exp(-z)) - p)
    np.testing.assert_allclose(up, push, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(down, -push, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(to_gap, 0.0)


both = jax.jit(
    jax.value_and_grad(
        lambda *x: losses.dno(*x, inverse_step=INVERSE_STEP).sum(), argnums=(0, 1, 2)
    )
)


def test_hard_labels_are_dpo_from_the_previous_policy():
    first, second = np.array([1.0, -0.5, 0.0]), np.array([0.25, 2.0, 0.0])
    hard = np.full(3, np.inf)
    found = run(losses.dno, first, second, hard, inverse_step=0.3)
    expected = run(losses.dpo, first, second, beta=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(found[2]) == pytest.approx(math.log(2.0), rel=1e-6)
    found = run(losses.dno, second, first, -hard, inverse_step=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    slope = grad(lambda a, b: losses.dno(a, b, jnp.full(3, jnp.inf), inverse_step=0.3).sum())
    assert float(slope(first, second)[2]) == pytest.approx(-0.15, rel=1e-6)


def test_constants_cancel():
    first, second, gap = np.random.default_rng(1).normal(size=(3, 3))
    plain = run(losses.dno, first, second, gap, inverse_step=0.7)
    np.testing.assert_allclose(
        run(losses.dno, first + 3, second + 3, gap, inverse_step=0.7), plain, rtol=1e-5
    )


def test_edges_are_finite():
    inf, nan = np.inf, np.nan
    first = np.array([-inf, inf, nan, 1.0])
    second = np.array([0.0, 0.0, 0.0, 0.0])
    gap = np.array([0.0, 0.0, 0.0, nan])
    found = run(losses.dno, first, second, gap, inverse_step=INVERSE_STEP)
    ten = 5.0 + math.log1p(math.exp(-10.0))
    np.testing.assert_allclose(found, [ten, ten, math.log(2.0), 0.0], rtol=1e-6)
    slopes = grad(lambda *x: losses.dno(*x, inverse_step=INVERSE_STEP).sum(), argnums=(0, 1, 2))(
        first, second, gap
    )
    assert np.all(np.isfinite(slopes))
    np.testing.assert_array_equal(slopes[0], 0.0)


def test_bad_arguments_and_formats():
    x = jnp.zeros(2)
    for inverse_step in (0.0, -1.0):
        with pytest.raises(ValueError, match="inverse_step"):
            losses.dno(x, x, x, inverse_step=inverse_step)
    with pytest.raises(ValueError, match="first_logratio has shape"):
        losses.dno(x[None], x[None], x[None], inverse_step=1.0)
    with pytest.raises(ValueError, match="second_logratio has shape"):
        losses.dno(x, jnp.zeros(3), x, inverse_step=1.0)
    with pytest.raises(ValueError, match="reward_gap has shape"):
        losses.dno(x, x, jnp.zeros(3), inverse_step=1.0)
    assert losses.dno(jnp.zeros(0), jnp.zeros(0), jnp.zeros(0), inverse_step=1.0).shape == (0,)
    low = jnp.asarray([1.0, -2.0], jnp.bfloat16)
    found = run(losses.dno, low, low[::-1], low, inverse_step=1.0)
    assert found.dtype == jnp.float32
    wanted = run(
        losses.dno, *(x.astype(jnp.float32) for x in (low, low[::-1], low)), inverse_step=1.0
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
