import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad

from polgrad import divergences, losses
from polgrad.ratios import (
    bounded,
    finite,
    importance_ratio,
    impossible,
    log_ratio,
    penalty_log_ratio,
)

INF = np.inf
CURRENT = jnp.array([-1.0, -INF, -1.0, -INF, -50.0, -1.0, -1.0, -21.0])
BEHAVIOR = jnp.array([-1.5, -1.0, -INF, -INF, -1.0, -50.0, -1.0, -1.0])


def test_every_pair_of_finite_and_infinite():
    expected = [0.5, -20.0, 20.0, 0.0, -20.0, 20.0, 0.0, -20.0]
    np.testing.assert_allclose(log_ratio(CURRENT, BEHAVIOR), expected)
    ratios = importance_ratio(CURRENT, BEHAVIOR)
    np.testing.assert_allclose(ratios, np.exp(expected) * [1, 0, 1, 1, 1, 1, 1, 1], rtol=1e-5)
    assert ratios[1] == 0.0


def test_gradient_is_one_inside_the_limits_and_zero_elsewhere():
    gradient = jax.grad(lambda x: log_ratio(x, BEHAVIOR).sum())(CURRENT)
    # The last entry sits exactly on the limit, where jnp.clip would give one half.
    np.testing.assert_array_equal(gradient, [1, 0, 0, 0, 0, 0, 1, 1])
    gradient = jax.grad(lambda x: importance_ratio(x, BEHAVIOR).sum())(CURRENT)
    assert np.all(np.isfinite(gradient)) and gradient[1] == 0.0


def test_behavior_is_stopped():
    gradient = jax.grad(lambda x: importance_ratio(CURRENT, x).sum())(BEHAVIOR)
    np.testing.assert_array_equal(gradient, 0.0)


def test_bfloat16_differences_are_formed_in_float32():
    a, b = jnp.bfloat16(-7.03125), jnp.bfloat16(-7.0)
    assert log_ratio(a, b).dtype == jnp.float32
    assert float(log_ratio(a, b)) == float(a) - float(b)


def test_a_nan_is_not_hidden():
    assert np.isnan(log_ratio(jnp.array([np.nan]), jnp.array([-1.0]))[0])


def test_no_nan_on_the_way():
    with jax.debug_nans(True):
        jax.jit(jax.value_and_grad(lambda x: importance_ratio(x, BEHAVIOR).sum()))(CURRENT)
        log_ratio(CURRENT, BEHAVIOR)


def test_a_penalty_has_the_values_of_a_ratio_and_the_gradient_of_the_log_probability():
    np.testing.assert_array_equal(
        penalty_log_ratio(CURRENT, BEHAVIOR), log_ratio(CURRENT, BEHAVIOR)
    )
    gradient = jax.grad(lambda x: penalty_log_ratio(x, BEHAVIOR).sum())(CURRENT)
    # Only a log-probability of minus infinity has none.
    np.testing.assert_array_equal(gradient, [1, 0, 0, 0, 1, 1, 1, 1])
    stopped = jax.grad(lambda x: penalty_log_ratio(CURRENT, x).sum())(BEHAVIOR)
    np.testing.assert_array_equal(stopped, 0.0)
    assert np.isnan(penalty_log_ratio(jnp.array([np.nan]), jnp.array([-1.0]))[0])


