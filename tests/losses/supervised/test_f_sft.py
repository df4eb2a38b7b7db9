"""f-SFT: its weights and values by hand, Fenchel's inequality, where it stops, edges."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from polgrad import divergences, losses

# name: (generator, weight at v, phi(1) - phi(0))
WEIGHTS = {
    "total_variation": (divergences.total_variation, lambda v: 1.0 + 0 * v, 1.0),
    "reverse_chi_squared": (divergences.reverse_chi_squared, lambda v: 1 - v / 2, 0.75),
    "squared_hellinger": (divergences.squared_hellinger, lambda v: (1 + v) ** -2, 0.5),
    "jensen_shannon": (divergences.jensen_shannon, lambda v: 1 / (2 * np.exp(v) - 1), 0.489880),
    "reverse_kl": (
        divergences.reverse_kl,
        lambda v: np.exp(-v - 1),
        -0.135335 + math.exp(-1),
    ),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def slope(v, **settings):
    return -jax.grad(lambda x: losses.f_sft(x, 0 * x, **settings).sum())(jnp.asarray(v))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_weights_and_values_by_hand(name, beta):
    divergence, weight, one = WEIGHTS[name]
    v = np.array([-0.3, 0.0, 0.5, 1.5])
    found = slope(v / beta, divergence=divergence, beta=beta)
    np.testing.assert_allclose(found, weight(v), rtol=1e-9)
    loss = losses.f_sft(np.array([1 / beta, 0.0]), np.zeros(2), divergence=divergence, beta=beta)
    np.testing.assert_allclose(loss, [-one / beta, 0.0], atol=1e-6)


def test_defaults():
    v = np.array([-1.0, 0.5, 3.0])
    np.testing.assert_array_equal(
        losses.f_sft(v, 0 * v),
        losses.f_sft(v, 0 * v, divergence=divergences.reverse_chi_squared, beta=1.0),
    )
    hellinger = functools.partial(losses.f_sft, divergence=divergences.squared_hellinger)
    np.testing.assert_array_equal(hellinger(v, 0 * v), hellinger(v, 0 * v, guard=-0.5))


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_conjugate_is_a_conjugate(name):
    """phi(v) <= f(t) + t v for all t > 0, with equality at t = phi'(v)."""
    divergence, weight, _ = WEIGHTS[name]
    v = np.array([-0.3, 0.0, 0.4, 1.5])
    if name == "total_variation":
        v = np.array([-0.3, 0.0, 0.4])  # its line is the conjugate within +-1/2
    phi = -np.asarray(divergence.conjugate(jnp.asarray(-v)))
    for t in np.linspace(0.01, 20.0, 200):
        assert np.all(phi <= np.asarray(divergence.f(jnp.asarray(t))) + t * v + 1e-9)
    best = jnp.asarray(weight(v))
    np.testing.assert_allclose(np.asarray(divergence.f(best)) + best * v, phi, atol=1e-12)


def test_total_variation_is_plain_fine_tuning():
    logp = jnp.array([[-1.0, -3.0], [-0.5, 0.0]])
    plain = jax.grad(lambda x: losses.imitation(x).sum())(logp)
    held = jax.grad(
        lambda x: losses.f_sft(x, logp, divergence=divergences.total_variation, beta=3.0).sum()
    )(logp - 2.0)
    np.testing.assert_allclose(held, plain, rtol=1e-12)
    nearly = losses.f_sft(logp, logp - 1.0, beta=1e-7)
    np.testing.assert_allclose(nearly, -np.ones((2, 2)), atol=1e-6)


@pytest.mark.parametrize("beta, probability", [(2.0, 0.543656), (1.0, 0.543656)])
def test_where_chi_squared_stops(beta, probability):
    """One demonstration among five answers, uniform reference: log(policy / reference) = 2 / beta."""
    reference = 0.2 if beta == 2.0 else probability / math.exp(2.0)
    logp, log_reference = jnp.log(jnp.array([probability])), jnp.log(jnp.array([reference]))
    gradient = jax.grad(lambda x: losses.f_sft(x, log_reference, beta=beta).sum())(logp)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("name, most", [("squared_hellinger", 4.0), ("jensen_shannon", 4.693)])
