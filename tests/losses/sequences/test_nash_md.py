"""Nash-MD-PG: expected gradients by enumeration, the control variate, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.distributions import geometric_mixture
from polgrad.divergences import categorical_kl
from polgrad.losses.sequences import nash_md as uncompiled
from polgrad.tabular.nash import regularized_nash
from polgrad.tabular.preference import rps_game

nash_md = jax.jit(uncompiled)  # tau is traced, as under a schedule

REFERENCE = (0.6, 0.3, 0.1)
LOGITS = (0.4, -0.1, 0.3)
OPPONENT = (0.2, 0.5, 0.3)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def expected_gradient(logits, opponent, preference, tau):
    """Gradient of the loss averaged over responses and over the opponent's answers."""
    policy = jax.nn.softmax(logits)
    log_reference = jnp.log(jnp.array(REFERENCE))
    answers = preference.shape[0]

    def mean_loss(z):
        logp = jnp.repeat(jax.nn.log_softmax(z), answers)
        ratio = jnp.repeat(jax.nn.log_softmax(z) - log_reference, answers)
        losses = nash_md(logp, preference.reshape(-1), ratio, tau=tau)
        return jax.lax.stop_gradient(jnp.outer(policy, opponent).reshape(-1)) @ losses

    return grad(mean_loss)(logits)


def test_expected_gradient_is_that_of_the_regularised_game(x64):
    preference, opponent, tau = rps_game(), jnp.array(OPPONENT), 0.3

    def payoff(z):
        policy = jax.nn.softmax(z)
        kl = policy @ (jax.nn.log_softmax(z) - jnp.log(jnp.array(REFERENCE)))
        return policy @ preference @ opponent - tau * kl

    gradient = expected_gradient(jnp.array(LOGITS), opponent, preference, tau)
    np.testing.assert_allclose(gradient, -grad(payoff)(jnp.array(LOGITS)), atol=1e-12)


def test_the_half_is_a_control_variate_only(x64):
    logits = jnp.array(LOGITS)
    gradients = [
        expected_gradient(logits, jnp.array(OPPONENT), rps_game() + shift, 0.3)
        for shift in (0.0, 0.7)
    ]
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-12)


def test_self_play_at_the_equilibrium_has_zero_gradient(x64):
    tau = 0.1
    equilibrium = regularized_nash(jnp.array(REFERENCE), rps_game(), tau=tau)
    gradient = expected_gradient(jnp.log(equilibrium), equilibrium, rps_game(), tau)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-10)


def test_values_by_hand():
    losses = nash_md(
        jnp.array([-2.0, -3.0]), jnp.array([1.0, 0.25]), jnp.array([0.5, -1.0]), tau=0.1
    )
    np.testing.assert_allclose(losses, [2.0 * (0.5 - 0.05), 3.0 * (-0.25 + 0.1)], rtol=1e-6)


def test_sequence_kl_has_the_right_gradient_where_a_per_token_one_has_not(x64):
    # Two tokens over {0, 1}, uniform reference; the KL alone (preference 1/2, tau 1).
    z = {"first": jnp.array([0.4, -0.4]), "after": jnp.array([[0.3, -0.3], [-0.8, 0.8]])}
    first, second = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])

    def tokens(z):
        one = jax.nn.log_softmax(z["first"])[first]
        two = jax.nn.log_softmax(z["after"])[first, second]
        return one, two

    probabilities = jnp.exp(sum(tokens(z)))
    exact = grad(lambda z: jnp.exp(sum(tokens(z))) @ (sum(tokens(z)) + 2 * jnp.log(2.0)))(z)

    def surrogate(z):
        logp = sum(tokens(z))
        half = jnp.full(4, 0.5)
        return probabilities @ nash_md(logp, half, logp + 2 * jnp.log(2.0), tau=1.0)

    def per_token(z):
        half = jnp.full(4, 0.5)
        return sum(probabilities @ nash_md(t, half, t + jnp.log(2.0), tau=1.0) for t in tokens(z))

    def reward_to_go(z):
        (one, two), half = tokens(z), jnp.full(4, 0.5)
        first = nash_md(one, half, one + two + 2 * jnp.log(2.0), tau=1.0)
        return probabilities @ (first + nash_md(two, half, two + jnp.log(2.0), tau=1.0))

    np.testing.assert_allclose(exact["first"][0], 0.128897, atol=1e-6)
    gradient = grad(surrogate)(z)
    np.testing.assert_allclose(gradient["first"], exact["first"], atol=1e-12)
    np.testing.assert_allclose(gradient["after"], exact["after"], atol=1e-12)
    # A token may leave out the part of the KL that came before it.
    gradient = grad(reward_to_go)(z)
    np.testing.assert_allclose(gradient["first"], exact["first"], atol=1e-12)
    np.testing.assert_allclose(gradient["after"], exact["after"], atol=1e-12)
    wrong = grad(per_token)(z)
    np.testing.assert_allclose(wrong["first"][0], 0.171128, atol=1e-6)
    np.testing.assert_allclose(wrong["after"], exact["after"], atol=1e-12)