def test_a_bounded_number_keeps_its_gradient():
    x = jnp.array([-INF, -1e9, -3.0, 0.5, 2.0, INF])
    value, pullback = jax.vjp(lambda x: bounded(x, low=-1.0, high=1.0), x)
    np.testing.assert_array_equal(value, [-1.0, -1.0, -1.0, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(pullback(jnp.ones(6))[0], [0, 1, 1, 1, 1, 0])


def tokens(loss):
    """A loss of token log-probabilities [B, 1] as a function of the log ratios x [B]."""
    return lambda x: loss(x[:, None], jnp.zeros_like(x)[:, None])[:, 0]


def none(x):
    """Advantages of 0: the penalty is then alone."""
    return jnp.zeros_like(x)


# (function of the log ratio x to the policy that is held on to, its slope at x).
PENALTIES = {
    "kl_penalty": (tokens(losses.kl_penalty), lambda x: x),
    "kl_penalty k3": (
        tokens(lambda p, q: losses.kl_penalty(p, q, gradient="k3")),
        lambda x: -np.expm1(-x),
    ),
    "dro": (tokens(lambda p, q: losses.dro(p, q, none(p), beta=2.0)), lambda x: 2.0 * x),
    "behavior_kl": (tokens(losses.behavior_kl), lambda x: -np.ones_like(x)),
    "behavior_kl k3": (tokens(lambda p, q: losses.behavior_kl(p, q, kind="k3")), np.expm1),
    "kl_hinge": (
        lambda x: losses.kl_hinge(-losses.behavior_kl(x, none(x)), beta=2.0, delta=1.0),
        lambda x: 2.0 * np.maximum(x - 1.0, 0.0),
    ),
    "kl_cov": (
        tokens(lambda p, q: losses.kl_cov(p, q, none(p), p == p, kl_coefficient=3.0)),
        lambda x: 3.0 * np.sign(x),
    ),
    "kdrl": (
        tokens(lambda p, q: losses.kdrl(p, p, q, none(p), beta=0.5)),
        lambda x: 0.5 * x,
    ),
    "nft": (  # a right answer
        tokens(lambda p, q: losses.nft(p, q, 1.0 + none(p)[:, 0], 0.5 + none(p)[:, 0])),
        lambda x: -np.ones_like(x),
    ),
    "p3o_v2": (  # the second answer is the better one, and every log ratio is at fault
        lambda x: losses.p3o_v2(
            jnp.stack([x, none(x)], -1), jnp.zeros((len(x), 2)), jnp.array([[0.0, 2.0]] * len(x))
        ).sum(-1),
        lambda x: np.where(x > 0.2, 2.0 * 1.2, 0.0),
    ),
    "exponential_margin": (
        lambda x: losses.exponential_margin(x, none(x), beta=1.0),
        lambda x: -np.exp(-x),
    ),
    "alphapo": (
        lambda x: losses.alphapo(-abs(x), none(x), beta=1.0, gamma=0.0, alpha=0.25),
        None,
    ),
    "unlikelihood": (lambda x: losses.unlikelihood(-jnp.exp(-abs(x))), None),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_keeps_its_slope_beyond_twenty_nats(name):
    penalty, slope = PENALTIES[name]
    with jax.enable_x64(True):
        x = np.array([-900.0, -21.0, -20.0, 5.0, 20.0, 21.0, 900.0])
        found = np.asarray(grad(lambda x: penalty(x).sum())(jnp.asarray(x)))
        value = np.asarray(penalty(jnp.asarray(x)))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(found))
    # The value is bounded: it is the one at 20 nats.
    np.testing.assert_allclose(value[[0, 1]], value[2], rtol=1e-6)
    np.testing.assert_allclose(value[[5, 6]], value[4], rtol=1e-6)
    if slope is not None:
        np.testing.assert_allclose(found, slope(np.clip(x, -20.0, 20.0)), rtol=1e-9)


@pytest.mark.parametrize("kl", [divergences.categorical_kl, losses.top_k_kl])
def test_the_exact_kl_keeps_its_slope_beyond_twenty_nats(kl):
    """A teacher that gives the second token exp(-30): the student's share of it goes down."""
    logits, reference = jnp.array([0.0, 0.0]), jnp.array([30.0, 0.0])
    gradient = jax.grad(lambda z: kl(z, reference))(logits)
    # p (log ratio - KL) with the log ratio of the second token at 20 nats.
    ratio = np.array([-np.log(2.0), 20.0])
    np.testing.assert_allclose(gradient, 0.5 * (ratio - ratio.mean()), rtol=1e-5)


def test_the_exact_kl_keeps_the_slope_of_its_reference_too():
    logits, reference = jnp.array([0.0, 0.0]), jnp.array([30.0, 0.0])
    # Where the student is 30 nats above the teacher, the teacher's gradient is there too.
    gradient = jax.grad(lambda q: divergences.categorical_kl(logits, q))(reference)
    np.testing.assert_allclose(gradient, [0.5, -0.5], rtol=1e-5)


def test_a_long_answer_that_drifts_a_little_keeps_a_gradient():
    """400 tokens of 0.06 nats are 24 nats of a sequence."""
    logp = jnp.full((1, 400), -1.0)
    gradient = jax.grad(lambda x: losses.kl_penalty(x.sum(-1), logp.sum(-1)).sum())(logp + 0.06)
    np.testing.assert_allclose(gradient, 20.0, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.ppo_clip, losses.sapo])
def test_a_ratio_has_no_gradient_beyond_twenty_nats(loss):
    x = jnp.array([-900.0, -21.0, 21.0, 900.0])[:, None]
    # Advantages whose gradient no clip of PPO takes away: A > 0 below, A < 0 above.
    advantages = -jnp.sign(x)
    gradient = jax.grad(lambda p: loss(p, none(x), advantages).sum())(x)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_margin_of_dpo_is_free():
    """A margin is no penalty: neither its value nor its gradient is clamped."""
    z = jnp.array([-900.0, -21.0, 21.0])
    loss = losses.dpo(z, none(z), beta=1.0)
    np.testing.assert_allclose(loss, [900.0, 21.0, np.exp(-21.0)], rtol=1e-5)
    gradient = jax.grad(lambda x: losses.dpo(x, none(x), beta=1.0).sum())(z)
    np.testing.assert_allclose(gradient, [-1.0, -1.0, -np.exp(-21.0)], rtol=1e-5)


def test_where_a_sample_is_impossible():
    expected = [False, True, False, False, False, False, False, False]
    np.testing.assert_array_equal(impossible(CURRENT, BEHAVIOR), expected)


def test_ready_made_ratios_are_made_finite():
    ratios = jnp.array([1.5, INF, -INF, np.nan, 30.0])
    np.testing.assert_array_equal(finite(ratios), [1.5, 20.0, -20.0, 0.0, 30.0])
    np.testing.assert_array_equal(jax.grad(lambda x: finite(x).sum())(ratios), [1, 0, 0, 0, 1])