def test_below_the_guard_it_is_its_tangent(name, most):
    divergence = WEIGHTS[name][0]
    v = np.array([-0.49999999, -0.5, -0.51, -3.0, -19.0])
    np.testing.assert_allclose(slope(v, divergence=divergence), most, rtol=1e-3)
    loss = losses.f_sft(v, 0 * v, divergence=divergence)
    straight = loss[1] + slope(v[1:2], divergence=divergence)[0] * (-0.5 - v[1:])
    np.testing.assert_allclose(loss[1:], straight, rtol=1e-9)
    higher = slope(np.array([-1.0]), divergence=divergence, guard=-0.25)
    np.testing.assert_allclose(higher, WEIGHTS[name][1](-0.25), rtol=1e-9)


def test_the_tangent_is_taken_in_full_precision():
    v, guard = np.array([-2.0]), -0.3
    found = losses.f_sft(v, 0 * v, divergence=divergences.squared_hellinger, guard=guard)
    straight = guard / (1 + guard) + (v - guard) / (1 + guard) ** 2
    np.testing.assert_allclose(found, -straight, rtol=1e-14)


def test_forward_kl_needs_a_guard_above_zero():
    kl = functools.partial(losses.f_sft, divergence=divergences.forward_kl)
    v = np.array([0.0, 0.2, 0.5, 1.0])
    with pytest.raises(ValueError, match="guard"):
        kl(v, 0 * v)
    with pytest.raises(ValueError, match="guard is 0.0"):
        kl(v, 0 * v, guard=0.0)
    np.testing.assert_allclose(
        slope(v, divergence=divergences.forward_kl, guard=0.5), [2.0, 2.0, 2.0, 1.0], rtol=1e-12
    )
    loss = kl(v, 0 * v, guard=0.5)
    np.testing.assert_allclose(loss, [0.0, -0.4, -1.0, -1.0 - math.log(2.0)], atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTS)
def test_edges(name):
    inf = jnp.inf
    logp, reference = jnp.array([-inf, 0.0, -inf, 30.0]), jnp.array([0.0, -inf, -inf, 0.0])
    loss = functools.partial(losses.f_sft, divergence=WEIGHTS[name][0])
    assert np.all(np.isfinite(loss(logp, reference)))
    slopes = jax.grad(lambda x, r: loss(x, r).sum(), argnums=(0, 1))(logp, reference)
    np.testing.assert_array_equal(slopes[0][:3], 0.0)
    np.testing.assert_array_equal(slopes[1], 0.0)


def test_bad_arguments():
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        losses.f_sft(zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="reference_logp"):
        losses.f_sft(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="conjugate"):
        losses.f_sft(zero, zero, divergence=divergences.chi_squared)
    for guard, words in ((-1.0, "expected more than -1.0 for squared_hellinger"), (-1.5, "guard")):
        with pytest.raises(ValueError, match=words):
            losses.f_sft(zero, zero, divergence=divergences.squared_hellinger, guard=guard)


@pytest.mark.parametrize("beta, expected", [(2.0, 0.543656), (1.0, 1.0)])
def test_chi_squared_optimum_of_a_table(beta, expected):
    def loss(z):
        return losses.f_sft(jax.nn.log_softmax(z)[:1], jnp.log(jnp.full(1, 0.2)), beta=beta).sum()

    z = minimize(jax.jit(jax.value_and_grad(loss)), np.zeros(5), jac=True, tol=1e-12).x
    np.testing.assert_allclose(jax.nn.softmax(z)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["total_variation", "reverse_chi_squared", "squared_hellinger", "jensen_shannon", "reverse_kl"],
)
def test_a_potential_cancels_for_total_variation_alone(name):
    conjugate = getattr(divergences, name).conjugate
    u, potential = jnp.array([0.2, -0.1, 0.3]), jnp.array([0.15, -0.05, 0.1, 0.0])

    def objective(v):
        return v[0] + jnp.sum(conjugate(-(u + v[:-1] - v[1:])))

    change = float(objective(potential) - objective(0 * potential))
    assert (abs(change) < 1e-12) == (name == "total_variation")


def test_the_distance_from_plain_fine_tuning_is_linear_in_beta():
    u = jnp.array([0.7, -0.3])
    gap = [np.abs(losses.f_sft(u, 0 * u, beta=b) + u).max() for b in (1e-2, 1e-3)]
    np.testing.assert_allclose(gap[0] / gap[1], 10.0, rtol=1e-6)


def test_the_guard_can_be_swept_where_it_acts():
    v, guards = jnp.array([-0.9, 0.3]), jnp.array([-0.3, -0.6])

    def loss(guard):
        return losses.f_sft(v, 0 * v, divergence=divergences.squared_hellinger, guard=guard)

    together = jax.jit(jax.vmap(loss))(guards)
    alone = jnp.stack([loss(float(guard)) for guard in guards])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert abs(together[0, 0] - together[1, 0]) > 0.1
