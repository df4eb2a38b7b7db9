"""Both KL gradients: hand numbers, autodiff, who moves more where mass is missing, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import advantages, divergences, losses
from polgrad.tabular import (
    forward_kl_gradient,
    kl_regularized_optimum,
    log_odds_change,
    reverse_kl_gradient,
)

POLICY, TARGET = np.log([0.7, 0.2, 0.1]), np.log([0.1, 0.3, 0.6])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_by_hand(x64):
    reverse = run(reverse_kl_gradient, POLICY, TARGET)
    np.testing.assert_allclose(reverse, [0.590829, -0.301467, -0.289363], atol=1e-6)
    forward = run(forward_kl_gradient, POLICY, TARGET)
    np.testing.assert_allclose(forward, [0.6, -0.1, -0.5], atol=1e-12)


forward_slope = grad(lambda z, target: divergences.categorical_kl(target, z))
reverse_slope = grad(lambda z, target: divergences.categorical_kl(z, target))


@given(st.integers(0, 10_000))
def test_they_are_the_slopes_of_the_divergences(seed):
    # Neither argument need be normalised.
    logits, target = np.random.default_rng(seed).normal(size=(2, 3))
    with jax.enable_x64(True):
        forward = run(forward_kl_gradient, logits, target)
        np.testing.assert_allclose(forward, forward_slope(logits, target), atol=1e-12)
        reverse = run(reverse_kl_gradient, logits, target)
        np.testing.assert_allclose(reverse, reverse_slope(logits, target), atol=1e-12)
    np.testing.assert_allclose(np.sum([forward, reverse], -1), 0.0, atol=1e-12)


def test_one_step_of_each(x64):
    for gradient in (forward_kl_gradient, reverse_kl_gradient):
        slope = run(gradient, POLICY, TARGET)
        after = np.log(jax.nn.softmax(POLICY - 0.3 * slope))
        change = run(log_odds_change, slope, step=0.3)
        odds = (after[0] - after[1]) - (POLICY[0] - POLICY[1])
        np.testing.assert_allclose(change, odds, rtol=1e-12)
        change = run(log_odds_change, slope, first=2, second=0, step=0.3)
        odds = (after[2] - after[0]) - (POLICY[2] - POLICY[0])
        np.testing.assert_allclose(change, odds, rtol=1e-12)
    assert run(log_odds_change, jnp.array([1.0, 3.0, 5.0])) == 2.0


def test_the_reverse_direction_commits_and_the_forward_one_covers(x64):
    # Two equal modes, of which the policy has hardly any mass on the second.
    policy, target = np.log([0.98, 0.01, 0.01]), np.log([0.45, 0.45, 0.1])
    change = {
        gradient.__name__: log_odds_change(gradient(policy, target), first=1, second=0)
        for gradient in (forward_kl_gradient, reverse_kl_gradient)
    }
    assert change["forward_kl_gradient"] > 5 * change["reverse_kl_gradient"] > 0


def test_policy_gradients_with_the_price_of_the_kl_descend_the_reverse_one(x64):
    reference, rewards, beta = np.log([0.5, 0.3, 0.2]), np.array([1.0, -1.0, 0.5]), 0.5
    optimum = run(kl_regularized_optimum, reference, rewards, beta=beta)

    def loss(z):
        logp = jax.nn.log_softmax(z)
        priced = advantages.regularized_rewards(rewards, logp - reference, beta=beta)
        weight = jax.lax.stop_gradient(jnp.exp(logp))
        return weight @ losses.reinforce(logp[:, None], priced[:, None])[:, 0]

    np.testing.assert_allclose(grad(loss)(optimum), 0.0, atol=1e-12)
    slope = beta * run(reverse_kl_gradient, POLICY, optimum)
    np.testing.assert_allclose(grad(loss)(jnp.asarray(POLICY)), slope, atol=1e-12)


def test_the_sampled_penalty_needs_its_square(x64):
    reference = jnp.asarray(TARGET)

    def expected(penalty):
        def value(z):
            logp = jax.nn.log_softmax(z)
            return jax.lax.stop_gradient(jnp.exp(logp)) @ penalty(logp - reference)

        return grad(value)(jnp.asarray(POLICY))

    np.testing.assert_allclose(expected(lambda x: x), 0.0, atol=1e-12)
    slope = run(reverse_kl_gradient, POLICY, TARGET)
    np.testing.assert_allclose(expected(lambda x: 0.5 * x**2), slope, atol=1e-12)


def test_edges_are_finite():
    inf = np.inf
    logits = jnp.array([[0.0, -inf, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, -900.0]])
    target = jnp.array([[0.0, 0.0, -inf], [0.0, 0.0, 0.0], [-900.0, 0.0, 0.0]])
    for gradient in (forward_kl_gradient, reverse_kl_gradient):
        slope = run(gradient, logits, target)
        assert np.all(np.isfinite(slope))
        np.testing.assert_array_equal(slope[1], 0.0)
    assert run(reverse_kl_gradient, *(x.astype(jnp.bfloat16) for x in (logits, target))).dtype == (
        jnp.float32
    )
    low = jax.eval_shape(forward_kl_gradient, *(x.astype(jnp.bfloat16) for x in (logits, target)))
    assert low.dtype == jnp.float32


def test_bad_arguments_are_named():
    for gradient in (forward_kl_gradient, reverse_kl_gradient):
        with pytest.raises(ValueError, match="log_target has shape"):
            gradient(jnp.zeros(3), jnp.zeros(2))
