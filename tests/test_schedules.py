"""Controllers and schedules: hand-computed steps, monotonicity, continuity, traced arguments."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import advantages, divergences, losses, masking, schedules
from polgrad.schedules import Coefficient

SCALARS = jnp.array


def after(function, value, measured, *rest, **settings):
    return run(function, Coefficient(SCALARS(value)), SCALARS(measured), *rest, **settings)


# --- adaptive KL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "error"), [(0.1, 0.0), (0.11, 0.1), (0.09, -0.1), (5.0, 0.2), (0.0, -0.2)]
)
def test_adaptive_kl_by_hand(kl, error):
    state = after(schedules.adaptive_kl, 0.5, kl, 5000)
    np.testing.assert_allclose(state.value, 0.5 * (1 + error / 2), rtol=1e-6)


def test_adaptive_kl_settings_and_what_is_not_known():
    state = after(schedules.adaptive_kl, 0.5, 2.2, 10, target=2.0, horizon=100.0)
    np.testing.assert_allclose(state.value, 0.5 * 1.01, rtol=1e-6)
    for kl in (jnp.nan, jnp.inf):
        np.testing.assert_array_equal(after(schedules.adaptive_kl, 0.5, kl, 10).value, 0.5)


def test_adaptive_kl_holds_a_policy_at_its_target():
    """A bandit whose policy is the optimum at the current strength: KL falls with it."""
    log_reference = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    rewards = jnp.array([1.0, 0.0, 2.0])

    def step(_, state):
        policy = log_reference + rewards / state.value
        kl = divergences.categorical_kl(policy, log_reference)
        return schedules.adaptive_kl(state, kl, 100, target=0.3, horizon=1000.0)

    state = jax.jit(lambda s: jax.lax.fori_loop(0, 500, step, s))(Coefficient(SCALARS(0.1)))
    reached = divergences.categorical_kl(log_reference + rewards / state.value, log_reference)
    np.testing.assert_allclose(reached, 0.3, rtol=1e-3)


# --- adaptive entropy --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "used", "following"),
    [(0.1, 0.02, 0.025), (0.2, 0.02, 0.025), (0.3, 0.0, 0.015), (math.nan, 0.0, 0.02)],
)
def test_adaptive_entropy_by_hand(entropy, used, following):
    state, coefficient = after(schedules.adaptive_entropy, 0.02, entropy)
    np.testing.assert_allclose([coefficient, state.value], [used, following], rtol=1e-6)


def test_adaptive_entropy_stays_within_its_limits():
    settings = {"target": 1.0, "step": 0.5, "low": 0.25, "high": 0.75}
    assert after(schedules.adaptive_entropy, 0.5, 0.9, **settings)[0].value == 0.75
    assert after(schedules.adaptive_entropy, 0.5, 1.1, **settings)[0].value == 0.25
    assert after(schedules.adaptive_entropy, 0.002, 9.0)[0].value == 0.0
    assert after(schedules.adaptive_entropy, 1e6, 0.0, step=1e6)[0].value == 2e6


@pytest.mark.parametrize("name", ["adaptive_kl", "adaptive_entropy"])
def test_controllers_carry_no_gradient(name):
    rest = (10,) if name == "adaptive_kl" else ()

    def total(value, measured):
        result = getattr(schedules, name)(Coefficient(value), measured, *rest)
        return sum(jax.tree.leaves(result))

    for gradient in grad(total, argnums=(0, 1))(SCALARS(0.5), SCALARS(0.1)):
        assert gradient == 0.0


# --- schedules ---------------------------------------------------------------------------------


def dynamic(places, **settings):
    with jax.enable_x64(True):
        each = jax.vmap(lambda s: schedules.dynamic_kl_coefficient(s, **settings))
        return np.asarray(jax.jit(each)(jnp.asarray(places, float)))


def test_dynamic_kl_by_hand():
    values = dynamic([0, 15, 30, 65, 100, 101, 900], low=0.0, high=0.02)
    np.testing.assert_allclose(values, [0.01, 0.005, 0.0, 0.01, 0.02, 0.02, 0.02], atol=1e-12)
    np.testing.assert_allclose(dynamic([0, 30, 100]), [0.07, 0.04, 0.1], atol=1e-12)
    other = dynamic([0, 4, 6, 8], steps=8, low=1.0, high=3.0, explore=0.5)
    np.testing.assert_allclose(other, [2.0, 1.0, 2.0, 3.0], atol=1e-12)


def test_dynamic_kl_falls_then_rises_and_is_continuous():
    values = dynamic(np.linspace(0, 100, 1001))
    assert np.all(np.diff(values[:301]) < 0)
    assert np.all(np.diff(values[300:]) > 0)
    around = dynamic(np.array([30 - 1e-9, 30 + 1e-9]))
    np.testing.assert_allclose(around, 0.04, atol=1e-9)
    fine = dynamic(np.linspace(0, 100, 200_001), low=0.0, high=0.02)
    np.testing.assert_allclose(np.trapezoid(fine) / 200_000, 0.0085, atol=1e-8)


def test_dynamic_kl_at_the_ends_of_its_settings():
    constant = dynamic([0, 10, 30, 70, 100, 300], low=0.05, high=0.05)
    np.testing.assert_array_equal(constant, 0.05)
    rising = dynamic([0, 50, 100], explore=0.0)
    np.testing.assert_allclose(rising, [0.04, 0.07, 0.1], atol=1e-12)
    falling = dynamic([0, 50, 100, 200], explore=1.0)
    np.testing.assert_allclose(falling, [0.07, 0.055, 0.04, 0.04], atol=1e-12)
    np.testing.assert_allclose(dynamic([-5], explore=0.0), 0.04, atol=1e-12)
    np.testing.assert_allclose(dynamic([-5]), 0.07, atol=1e-12)
    # Every number may be traced.
    traced = jax.jit(lambda t, w: schedules.dynamic_kl_coefficient(30, steps=t, explore=w))
    np.testing.assert_allclose(traced(100, 0.3), 0.04, rtol=1e-6)


def test_annealing_by_hand():
    each = jax.jit(jax.vmap(schedules.annealed_coefficient))
    values = each(jnp.array([0, 40, 80, 81, 280]))
    np.testing.assert_allclose(values, [0.005, 0.003, 0.001, 0.001, 0.001], rtol=1e-5)
    other = run(schedules.annealed_coefficient, 3, initial=1.0, decrement=0.25, floor=0.125)
    assert other == 0.25
    assert run(schedules.annealed_coefficient, 9, initial=1.0, decrement=0.0, floor=0.125) == 1.0


# --- in a loss ---------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, REFERENCE = RNG.normal(-2, 0.3, (3, 4, 3)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1]], np.float32)


def grpo(logp, rewards, beta):
    advantage = advantages.group_relative(rewards).reshape(-1, 1)
    loss = losses.ppo_clip(logp, BEHAVIOR, advantage)
    loss += beta * losses.kl_penalty(logp, REFERENCE, gradient="k3")
    return masking.reduce(loss, MASK, mode="sequence")


def test_grpo_d_with_equal_bounds_is_grpo_bit_for_bit():
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    slope = grad(
        lambda x, step: grpo(
            x, rewards, schedules.dynamic_kl_coefficient(step, low=0.04, high=0.04)
        )
    )
    constant = grad(lambda x, beta: grpo(x, rewards, beta))(LOGP, jnp.float32(0.04))
    for step in (0, 50):
        np.testing.assert_array_equal(slope(LOGP, step), constant)


def test_a_group_of_equal_rewards_still_feels_the_kl():
    slope = grad(lambda x, beta: grpo(x, np.ones((2, 2), np.float32), beta))(LOGP, 0.1)
    x = REFERENCE - LOGP
    weights = MASK / MASK.sum(1, keepdims=True) / 4
    np.testing.assert_allclose(slope, 0.1 * (1 - np.exp(x)) * weights, atol=1e-7)


# --- mistakes ----------------------------------------------------------------------------------


def call(name, **settings):
    function = getattr(losses if name == "entropy_bonus" else schedules, name)
    values = {"state": Coefficient(SCALARS(0.1)), "samples": 1, "step": 1}
    given = [
        values.get(p.name, SCALARS(0.1))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return function(*given, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "named", "legal"),
    [
        ("adaptive_kl", {"target": 0.0}, "target", {"target": 1e-3}),
        ("adaptive_kl", {"horizon": 0.0}, "horizon", {"horizon": 1e-3}),
        ("adaptive_entropy", {"step": -0.1}, "step", {"step": 0.0}),
        ("adaptive_entropy", {"low": 2.0, "high": 1.0}, "low", {"low": 1.0, "high": 1.0}),
        ("dynamic_kl_coefficient", {"steps": 0}, "steps", {"steps": 0.5}),
        ("dynamic_kl_coefficient", {"low": 0.2}, "low", {"low": 0.1}),
        ("dynamic_kl_coefficient", {"explore": 1.1}, "explore", {"explore": 1.0}),
        ("dynamic_kl_coefficient", {"explore": -0.1}, "explore", {"explore": 0.0}),
        ("annealed_coefficient", {"decrement": -0.1}, "decrement", {"decrement": 0.0}),
        ("annealed_coefficient", {"floor": 0.1}, "floor", {"floor": 5e-3}),
        ("entropy_bonus", {"coefficient": -0.1}, "coefficient", {"coefficient": 0.0}),
    ],
)
def test_bad_numbers_are_named(name, settings, named, legal):
    with pytest.raises(ValueError, match=f"^{named} is"):
        call(name, **settings)
    call(name, **legal)
