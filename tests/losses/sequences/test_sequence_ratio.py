"""Sequence ratios: hand-computed values, float64 references, reductions to the token losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses

MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
ADVANTAGES = np.array([1.5, -0.5, 2.0], np.float32)
LOGP = np.random.default_rng(0).normal(-2, 0.5, size=(3, 4)).astype(np.float32)
FUNCTIONS = {
    "ppo_clip_sequence": losses.ppo_clip_sequence,
    "gmpo": losses.gmpo,
    "luspo": losses.luspo,
    "vespo": losses.vespo,
}


def drawn(seed, spread):
    """Log-probabilities, advantages of all signs and a mask, four tokens each."""
    rng = np.random.default_rng(seed)
    behavior = rng.normal(-2, 0.5, (3, 4))
    logp = behavior + rng.normal(0, spread, (3, 4))
    return logp, behavior, rng.normal(size=3), rng.random((3, 4)) < 0.7


def of_one(function, deltas, advantage, **settings):
    """The loss of one sequence with these log ratios."""
    x = jnp.asarray([deltas])
    return run(
        function, x, jnp.zeros_like(x), jnp.asarray([advantage]), jnp.ones(x.shape), **settings
    )


# --- hand numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deltas", "advantage", "expected"),
    [
        ((0.6, -0.1, 0.2), 1.0, -1.18136),
        ((0.6, -0.1, 0.2), -1.0, 1.26280),
        ((-0.6, -0.1, 0.2), 1.0, -0.84648),
        ((-0.6, -0.1, 0.2), -1.0, 0.90484),
    ],
)
def test_gmpo_clips_tokens_on_the_side_of_the_advantage(deltas, advantage, expected):
    np.testing.assert_allclose(of_one(losses.gmpo, deltas, advantage), expected, atol=1e-5)


def test_gmpo_with_bounds_of_its_own():
    x, settings = (0.6, -0.6, 0.2), {"clip_low": 0.1, "clip_high": 0.3}
    for advantage, mean in ((1.0, -0.1 / 3), (-1.0, 0.7 / 3)):
        loss = of_one(losses.gmpo, x, advantage, **settings)
        np.testing.assert_allclose(loss, -advantage * np.exp(mean), rtol=1e-6)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gmpo_at_an_exact_clip_edge_keeps_the_whole_gradient(advantage):
    zero, a = jnp.zeros((1, 2)), jnp.array([advantage])
    slope = grad(
        lambda x: losses.gmpo(x, zero, a, jnp.ones((1, 2)), clip_low=0.0, clip_high=0.0).sum()
    )
    np.testing.assert_array_equal(slope(zero), -advantage / 2)


def test_vespo_weight_by_hand():
    def weight(ratio, advantage, **settings):
        return of_one(losses.vespo_weights, (np.log(ratio), 0.0), advantage, **settings)[0]

    np.testing.assert_allclose(weight(2.0, 1.0), 0.19915, atol=1e-5)
    np.testing.assert_allclose(weight(0.5, -1.0), 0.33979, atol=1e-5)
    np.testing.assert_allclose([weight(1.0, 1.0), weight(1.0, -1.0)], 1.0, rtol=1e-6)
    # An advantage of 0 goes with the positive ones.
    np.testing.assert_allclose(weight(2.0, 0.0), 0.19915, atol=1e-5)
    # Largest at k / lambda: 2/3 and 3/2 by default.
    for advantage, peak in ((1.0, 2 / 3), (-1.0, 1.5)):
        beside = [weight(r * peak, advantage) for r in (0.95, 1.0, 1.05)]
        assert beside[1] > max(beside[0], beside[2])
    other = weight(2.0, 1.0, positive=(1.0, 0.5), negative=(9.0, 9.0))
    np.testing.assert_allclose(other, 2.0 * np.exp(-0.5), rtol=1e-6)
    # The log is clamped at 1e-8 and at 20 nats.
    settings = {"positive": (1.0, 0.0)}
    np.testing.assert_allclose(weight(1e-12, 1.0, **settings), 1e-8, rtol=1e-4)
    tall = of_one(losses.vespo_weights, (15.0, 15.0), 1.0, **settings)
    np.testing.assert_allclose(tall, np.exp(20.0), rtol=1e-5)


def test_the_sequence_clip_by_hand():
    # The product of 2 and 0.65 is 1.3, that of 0.5 and 1.4 is 0.7.
    up, down = np.log([2.0, 0.65]), np.log([0.5, 1.4])
    for deltas, advantage, settings, expected in (
        (up, 1.0, {}, -1.2),
        (up, -1.0, {}, 1.3),
        (down, 1.0, {}, -0.7),
        (down, -1.0, {}, 0.8),
        (up, 2.0, {"clip_high": 0.25}, -2.5),
        (down, -2.0, {"clip_low": 0.1}, 1.8),
    ):
        loss = of_one(losses.ppo_clip_sequence, deltas, advantage, **settings)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_luspo_is_gspo_times_the_length_with_its_own_bounds():
    ratio = np.log(1.01)
    np.testing.assert_allclose(of_one(losses.luspo, [ratio] * 3, 1.0), -3 * 1.0025, rtol=1e-6)
    np.testing.assert_allclose(of_one(losses.luspo, [-ratio] * 3, -1.0), 3 * 0.998, rtol=1e-6)


# --- against the formulas --------------------------------------------------------------------


def reference(name, logp, behavior, advantages, mask):
    """Loss and gradient in numpy: value, d value / d logp by hand, rows one at a time."""
    value = np.zeros(logp.shape if name == "vespo" else 3)
    slope = np.zeros(logp.shape)
    for b in range(3):
        on, a = mask[b], advantages[b]
        n = on.sum()
        if n == 0:
            continue
        delta = (logp - behavior)[b, on]
        if name == "ppo_clip_sequence":
            w = np.exp(delta.sum())
            clipped = np.clip(w, 0.8, 1.2)
            value[b] = -min(w * a, clipped * a)
            slope[b, on] = -a * w if w * a <= clipped * a else 0.0
        elif name == "luspo":
            s = np.exp(delta.mean())
            clipped = np.clip(s, 1 - 2e-3, 1 + 2.5e-3)
            value[b] = -n * min(s * a, clipped * a)
            slope[b, on] = -a * s if s * a <= clipped * a else 0.0
        elif name == "gmpo":
            bound = np.minimum(delta, 0.4) if a > 0 else np.maximum(delta, -0.4)
            value[b] = -a * np.exp(bound.mean())
            slope[b, on] = np.where(bound == delta, value[b] / n, 0.0)
        else:
            w = np.exp(delta.sum())
            k, rate = (2, 3) if a >= 0 else (3, 2)
            phi = w**k * np.exp(rate * (1 - w))
            value[b, on] = -phi * a * logp[b, on]
            slope[b, on] = -phi * a
    return value, slope


@pytest.mark.parametrize("name", FUNCTIONS)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([1e-3, 0.1, 0.6]))
def test_value_and_gradient_follow_the_formula(name, seed, spread):
    function = FUNCTIONS[name]
    arguments = drawn(seed, spread)
    with jax.enable_x64(True):
        logp, *rest = (jnp.asarray(x) for x in arguments)
        value = run(function, logp, *rest)
        slope = SLOPES[name](logp, *rest)
    expected, expected_slope = reference(name, *arguments)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-12)


SLOPES = {name: grad(lambda *x, f=f: f(*x).sum()) for name, f in FUNCTIONS.items()}


@pytest.mark.parametrize(
    ("name", "scale"),
    [("ppo_clip_sequence", "sum"), ("luspo", "sum"), ("gmpo", "mean"), ("vespo", "sum")],
)
def test_on_policy_the_gradient_is_that_of_reinforce(name, scale):
    slope = SLOPES[name](jnp.asarray(LOGP), jnp.asarray(LOGP), ADVANTAGES, MASK)
    count = np.maximum(MASK.sum(1, keepdims=True), 1) if scale == "mean" else 1
    np.testing.assert_allclose(slope, -ADVANTAGES[:, None] * MASK / count, rtol=1e-6)


# --- what is stopped, edges, mistakes ---------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_behaviour_and_advantages_are_stopped(name):
    total = lambda x, b, a: FUNCTIONS[name](x, b, a, MASK).sum()  # noqa: E731
    moved = LOGP + 1e-3
    to_logp, *stopped = grad(total, argnums=(0, 1, 2))(moved, LOGP, ADVANTAGES)
    assert np.all(to_logp[0] != 0)
    for gradient in stopped:
        np.testing.assert_array_equal(gradient, 0.0)


def test_weights_of_vespo_carry_no_gradient():
    total = lambda *x: losses.vespo_weights(*x, MASK).sum()  # noqa: E731
    for gradient in grad(total, argnums=(0, 1, 2))(LOGP + 0.1, LOGP, ADVANTAGES):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_excluded_tokens_and_what_stands_under_the_mask(name):
    rows = np.zeros((3, 4), np.float32)
    logp, behavior = rows.copy(), rows.copy()
    logp[0, 1], logp[1, 2], behavior[2, 0] = -np.inf, -np.inf, -np.inf
    logp[:, 3], behavior[0, 3] = np.nan, np.inf
    mask = np.array([[1, 1, 1, 0]] * 3)
    signs = np.array([1.0, -1.0, -1.0], np.float32)
    total = lambda x: FUNCTIONS[name](x, behavior, signs, mask).sum()  # noqa: E731
    value, slope = value_and_grad(total)(logp)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[:, 3], 0.0)
    loss = run(FUNCTIONS[name], logp, behavior, signs, mask)
    if name == "gmpo":
        # The wrong sequence's excluded token is clipped at -0.4, and the others still learn.
        np.testing.assert_allclose(loss[:2], [0.0, np.exp(-0.4 / 3)], rtol=1e-6, atol=0)
        np.testing.assert_allclose(slope[1, :3], [np.exp(-0.4 / 3) / 3] * 2 + [0], rtol=1e-5)
        np.testing.assert_array_equal(slope[0], 0.0)
    elif name == "ppo_clip_sequence":
        np.testing.assert_allclose(loss, [0.0, 0.8, np.exp(20.0)], rtol=1e-5)
        np.testing.assert_array_equal(slope[:2], 0.0)
    elif name == "vespo":
        np.testing.assert_array_equal(loss[:, 3], 0.0)
        np.testing.assert_allclose(slope, 0.0, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_without_a_token_contributes_nothing(name):
    loss = run(FUNCTIONS[name], LOGP + 0.1, LOGP, ADVANTAGES, MASK)
    np.testing.assert_array_equal(loss[2], 0.0)
    assert loss.shape == ((3, 4) if name == "vespo" else (3,))


@pytest.mark.parametrize("name", [*FUNCTIONS, "vespo_weights"])
def test_bad_shapes_are_named(name):
    function = getattr(losses, name)
    with pytest.raises(ValueError, match="logp"):
        function(ADVANTAGES, ADVANTAGES, ADVANTAGES, ADVANTAGES)
    with pytest.raises(ValueError, match="behavior_logp"):
        function(LOGP, LOGP[:2], ADVANTAGES, MASK)
    with pytest.raises(ValueError, match="advantages"):
        function(LOGP, LOGP, ADVANTAGES[:, None], MASK)
    with pytest.raises(ValueError, match="mask"):
        function(LOGP, LOGP, ADVANTAGES, MASK[:, :2])


def test_bad_numbers_are_named():
    arguments = LOGP, LOGP, ADVANTAGES, MASK
    for name in ("clip_low", "clip_high"):
        with pytest.raises(ValueError, match=name):
            losses.gmpo(*arguments, **{name: -0.1})
        run(losses.gmpo, *arguments, **{name: 0.0})
    for name in ("positive", "negative"):
        with pytest.raises(ValueError, match=f"k of {name}"):
            losses.vespo_weights(*arguments, **{name: (-1.0, 1.0)})
        with pytest.raises(ValueError, match=f"lambda of {name}"):
            losses.vespo(*arguments, **{name: (1.0, -1.0)})
        run(losses.vespo_weights, *arguments, **{name: (0.0, 0.0)})


def test_gmpo_holds_each_side_by_its_own_bound():
    behavior, mask = np.zeros((4, 1)), np.ones((4, 1))
    logp = np.array([[-0.3], [-0.05], [0.3], [0.05]])
    signs = np.array([-1.0, -1.0, 1.0, 1.0])
    found = losses.gmpo(logp, behavior, signs, mask, clip_low=0.1, clip_high=0.2)
    np.testing.assert_allclose(found, -signs * np.exp([-0.1, -0.05, 0.2, 0.05]), rtol=1e-6)
