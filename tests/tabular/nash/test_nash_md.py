"""Mirror descent on preference games: closed forms, oracles, rates, bias and stability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import tabular
from polgrad.tabular.nash import (
    duality_gap,
    nash_md_step,
    regularized_best_response,
    regularized_nash,
    self_play_step,
)

REFERENCE = (0.6, 0.3, 0.1)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def kl(p, q):
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


@functools.partial(jax.jit, static_argnames=("step", "steps"))
def iterate(step, policy, reference, preference, eta, tau, steps):
    """Trajectory of policies; eta is a number or one a step."""
    eta = jnp.broadcast_to(eta, (steps,))
    advance = lambda p, e: (step(p, reference, preference, eta=e, tau=tau),) * 2  # noqa: E731
    return jax.lax.scan(advance, policy, eta)[1]


nash = jax.jit(regularized_nash, static_argnames="iterations")


@pytest.mark.parametrize(
    "game, tau, expected",
    [
        (tabular.rps_game, 0.5, (0.643506, 0.193193, 0.163301)),
        (tabular.rps_game, 0.1, (0.432065, 0.230329, 0.337605)),
        (tabular.dice_game, 0.1, (0.643730, 0.228498, 0.127772)),
    ],
)
def test_numeric_oracles(game, tau, expected):
    reference, preference = jnp.array(REFERENCE), game()
    policy = nash(reference, preference, tau=tau)
    np.testing.assert_allclose(policy, expected, atol=1e-6)
    # Its own first-order condition and a vanishing gap, independent of any stored number.
    np.testing.assert_allclose(
        policy, regularized_best_response(policy, reference, preference, tau=tau), atol=1e-12
    )
    np.testing.assert_allclose(duality_gap(policy, reference, preference, tau=tau), 0.0, atol=1e-12)


def test_two_answers_in_closed_form():
    p, tau, reference = 0.7, 0.1, jnp.array([0.25, 0.75])
    policy = nash(reference, jnp.array([[0.5, p], [1 - p, 0.5]]), tau=tau)
    logit = np.log(0.25 / 0.75) + (p - 0.5) / tau
    np.testing.assert_allclose(jnp.log(policy[0] / policy[1]), logit, rtol=1e-10)
    np.testing.assert_allclose(policy, (0.711235, 0.288765), atol=1e-6)


def test_additive_preferences_are_a_reward():
    scores, tau = jnp.array([0.0, 0.1, 0.2, 0.35]), 0.1
    reference = jnp.array([0.4, 0.3, 0.2, 0.1])
    policy = nash(reference, tabular.additive_game(scores), tau=tau)
    np.testing.assert_allclose(
        policy, jax.nn.softmax(jnp.log(reference) + scores / tau), atol=1e-12
    )
    np.testing.assert_allclose(policy, (0.066613, 0.135805, 0.246103, 0.551479), atol=1e-6)


def test_only_the_centred_matrix_over_tau_matters():
    reference = jnp.array(REFERENCE)
    np.testing.assert_allclose(
        nash(reference, tabular.dice_game(), tau=0.1),
        nash(reference, tabular.rps_game(), tau=0.9),
        atol=1e-12,
    )


@pytest.mark.parametrize("tau", [0.002, 0.008, 3.0])
def test_solver_converges_for_weak_and_strong_regularisation(tau):
    reference, preference = jnp.array(REFERENCE), tabular.cycle3_game(0.1, 0.5, 0.3)
    policy = nash(reference, preference, tau=tau)
    assert abs(float(duality_gap(policy, reference, preference, tau=tau))) < 1e-10


def test_solver_on_a_larger_random_game_in_float32():
    key = jax.random.key(1)
    preference = tabular.symmetrize_preference(jax.random.uniform(key, (30, 30), jnp.float32))
    reference = jax.nn.softmax(jax.random.normal(key, (30,), jnp.float32))
    policy = nash(reference, preference, tau=jnp.float32(0.02))
    assert policy.dtype == jnp.float32
    np.testing.assert_allclose(
        policy,
        regularized_best_response(policy, reference, preference, tau=0.02),
        atol=1e-5,
    )


def test_solver_keeps_the_support_of_the_reference_and_maps():
    references = jnp.array([[0.5, 0.5, 0.0], REFERENCE])
    policies = jax.vmap(lambda r: nash(r, tabular.rps_game(), tau=0.5))(references)
    np.testing.assert_allclose(policies[1], (0.643506, 0.193193, 0.163301), atol=1e-6)
    two = nash(jnp.array([0.5, 0.5]), tabular.rps_game()[:2, :2], tau=0.5)
    np.testing.assert_allclose(policies[0], [*two, 0.0], atol=1e-12)


def test_one_step_by_hand():
    uniform, preference = jnp.full(3, 1 / 3), tabular.dice_game()
    policy = jnp.array([0.6, 0.3, 0.1])
    mixture = policy**0.5 * uniform**0.5
    mixture /= mixture.sum()
    np.testing.assert_allclose(mixture, (0.472734, 0.334273, 0.192993), atol=1e-6)
    rates = tabular.win_rates(preference, mixture)
    np.testing.assert_allclose(rates, (0.507849, 0.484459, 0.507692), atol=1e-6)
    following = nash_md_step(policy, uniform, preference, eta=5.0, tau=0.1)
    np.testing.assert_allclose(following, (0.490920, 0.308820, 0.200260), atol=1e-6)


@pytest.mark.parametrize(
    "game, expected",
    [
        (tabular.dice_game, (0.499525, 0.290801, 0.209674)),
        (tabular.rps_game, (0.607136, 0.074603, 0.318261)),
    ],
)
def test_one_step_of_self_play_by_hand(game, expected):
    following = self_play_step(
        jnp.array([0.6, 0.3, 0.1]), jnp.full(3, 1 / 3), game(), eta=5.0, tau=0.1
    )
    np.testing.assert_allclose(following, expected, atol=1e-6)


@pytest.mark.parametrize("eta, converges", [(2.0, True), (3.0, False)])
def test_self_play_converges_exactly_when_its_linearisation_contracts(eta, converges):
    uniform, tau = jnp.full(3, 1 / 3), 0.1

    def logits_to_logits(z):
        policy = jax.nn.softmax(z)
        return jnp.log(self_play_step(policy, uniform, tabular.rps_game(), eta=eta, tau=tau))

    slopes = np.linalg.eigvals(jax.jit(jax.jacobian(logits_to_logits))(jnp.zeros(3)))
    modulus = (1.0 - eta * tau) ** 2 + eta**2 / 12
    np.testing.assert_allclose(np.abs(slopes).max() ** 2, modulus, rtol=1e-10)
    assert (modulus < 1.0) == converges
    near = iterate(
        self_play_step, jnp.array([0.34, 0.33, 0.33]), uniform, tabular.rps_game(), eta, tau, 2000
    )
    assert (kl(uniform, near[-1]) < 1e-12) == converges


def test_the_step_maximises_what_it_says():
    policy, reference, preference = (
        jnp.array([0.6, 0.3, 0.1]),
        jnp.array(REFERENCE),
        tabular.rps_game(),
    )
    eta, tau = 2.0, 0.2
    mixture = jax.nn.softmax((1 - eta * tau) * jnp.log(policy) + eta * tau * jnp.log(reference))
    following = nash_md_step(policy, reference, preference, eta=eta, tau=tau)

    def objective(z):
        p = jax.nn.softmax(z)
        return eta * p @ preference @ mixture - p @ (jax.nn.log_softmax(z) - jnp.log(mixture))

    np.testing.assert_allclose(grad(objective)(jnp.log(following)), 0.0, atol=1e-12)


def test_rate_of_the_decaying_step():
    reference, preference, tau, steps = jnp.array(REFERENCE), tabular.rps_game(), 0.1, 1000
    equilibrium = nash(reference, preference, tau=tau)
    eta = 2.0 / (tau * (jnp.arange(steps) + 2.0))
    policies = iterate(nash_md_step, reference, reference, preference, eta, tau, steps)
    to_each = jnp.sum(equilibrium * (jnp.log(equilibrium) - jnp.log(policies)), axis=-1)
    before = jnp.concatenate([jnp.array([kl(equilibrium, reference)]), to_each[:-1]])
    assert np.all(to_each <= (1.0 - eta * tau) * before + 2.0 * eta**2 + 1e-12)
    assert np.all(to_each <= 8.0 / (tau**2 * (jnp.arange(steps) + 2.0)))
    np.testing.assert_allclose(to_each[-1], 8.5e-7, rtol=0.02)
    gap = duality_gap(policies[-1], reference, preference, tau=tau)
    np.testing.assert_allclose(gap, 1.5e-6, rtol=0.05)


def test_a_constant_step_is_biased_for_nash_md_alone():
    reference, preference, tau = jnp.array(REFERENCE), tabular.rps_game(), 0.1
    equilibrium = nash(reference, preference, tau=tau)
    last = {
        step: iterate(step, reference, reference, preference, 0.5, tau, 2000)[-1]
        for step in (nash_md_step, self_play_step)
    }
    np.testing.assert_allclose(kl(equilibrium, last[nash_md_step]), 6.3e-4, rtol=0.02)
    assert kl(equilibrium, last[self_play_step]) < 1e-12


def test_a_large_constant_step_is_stable_for_nash_md_alone():
    uniform, start = jnp.full(3, 1 / 3), jnp.array([0.6, 0.3, 0.1])
    last = {
        step: iterate(step, start, uniform, tabular.rps_game(), 3.0, 0.1, 400)[-1]
        for step in (nash_md_step, self_play_step)
    }
    assert kl(uniform, last[nash_md_step]) < 1e-10
    assert kl(uniform, last[self_play_step]) > 0.1


def test_without_regularisation_mirror_descent_moves_away():
    uniform, start = jnp.full(3, 1 / 3), jnp.array([0.6, 0.3, 0.1])
    policies = iterate(nash_md_step, start, uniform, tabular.rps_game(), 0.5, 0.0, 200)
    divergence = jnp.sum(uniform * (jnp.log(uniform) - jnp.log(policies)), axis=-1)
    assert np.all(np.diff(divergence) >= -1e-12) and divergence[0] >= kl(uniform, start) - 1e-12


def test_equilibrium_is_a_fixed_point_of_self_play():
    reference, preference, tau = jnp.array(REFERENCE), tabular.rps_game(), 0.1
    equilibrium = nash(reference, preference, tau=tau)
    following = self_play_step(equilibrium, reference, preference, eta=2.0, tau=tau)
    np.testing.assert_allclose(following, equilibrium, atol=1e-10)
    biased = nash_md_step(equilibrium, reference, preference, eta=2.0, tau=tau)
    assert np.abs(biased - equilibrium).max() > 1e-3


def test_best_response_attains_the_gap():
    policy, reference, preference = (
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array(REFERENCE),
        tabular.rps_game(),
    )
    tau = 0.2

    def payoff(p, q):
        return (
            tabular.policy_win_rate(preference, p, q)
            - tau * kl(p, reference)
            + tau * kl(q, reference)
        )

    best = regularized_best_response(policy, reference, preference, tau=tau)
    # The game is symmetric: the worst opponent is the best response too.
    expected = payoff(best, policy) - payoff(policy, best)
    np.testing.assert_allclose(
        duality_gap(policy, reference, preference, tau=tau), expected, rtol=1e-10
    )
    others = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    payoffs = jax.jit(jax.vmap(lambda p: payoff(p, policy)))(others)
    assert np.all(payoffs <= payoff(best, policy))


def test_unregularised_gap_and_boundary_policies():
    reference = jnp.array(REFERENCE)
    rock = jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(duality_gap(rock, reference, tabular.rps_game(), tau=0), 1.0)
    # ~ reference exp((1/2, 0, 1) / tau), with KL(rock || reference) = -log .6.
    expected = 2 * (
        0.5 * np.log(0.6 * np.exp(1.0) + 0.3 + 0.1 * np.exp(2.0)) - 0.5 * np.log(0.6) - 0.5
    )
    np.testing.assert_allclose(
        duality_gap(rock, reference, tabular.rps_game(), tau=0.5), expected, rtol=1e-10
    )
    # A pure policy stays put at tau = 0, and eta tau = 1 forgets the policy altogether.
    np.testing.assert_allclose(
        nash_md_step(rock, reference, tabular.rps_game(), eta=1.0, tau=0.0), rock, atol=1e-12
    )
    forgotten = nash_md_step(rock, reference, tabular.rps_game(), eta=2.0, tau=0.5)
    assert np.all(np.isfinite(forgotten)) and np.all(forgotten > 0.0)


@pytest.mark.parametrize("step", [nash_md_step, self_play_step])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eta": 0.0, "tau": 0.1}, "eta is 0"),
        ({"eta": 2.0, "tau": -0.1}, "tau is -0.1"),
        ({"eta": 2.0, "tau": 0.6}, "tau is 0.6, expected at most 1 / eta = 0.5"),
    ],
)
def test_steps_out_of_range(step, settings, message):
    policy = jnp.array([0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match=message):
        step(policy, policy, tabular.rps_game(), **settings)


UNSUPPORTED = jnp.array([0.5, 0.5, 0.0])


def test_the_unregularised_gap_ignores_the_reference_in_its_gradient():
    policy, preference = jnp.array([0.3, 0.3, 0.4]), tabular.rps_game()
    # Against this policy the win rates are .45, .55, .5 or a permutation: an answer beats the
    # next one, loses to the last one. The largest is 1/2 + (.4 - .3) / 2.
    gap = functools.partial(duality_gap, preference=preference, tau=0.0)
    np.testing.assert_allclose(gap(policy, UNSUPPORTED), 0.1, rtol=1e-12)
    full = grad(lambda p: gap(p, jnp.full(3, 1 / 3)))(policy)
    np.testing.assert_allclose(grad(lambda p: gap(p, UNSUPPORTED))(policy), full, rtol=1e-12)
    np.testing.assert_array_equal(grad(lambda r: gap(policy, r))(UNSUPPORTED), 0.0)
    at = lambda tau: duality_gap(policy, UNSUPPORTED, preference, tau=tau)  # noqa: E731
    assert np.all(np.isfinite(jax.jit(jax.vmap(jax.grad(at)))(jnp.zeros(2))))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("step", [nash_md_step, self_play_step])
@pytest.mark.parametrize("tau", [0.0, 0.25, 0.5])
def test_steps_from_the_boundary_have_finite_gradients(step, tau):
    rock, settings = jnp.array([1.0, 0.0, 0.0]), jnp.array([2.0, tau])

    def first(policy, reference, settings):
        eta, tau = settings
        return step(policy, reference, tabular.rps_game(), eta=eta, tau=tau)[0]

    for arrays in ((rock, UNSUPPORTED), (UNSUPPORTED, rock), (jnp.array(REFERENCE), rock)):
        slopes = grad(first, argnums=(0, 1, 2))(*arrays, settings)
        assert all(np.all(np.isfinite(slope)) for slope in slopes)


@pytest.mark.parametrize(
    "function, tau",
    [(duality_gap, -1.0), (regularized_best_response, 0.0), (regularized_nash, 0.0)],
)
def test_strengths_out_of_range(function, tau):
    policies = [jnp.array(REFERENCE)] * (1 if function is regularized_nash else 2)
    with pytest.raises(ValueError, match=f"tau is {tau}"):
        function(*policies, tabular.rps_game(), tau=tau)