@pytest.mark.parametrize("weight", [0.125, 0.5])
def test_holding_to_the_mixture_is_holding_to_the_reference_more_weakly(weight, x64):
    logits, reference = jnp.array(LOGITS), jnp.log(jnp.array(REFERENCE))
    mixture = geometric_mixture(logits, reference, reference_weight=weight)
    to_mixture = grad(lambda z: categorical_kl(z, mixture))(logits)
    to_reference = grad(lambda z: categorical_kl(z, reference))(logits)
    np.testing.assert_allclose(to_mixture, weight * to_reference, atol=1e-12)


def test_gradient_reaches_the_policy_alone():
    arguments = jnp.array([-2.0]), jnp.array([0.9]), jnp.array([0.3])
    gradients = grad(lambda *a: nash_md(*a, tau=0.5).sum(), argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(gradients[0], -(0.4 - 0.15), rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[2], 0.0)


def test_edges_are_finite():
    inf = jnp.inf
    logp = jnp.array([-inf, -1.0, 0.0, -1.0, -inf])
    ratio = jnp.array([-inf, inf, 0.0, -2000.0, jnp.nan])
    losses = lambda x: nash_md(x, jnp.full(5, 0.8), ratio, tau=0.1)  # noqa: E731
    np.testing.assert_allclose(losses(logp)[:3], [0.0, 0.3 - 2.0, 0.0], rtol=1e-5)
    gradient = grad(lambda x: losses(x).sum())(logp)
    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(losses(logp)))
    np.testing.assert_array_equal(gradient[jnp.array([0, 4])], 0.0)


def test_bad_arguments():
    weak = uncompiled(jnp.full(1, -1.0), jnp.ones(1), jnp.full(1, 0.4), tau=0.5)
    np.testing.assert_allclose(weak, 0.3, rtol=1e-6)
    with pytest.raises(ValueError, match="tau"):
        uncompiled(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), tau=-0.1)
    with pytest.raises(ValueError, match="preference"):
        nash_md(jnp.zeros(2), jnp.zeros(1), jnp.zeros(2), tau=0.1)


def test_several_taus_at_once():
    arguments = jnp.array([-2.0]), jnp.array([0.9]), jnp.array([0.3])
    taus = jnp.array([0.0, 0.5])
    mapped = jax.vmap(lambda tau: nash_md(*arguments, tau=tau))(taus)
    np.testing.assert_allclose(mapped[:, 0], [2.0 * 0.4, 2.0 * (0.4 - 0.15)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_jit_vmap_and_dtype(dtype):
    logp, preference, ratio = jax.random.normal(jax.random.key(0), (3, 2, 4)).astype(dtype)
    loss = lambda *a: nash_md(*a, tau=0.1)  # noqa: E731
    plain = jnp.stack([loss(*row) for row in zip(logp, preference, ratio)])
    assert plain.dtype == jnp.float32
    mapped = jax.jit(jax.vmap(loss))(logp, preference, ratio)
    np.testing.assert_allclose(mapped, plain, rtol=2e-2, atol=1e-2)


def test_an_answer_that_the_policy_excludes_costs_nothing():
    found = nash_md(jnp.array([-jnp.inf]), jnp.array([1.0]), jnp.array([0.0]), tau=0.5)
    np.testing.assert_array_equal(found, 0.0)
    weak = uncompiled(jnp.full(1, -1.0), jnp.ones(1), jnp.full(1, 0.4), tau=0.5)
    np.testing.assert_allclose(weak, 0.3, rtol=1e-6)
    with pytest.raises(ValueError, match="tau"):
        uncompiled(jnp.zeros(1), jnp.ones(1), jnp.zeros(1), tau=-0.1)
