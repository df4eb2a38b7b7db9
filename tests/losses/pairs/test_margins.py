"""Every pair loss by name: one pair by hand, the reference, invariances, optima, edges."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import agrees_with

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def sppo_pair(chosen, rejected, *, beta):
    ones = jnp.ones_like(chosen)
    return losses.sppo(chosen, ones, eta=1 / beta) + losses.sppo(rejected, 0 * ones, eta=1 / beta)


def xpo(chosen, rejected, *, beta):
    return losses.xpo(chosen, rejected, jnp.full_like(chosen, -4.0), beta=beta, alpha=0.01)


cdpo = functools.partial(losses.dpo, label_smoothing=0.1)
robust = functools.partial(losses.robust_dpo, flip_rate=0.1)
discopop = functools.partial(losses.discopop, tau=0.05)
# name: (loss, value at log-ratios (1, -1/2) and beta .1, at the reference, of the margin alone)
TABLE = {
    "dpo": (losses.dpo, 0.620957, math.log(2), True),
    "cdpo": (cdpo, 0.635957, math.log(2), True),
    "robust_dpo": (robust, 0.602207, math.log(2), True),
    "hinge": (losses.hinge, 0.85, 1.0, True),
    "ipo": (losses.ipo, 12.25, 25.0, True),
    "exponential_margin": (losses.exponential_margin, math.exp(-0.15), 1.0, True),
    "linear_margin": (losses.linear_margin, 0.85, 1.0, True),
    "exo": (losses.exo, 2.505517, 0.5 * math.log(0.25 / 0.999e-3), True),
    "discopop": (discopop, 0.849338, (1 + math.log(2)) / 2, True),
    "xpo": (xpo, 0.620957 - 0.04, math.log(2) - 0.04, True),
    "nca": (losses.nca, 1.350825, 2 * math.log(2), False),
    "bco": (losses.bco, 1.312856, 2 * math.log(2), False),
    "apo_zero": (losses.apo_zero, 0.962523, 1.0, False),
    "apo_down": (losses.apo_down, 0.987549, 1.0, False),
    "sppo": (sppo_pair, 36.25, 50.0, False),
}
MARGINS = ("exponential_margin", "linear_margin", "hinge", "robust_dpo", "exo", "discopop")


@pytest.mark.parametrize("name", TABLE)
def test_values_by_hand_and_invariance(name):
    loss, value, start, of_margin = TABLE[name]
    chosen, rejected = jnp.array([1.0, 0.0, 3.0]), jnp.array([-0.5, 0.0, 1.5])
    result = loss(chosen, rejected, beta=0.1)
    np.testing.assert_allclose(result[:2], [value, start], atol=1.1e-6)
    assert np.isclose(result[2], result[0], atol=1e-9) == of_margin


def soft(z):
    return np.logaddexp(0.0, -z)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def relative(q, epsilon):
    return q * np.log(q / (1 - epsilon)) + (1 - q) * np.log((1 - q) / epsilon)


def blend(z, tau):
    m = sigmoid(z / tau)
    return (1 - m) * soft(z) + m * np.exp(-z)


REFERENCES = {
    "dpo": lambda w, r: soft(0.1 * (w - r)),
    "cdpo": lambda w, r: 0.9 * soft(0.1 * (w - r)) + 0.1 * soft(0.1 * (r - w)),
    "robust_dpo": lambda w, r: (0.9 * soft(0.1 * (w - r)) - 0.1 * soft(0.1 * (r - w))) / 0.8,
    "hinge": lambda w, r: np.maximum(0, 1 - 0.1 * (w - r)),
    "ipo": lambda w, r: (w - r - 5) ** 2,
    "exponential_margin": lambda w, r: np.exp(-0.1 * (w - r)),
    "linear_margin": lambda w, r: 1 - 0.1 * (w - r),
    "exo": lambda w, r: relative(sigmoid(0.1 * (w - r)), 1e-3),
    "discopop": lambda w, r: blend(0.1 * (w - r), 0.05),
    "xpo": lambda w, r: soft(0.1 * (w - r)) - 0.04,
    "nca": lambda w, r: soft(0.1 * w) + soft(-0.1 * w) / 2 + soft(-0.1 * r) / 2,
    "bco": lambda w, r: soft(0.1 * w) + soft(-0.1 * r),
    "apo_zero": lambda w, r: 1 - sigmoid(0.1 * w) + sigmoid(0.1 * r),
    "apo_down": lambda w, r: sigmoid(0.1 * w) + 1 - sigmoid(0.1 * (w - r)),
    "sppo": lambda w, r: (w - 5) ** 2 + (r + 5) ** 2,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", TABLE)
def test_value_and_gradient_are_those_of_the_formula(name):
    agrees_with(functools.partial(TABLE[name][0], beta=0.1), REFERENCES[name], 2, scale=6.0)


# Where the mean loss of a pair that is preferred with probability p (of an answer chosen with
# frequency p) is stationary, as (chosen, rejected) at beta 1.
P = 0.8
LOG_ODDS = math.log(P / (1 - P))
OPTIMA = {
    "dpo": LOG_ODDS,
    "cdpo": math.log((P * 0.8 + 0.1) / (1 - P * 0.8 - 0.1)),
    "ipo": (2 * P - 1) / 2,
    "exo": (2 * P - 1) * math.log(0.999 / 0.001),
    "bco": LOG_ODDS,
    "exponential_margin": LOG_ODDS / 2,
    "nca": math.log(P / 0.5),
    "sppo": (2 * P - 1) / 2,
}


@pytest.mark.parametrize("name", OPTIMA)
def test_optimum_of_a_noisy_pair(name):
    loss = functools.partial(TABLE[name][0], beta=1.0)
    mean = lambda x: (P * loss(x, 0 * x) + (1 - P) * loss(0 * x, x)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(mean)(jnp.array([OPTIMA[name]])), 0.0, atol=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_which_way_a_pair_pulls_at_the_reference(name):
    zero, loss = jnp.zeros(1), functools.partial(TABLE[name][0], beta=1.0)
    slopes = jax.grad(lambda w, r: loss(w, r).sum(), argnums=(0, 1))(zero, zero)
    signs = [int(np.sign(round(float(s[0]), 12))) for s in slopes]
    assert signs == {"apo_down": [0, 1], "discopop": [1, -1]}.get(name, [-1, 1])


def test_averaged_log_ratios_give_the_length_normalised_losses():
    chosen, rejected = jnp.array([1.0]) / 5, jnp.array([-0.5]) / 6
    np.testing.assert_allclose(losses.dpo(chosen, rejected, beta=0.1), 0.679081, atol=1e-6)
    np.testing.assert_allclose(losses.ipo(chosen, rejected, beta=0.1), 22.246944, atol=1e-6)


def test_defaults():
    pair = jnp.array([3.0]), jnp.array([-1.0])
    for loss, keywords in (
        (losses.hinge, {"beta": 0.05}),
        (losses.robust_dpo, {"beta": 0.1, "flip_rate": 0.1}),
        (losses.exo, {"beta": 0.1, "epsilon": 1e-3}),
        (losses.exponential_margin, {"beta": 0.1}),
        (losses.linear_margin, {"beta": 0.1}),
        (losses.discopop, {"beta": 0.05, "tau": 0.05}),
    ):
        np.testing.assert_array_equal(loss(*pair), loss(*pair, **keywords))
    low = jnp.array([-9.0])
    np.testing.assert_array_equal(
        losses.xpo(*pair, low), losses.xpo(*pair, low, beta=0.1, alpha=1e-5)
    )


def test_hinge_is_flat_from_a_margin_of_one():
    slope = jax.grad(lambda x: losses.hinge(x, 0 * x, beta=0.5).sum())(jnp.array([1.9, 2.0, 2.1]))
    np.testing.assert_array_equal(slope, [-0.5, 0.0, 0.0])


def test_robust_dpo_is_unbiased_and_by_hand():
    z = jnp.array([0.0, 1.0, 5.0])
    loss = functools.partial(losses.robust_dpo, beta=1.0, flip_rate=0.2)
    np.testing.assert_allclose(loss(z, 0 * z), [0.693147, -0.020072, -1.659951], atol=1e-6)
    mean = 0.8 * loss(z, 0 * z) + 0.2 * loss(0 * z, z)
    np.testing.assert_allclose(mean, losses.dpo(z, 0 * z, beta=1.0), rtol=1e-12)
    np.testing.assert_array_equal(losses.robust_dpo(z, 0 * z, flip_rate=0.0), losses.dpo(z, 0 * z))
    each = losses.robust_dpo(z, 0 * z, flip_rate=jnp.array([0.0, 0.1, 0.2]))
    np.testing.assert_allclose(each[1], losses.robust_dpo(z, 0 * z, flip_rate=0.1)[1])


def test_robust_dpo_stops_at_its_largest_margin():
    z = jnp.array([1.9, 2.0, 2.1, -3.0])
    loss = lambda x: losses.robust_dpo(x, 0 * x, beta=1.0, flip_rate=0.2, max_margin=2.0)  # noqa: E731
    edge = losses.robust_dpo(jnp.array([2.0, -2.0]), jnp.zeros(2), beta=1.0, flip_rate=0.2)
    np.testing.assert_allclose(loss(z)[1:3], edge[jnp.array([0, 0])], rtol=1e-12)
    early = losses.robust_dpo(z, 0 * z, beta=1.0, flip_rate=0.2, max_margin=0.5)
    np.testing.assert_allclose(early[0], math.log1p(math.exp(-0.5)) - 0.5 / 3, rtol=1e-12)
    slope = jax.grad(lambda x: loss(x).sum())(z)
    np.testing.assert_allclose(slope[:2], -jax.nn.sigmoid(-z[:2]) - 1 / 3, rtol=1e-12)
    np.testing.assert_array_equal(slope[2], 0.0)
    # A pair in the wrong order is put right, however far its margin.
    np.testing.assert_allclose(slope[3], -jax.nn.sigmoid(3.0) - 1 / 3, rtol=1e-12)


def test_optimum_of_exo():
    p, epsilon = 0.8, 0.01
    z = jnp.array([(2 * p - 1) * math.log((1 - epsilon) / epsilon)])
    loss = functools.partial(losses.exo, beta=1.0, epsilon=epsilon)
    mean = lambda x: (p * loss(x, 0 * x) + (1 - p) * loss(0 * x, x)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(mean)(z), 0.0, atol=1e-12)


def test_discopop_rises_through_zero_and_stays_finite_far_out():
    slope = jax.grad(lambda x: losses.discopop(x, 0 * x, beta=1.0).sum())
    np.testing.assert_allclose(slope(jnp.zeros(1)), 5 * (1 - math.log(2)) - 0.75, rtol=1e-9)
    z = jnp.array([-60.0, 49.0, 50.0, 60.0])
    loss = losses.discopop(z, 0 * z, beta=1.0, tau=1e3)
    m = 1 / (1 + np.exp(-z / 1e3))
    near = np.clip(z, -20, 20)
    far = np.exp(-near) / (1 + np.exp(-near / 1e3))
    np.testing.assert_allclose(loss, (1 - m) * np.log1p(np.exp(-z)) + far, rtol=1e-9)


def test_the_exponential_is_bounded_and_keeps_its_slope_far_out():
    z = jnp.array([-60.0, -20.0, 19.0, 60.0])
    loss = lambda x: losses.exponential_margin(x, 0 * x, beta=1.0)  # noqa: E731
    np.testing.assert_allclose(loss(z), np.exp(-np.clip(z, -20, 20)), rtol=1e-12)
    slope = jax.grad(lambda x: loss(x).sum())(z)
    np.testing.assert_allclose(slope, -np.exp([20.0, 20.0, -19.0, -20.0]), rtol=1e-12)


def test_the_gain_of_a_flipped_label_is_linear_in_the_margin():
    z = jnp.linspace(-4.0, 4.0, 5)
    slope = lambda loss: jax.grad(lambda x: loss(x, 0 * x, beta=1.0).sum())(z)  # noqa: E731
    robust = functools.partial(losses.robust_dpo, flip_rate=0.2)
    np.testing.assert_allclose(slope(robust) - slope(losses.dpo), -0.2 / 0.6, rtol=1e-12)
    smoothed = functools.partial(losses.dpo, label_smoothing=0.2)
    np.testing.assert_allclose(slope(smoothed) - slope(losses.dpo), 0.2, rtol=1e-12)


def test_the_mean_gradient_over_flipped_copies_is_the_clean_one():
    z, rate, copies = 0.7, 0.2, 100_000
    flipped = np.random.default_rng(0).uniform(size=copies) < rate
    signs = jnp.asarray(np.where(flipped, -1.0, 1.0))
    loss = lambda x: losses.robust_dpo(signs * x, 0 * signs, beta=1.0, flip_rate=rate)  # noqa: E731
    each = np.asarray(jax.jvp(loss, (z,), (1.0,))[1])
    error = each.std() / np.sqrt(copies)
    assert abs(each.mean() + 1 / (1 + math.exp(z))) < 3 * error


@pytest.mark.parametrize("name", TABLE)
def test_edges_are_finite(name):
    inf = jnp.inf
    chosen = jnp.array([-inf, inf, jnp.nan, 5000.0, -5000.0])
    both = jax.value_and_grad(lambda w, r: TABLE[name][0](w, r, beta=0.1).sum(), argnums=(0, 1))
    value, slopes = both(chosen, jnp.zeros(5))
    assert np.isfinite(value) and np.all(np.isfinite(slopes))
    np.testing.assert_array_equal(slopes[0][:3], 0.0)


@pytest.mark.parametrize("name", MARGINS)
def test_bad_arguments(name):
    loss, zero = TABLE[name][0], jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        loss(zero, zero, beta=0.0)
    with pytest.raises(ValueError, match="rejected_logratio"):
        loss(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="chosen_logratio"):
        loss(zero[None], zero[None])


def test_bad_settings():
    zero = jnp.zeros(2)
    for rate in (-0.1, 0.5):
        with pytest.raises(ValueError, match="flip_rate"):
            losses.robust_dpo(zero, zero, flip_rate=rate)
    with pytest.raises(ValueError, match="max_margin"):
        losses.robust_dpo(zero, zero, max_margin=0.0)
    for epsilon in (0.0, 0.51):
        with pytest.raises(ValueError, match="epsilon"):
            losses.exo(zero, zero, epsilon=epsilon)
    with pytest.raises(ValueError, match="tau"):
        losses.discopop(zero, zero, tau=0.0)
    with pytest.raises(ValueError, match="alpha"):
        losses.xpo(zero, zero, zero, alpha=-1.0)
    with pytest.raises(ValueError, match="reference_sample_logp"):
        losses.xpo(zero, zero, jnp.zeros(3))
