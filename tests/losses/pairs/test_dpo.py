"""DPO and Plackett-Luce: hand-computed values, the tabular optimum, invariances, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses
from polgrad.tabular.bandits import kl_regularized_optimum

# Compiled once a shape; beta is traced, as under a schedule.
dpo = jax.jit(losses.dpo, static_argnames="label_smoothing")
implicit_reward = jax.jit(losses.implicit_reward)
plackett_luce = jax.jit(losses.plackett_luce)
preference_margin = jax.jit(losses.preference_margin)

finite = st.floats(-30.0, 30.0, width=32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def test_values_by_hand(x64):
    logs = [jnp.array([x]) for x in (-10.0, -12.0, -11.0, -11.5)]
    margin = preference_margin(*logs)
    np.testing.assert_allclose(0.1 * margin, 0.15, rtol=1e-12)
    np.testing.assert_allclose(
        dpo(logs[0] - logs[2], logs[1] - logs[3], beta=0.1), 0.620957, atol=1e-6
    )
    np.testing.assert_allclose(implicit_reward(logs[0], logs[2], beta=0.1), 0.1, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_at_the_reference_the_loss_is_log_two_and_the_slope_half_beta(beta, x64):
    value, gradient = jax.value_and_grad(lambda w, r: dpo(w, r, beta=beta).sum(), argnums=(0, 1))(
        jnp.zeros(1), jnp.zeros(1)
    )
    np.testing.assert_allclose(value, math.log(2.0), rtol=1e-12)
    np.testing.assert_allclose(gradient[0], -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(gradient[1], beta / 2, rtol=1e-12)


def test_gradient_identity_and_no_gradient_to_the_reference(x64):
    logits = jnp.array([0.5, -0.3, 0.1, 0.9, -1.0])
    reference = jax.nn.log_softmax(jnp.array([0.1, 0.2, -0.4, 0.3, 0.0]))
    chosen, rejected, beta = jnp.array([0, 3]), jnp.array([1, 4]), 0.3

    def loss(z, reference):
        logp = jax.nn.log_softmax(z)
        ratio = implicit_reward(logp, reference, beta=1.0)
        return dpo(ratio[chosen], ratio[rejected], beta=beta).sum()

    gradient, to_reference = grad(loss, argnums=(0, 1))(logits, reference)
    np.testing.assert_array_equal(to_reference, 0.0)
    logp = jax.nn.log_softmax(logits)
    z = beta * preference_margin(
        logp[chosen], logp[rejected], reference[chosen], reference[rejected]
    )
    score = jnp.eye(5) - jax.nn.softmax(logits)
    expected = -beta * (jax.nn.sigmoid(-z)[:, None] * (score[chosen] - score[rejected])).sum(0)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def minimise(loss, size, steps=4_000, rate=1.0):
    step = lambda _, z: z - rate * grad(loss)(z)  # noqa: E731
    return jax.nn.softmax(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, jnp.zeros(size)))())


@pytest.mark.parametrize("case", ["card", "general"])
def test_tabular_minimiser_is_the_regularised_optimum(case, x64):
    if case == "card":
        rewards, beta, log_reference = jnp.array([0.0, 1.0, 2.0]), 1.0, jnp.full(3, -math.log(3.0))
    else:
        rewards, beta = jnp.array([0.3, -0.5, 0.8]), 0.7
        log_reference = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    pairs = jnp.array(list(itertools.permutations(range(3), 2)))
    weights = jax.nn.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])

    def loss(z):
        ratio = jax.nn.log_softmax(z) - log_reference
        return weights @ dpo(ratio[pairs[:, 0]], ratio[pairs[:, 1]], beta=beta)

    policy = minimise(loss, 3)
    optimum = jnp.exp(kl_regularized_optimum(log_reference, rewards, beta=beta))
    np.testing.assert_allclose(policy, optimum, atol=1e-8)
    if case == "card":
        np.testing.assert_allclose(policy, [0.09003, 0.24473, 0.66524], atol=1e-5)


@given(finite, finite, finite)
def test_a_function_of_the_prompt_cancels(chosen, rejected, shift):
    plain = dpo(jnp.array([chosen]), jnp.array([rejected]))
    moved = dpo(jnp.array([chosen + shift]), jnp.array([rejected + shift]))
    np.testing.assert_allclose(moved, plain, atol=1e-5)


@given(finite, finite)
def test_swapping_the_answers_adds_the_margin(chosen, rejected):
    chosen, rejected = jnp.array([chosen]), jnp.array([rejected])
    margin = 0.1 * (chosen - rejected)
    np.testing.assert_allclose(dpo(rejected, chosen) - dpo(chosen, rejected), margin, atol=1e-5)


def test_label_smoothing_is_the_expectation_over_flipped_labels(x64):
    chosen, rejected = jnp.array([3.0]), jnp.array([-2.0])
    expected = 0.8 * dpo(chosen, rejected) + 0.2 * dpo(rejected, chosen)
    np.testing.assert_allclose(dpo(chosen, rejected, label_smoothing=0.2), expected, rtol=1e-12)


def test_edges_are_finite():
    inf = jnp.inf
    chosen = jnp.array([-inf, -inf, 0.0, inf, jnp.nan, 5000.0, -5000.0])
    rejected = jnp.array([-inf, 0.0, -inf, -inf, 0.0, 0.0, 0.0])
    loss = lambda w, r: dpo(w, r, beta=0.1)  # noqa: E731
    np.testing.assert_allclose(
        loss(chosen, rejected)[:3],
        [math.log(2), np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))],
        rtol=1e-5,
    )
    assert np.all(np.isfinite(loss(chosen, rejected)))
    gradients = grad(lambda w, r: loss(w, r).sum(), argnums=(0, 1))(chosen, rejected)
    assert np.all(np.isfinite(gradients))
    np.testing.assert_array_equal(gradients[0][jnp.array([0, 1, 3, 4])], 0.0)
    # Both log-probabilities minus infinity: no NaN through the difference either.
    impossible = jnp.array([-inf])
    to_policy = grad(lambda x: implicit_reward(x, impossible).sum())(impossible)
    np.testing.assert_array_equal(to_policy, 0.0)


def test_an_empty_batch_is_empty():
    assert dpo(jnp.zeros(0), jnp.zeros(0)).shape == (0,)
    assert plackett_luce(jnp.zeros((0, 3))).shape == (0,)


def test_bad_arguments():
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        losses.dpo(zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo(zero, zero, label_smoothing=0.6)
    with pytest.raises(ValueError, match="rejected_logratio"):
        dpo(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="scores"):
        plackett_luce(zero)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_jit_vmap_and_dtype(dtype):
    chosen, rejected = (jax.random.normal(jax.random.key(0), (2, 3, 4)) * 5).astype(dtype)
    for function in (dpo, lambda w, r: plackett_luce(jnp.stack([w, r], -1))):
        plain = jnp.stack([function(w, r) for w, r in zip(chosen, rejected)])
        assert plain.dtype == jnp.float32
        mapped = jax.jit(jax.vmap(function))(chosen, rejected)
        np.testing.assert_allclose(mapped, plain, rtol=1e-5, atol=1e-6)


def test_ipo_by_hand_and_its_slope(x64):
    chosen, rejected = jnp.array([1.0, 0.0]), jnp.array([-0.5, 4.0])
    np.testing.assert_allclose(losses.ipo(chosen, rejected), [12.25, 81.0], rtol=1e-12)
    np.testing.assert_allclose(losses.ipo(chosen, rejected, beta=0.5), [0.25, 25.0], rtol=1e-12)
    slopes = jax.grad(lambda w, r: losses.ipo(w, r, beta=0.5).sum(), argnums=(0, 1))(
        chosen, rejected
    )
    np.testing.assert_allclose(slopes, [[1.0, -10.0], [-1.0, 10.0]], rtol=1e-12)
    with pytest.raises(ValueError, match="beta"):
        losses.ipo(chosen, rejected, beta=0.0)
    with pytest.raises(ValueError, match="rejected_logratio"):
        losses.ipo(chosen, rejected[:1])
