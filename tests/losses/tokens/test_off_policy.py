"""DRO and DPPO: hand-computed values, float64 references, reductions, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses

LOGP = np.random.default_rng(0).normal(-2, 0.5, size=(3, 4)).astype(np.float32)
ADVANTAGES = np.array([[1.5], [-0.5], [2.0]], np.float32)
FUNCTIONS = {
    "dro": lambda *x: losses.dro(*x, beta=0.5),
    "dppo_tv": losses.dppo_tv,
    "dppo_kl": losses.dppo_kl,
}
SLOPES = {
    name: grad(lambda x, b, a, f=f: f(x, b, a).sum(), argnums=(0, 1, 2))
    for name, f in FUNCTIONS.items()
}


def at(function, current, before, advantages, **settings):
    """Losses over -A logp at given probabilities: the weight of each token."""
    logp = jnp.log(jnp.array([current]))
    advantages = jnp.array([advantages])
    loss = run(function, logp, jnp.log(jnp.array([before])), advantages, **settings)
    return np.asarray(loss / (-advantages * logp))[0]


def binary_kl(q, p):
    return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))


# --- hand numbers ----------------------------------------------------------------------------


def test_dro_by_hand():
    # -1.5 * -1 + 0.25 * 0.5^2, and its minimum at behaviour + A / beta.
    loss = run(losses.dro, jnp.array([[-1.0]]), jnp.array([[-1.5]]), jnp.array([[1.5]]), beta=0.5)
    np.testing.assert_allclose(loss, 1.5625, rtol=1e-6)
    slope = SLOPES["dro"](jnp.array([[-3.0]]), jnp.array([[-1.0]]), jnp.array([[-1.0]]))[0]
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_total_variation_bounds_the_probability_not_its_ratio():
    # Rare tokens may double; likely ones may not move by more than 0.2.
    weights = at(losses.dppo_tv, [0.02, 0.69, 0.71, 0.71], [0.01, 0.5, 0.5, 0.5], [1.0, 1, 1, -1])
    np.testing.assert_allclose(weights, [2.0, 1.38, 0.0, 1.42], rtol=1e-5)
    weights = at(losses.dppo_tv, [0.31, 0.29, 0.29], [0.5, 0.5, 0.5], [-1.0, -1, 1])
    np.testing.assert_allclose(weights, [0.62, 0.0, 0.58], rtol=1e-5)
    settings = {"clip_low": 0.05, "clip_high": 0.5, "cap": 1.5}
    weights = at(losses.dppo_tv, [0.9, 0.44, 0.46], [0.45, 0.5, 0.5], [1.0, -1, -1], **settings)
    np.testing.assert_allclose(weights, [1.5, 0.0, 0.92], rtol=1e-5)
    far = at(losses.dppo_tv, [0.1], [0.001], [1.0])
    np.testing.assert_allclose(far, 20.0, rtol=1e-5)


def test_the_bounds_themselves_are_inside():
    # 0.75 - 0.5 and 0.25 - 0.5 are exact.
    for current, advantage, name in ((0.75, 1.0, "clip_high"), (0.25, -1.0, "clip_low")):
        for width, inside in ((0.25, True), (0.249, False)):
            weight = at(losses.dppo_tv, [current], [0.5], [advantage], **{name: width})
            assert (weight[0] != 0) == inside


def test_binary_kl_by_hand():
    assert binary_kl(0.5, 0.75) == pytest.approx(0.143841, abs=1e-6)
    for width, inside in ((0.145, True), (0.142, False)):
        for current, advantage, name in ((0.75, 1.0, "clip_high"), (0.25, -1.0, "clip_low")):
            weight = at(losses.dppo_kl, [current], [0.5], [advantage], **{name: width})
            expected = current / 0.5 if inside else 0.0
            np.testing.assert_allclose(weight, [expected], rtol=1e-5)
            # Back towards the behaviour policy every token may go.
            back = at(losses.dppo_kl, [current], [0.5], [-advantage], clip_low=0.0, clip_high=0.0)
            np.testing.assert_allclose(back, [current / 0.5], rtol=1e-5)
    # The defaults lie at 0.2: binary_kl(0.5, 0.79) = 0.2052, of 0.78 0.1880.
    for far, near in ((0.79, 0.78), (0.21, 0.22)):
        sign = 1.0 if far > 0.5 else -1.0
        weights = at(losses.dppo_kl, [far, near], [0.5, 0.5], [sign, sign])
        np.testing.assert_allclose(weights, [0.0, near / 0.5], rtol=1e-5)
    tight = at(losses.dppo_kl, [0.4], [0.01], [1.0], clip_high=9.0)
    np.testing.assert_allclose(tight, 20.0, rtol=1e-5)
    capped = at(losses.dppo_kl, [0.4], [0.1], [1.0], clip_high=9.0, cap=3.0)
    np.testing.assert_allclose(capped, 3.0, rtol=1e-5)


# --- against the formulas --------------------------------------------------------------------


def reference(name, logp, behavior, advantages):
    """Loss and gradient in numpy."""
    delta, p, q = logp - behavior, np.exp(logp), np.exp(behavior)
    if name == "dro":
        return -(advantages * logp - 0.25 * delta**2), -advantages + 0.5 * delta
    if name == "dppo_tv":
        inside = np.where(advantages > 0, p - q <= 0.2, p - q >= -0.2)
    else:
        near = binary_kl(q, p) <= 0.2
        inside = np.where(advantages > 0, near | (p <= q), near | (p >= q))
    weight = -np.minimum(np.exp(delta), 20.0) * advantages * inside
    return weight * logp, weight


@pytest.mark.parametrize("name", FUNCTIONS)
@given(seed=st.integers(0, 10_000))
def test_value_and_gradient_follow_the_formula(name, seed):
    rng = np.random.default_rng(seed)
    arguments = np.log(rng.uniform(0.02, 0.98, (2, 3, 4))), rng.normal(size=(3, 4))
    arguments = (*arguments[0], arguments[1])
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in arguments]
        value, slope = run(FUNCTIONS[name], *given), SLOPES[name](*given)[0]
    expected, expected_slope = reference(name, *arguments)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_policy_the_gradient_is_that_of_reinforce_and_the_rest_is_stopped(name):
    slope, *stopped = SLOPES[name](LOGP, LOGP, ADVANTAGES)
    np.testing.assert_allclose(slope, np.broadcast_to(-ADVANTAGES, (3, 4)), rtol=1e-6)
    for gradient in (*stopped, *SLOPES[name](LOGP + 0.1, LOGP, ADVANTAGES)[1:]):
        np.testing.assert_array_equal(gradient, 0.0)


def test_dro_is_reinforce_and_a_squared_kl_to_the_behaviour():
    behavior = LOGP - 0.3
    penalty = run(losses.kl_penalty, LOGP, behavior, value="k2", gradient="k2")
    expected = run(losses.reinforce, LOGP, ADVANTAGES) + 0.5 * penalty
    np.testing.assert_allclose(run(FUNCTIONS["dro"], LOGP, behavior, ADVANTAGES), expected)


def test_without_bounds_dppo_is_cispo_with_its_cap():
    behavior = LOGP + np.float32(1.0) * np.sign(ADVANTAGES)
    expected = run(losses.cispo, LOGP, behavior, ADVANTAGES, cap_high=2.0)
    wide = {"clip_low": 1.0, "clip_high": 1.0, "cap": 2.0}
    for function in (losses.dppo_tv, losses.dppo_kl):
        np.testing.assert_array_equal(run(function, LOGP, behavior, ADVANTAGES, **wide), expected)


# --- edges and mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_excluded_and_certain_tokens_are_finite(name, sign):
    logp = jnp.array([[-np.inf, -np.inf, -1.0, 0.0, 0.0, -1.0]])
    behavior = jnp.array([[-1.0, -np.inf, -np.inf, 0.0, -1.0, 0.0]])
    advantages = jnp.array([[sign]])
    assert np.all(np.isfinite(run(FUNCTIONS[name], logp, behavior, advantages)))
    gradients = SLOPES[name](logp, behavior, advantages)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    np.testing.assert_array_equal(gradients[0][0, :2], 0.0)
    if name == "dppo_kl":
        # A token that has become certain, and one that was: infinitely far, if it goes on.
        moved = np.asarray(gradients[0])[0, 4:] != 0
        np.testing.assert_array_equal(moved, [sign < 0, sign > 0])


def test_an_infinite_bound_lets_go_what_has_become_certain():
    logp, behavior = jnp.array([[0.0, -900.0]]), jnp.array([[-1.0, -1.0]])
    wide = {"clip_low": np.inf, "clip_high": np.inf}
    for advantage in (1.0, -1.0):
        loss = lambda x, a=advantage: losses.dppo_kl(x, behavior, jnp.array([[a]]), **wide).sum()  # noqa: E731
        np.testing.assert_array_equal(grad(loss)(logp) != 0, True)


def test_a_probability_that_rounding_lifts_above_one_is_one():
    logp, behavior = jnp.array([[1e-7]]), jnp.array([[0.0]])
    slope = grad(lambda x: losses.dppo_kl(x, behavior, jnp.ones((1, 1))).sum())(logp)
    np.testing.assert_allclose(slope, -1.0, rtol=1e-5)
    # From 1, not from more, to exp(-1): a divergence of 1 nat.
    slope = grad(
        lambda x: losses.dppo_kl(x, jnp.array([[0.5]]), -jnp.ones((1, 1)), clip_low=1.5).sum()
    )
    assert slope(jnp.array([[-1.0]])) != 0


@pytest.mark.parametrize(
    "logp, behavior, sign, stays",
    [
        (-0.1, -np.inf, 1.0, False),  # log(1 / (1 - p)) = 2.35 nats of the others
        (-3.0, -np.inf, 1.0, True),  # 0.05 nats
        (-0.1, 0.0, -1.0, True),  # log(q / p) = 0.1 nats of this one
        (-0.2, 0.0, -1.0, True),  # exactly at the bound
        (-0.3, 0.0, -1.0, False),
    ],
)
def test_divergence_of_a_token_from_never_and_from_always(logp, behavior, sign, stays):
    arrays = [jnp.full((1, 1), x, jnp.float32) for x in (logp, behavior, sign)]
    bound = float(np.float32(0.2))  # -0.2 in float32
    loss = lambda x: losses.dppo_kl(x, *arrays[1:], clip_low=bound, clip_high=bound).sum()  # noqa: E731
    assert (grad(loss)(arrays[0]) != 0) == stays


def test_bad_arguments_are_named():
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="behavior_logp"):
            function(LOGP, LOGP[:2], ADVANTAGES)
        with pytest.raises(ValueError, match="advantages"):
            function(LOGP, LOGP, ADVANTAGES[:, 0])
    with pytest.raises(ValueError, match="beta"):
        losses.dro(LOGP, LOGP, ADVANTAGES, beta=-0.1)
    np.testing.assert_array_equal(
        losses.dro(LOGP, LOGP - 1.0, ADVANTAGES, beta=0.0), losses.reinforce(LOGP, ADVANTAGES)
    )
    for function in (losses.dppo_tv, losses.dppo_kl):
        for name in ("clip_low", "clip_high"):
            with pytest.raises(ValueError, match=name):
                function(LOGP, LOGP, ADVANTAGES, **{name: -0.1})
            run(function, LOGP, LOGP, ADVANTAGES, **{name: 0.0})
    for name in ("clip_low", "clip_high"):
        run(losses.dppo_tv, LOGP, LOGP, ADVANTAGES, **{name: 1.0})
        with pytest.raises(ValueError, match=name):
            losses.dppo_tv(LOGP, LOGP, ADVANTAGES, **{name: 1.1})
