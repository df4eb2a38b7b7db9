"""Bradley-Terry with its margins, smoothing and centring; strength of labels; the meta step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses, reward_models

numbers = st.floats(-20.0, 20.0, width=32)
CHOSEN = np.array([1.2, -0.3, 0.5, 2.0], np.float32)
REJECTED = np.array([0.3, 0.4, 0.5, -1.0], np.float32)
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
MARGIN = np.array([0.5, -0.25, 0.0, 1.0], np.float32)
SMOOTHING = np.array([0.0, 0.1, 1.0, 0.5], np.float32)


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


def everything(chosen, rejected, margin, smoothing, weights):
    return reward_models.bradley_terry(
        chosen, rejected, margin=margin, label_smoothing=smoothing, center=0.01, weights=weights
    )


def at(chosen, rejected, **settings):
    return float(
        run(reward_models.bradley_terry, np.float32(chosen), np.float32(rejected), **settings)
    )


def test_values_by_hand():
    assert at(1.2, 0.3) == pytest.approx(0.341154, abs=1e-6)
    assert at(1.2, 0.3, margin=0.5) == pytest.approx(0.513015, abs=1e-6)
    assert at(1.2, 0.3, center=0.01) == pytest.approx(0.363654, abs=1e-6)
    assert at(0.6, 0.0, label_smoothing=0.1) == pytest.approx(0.497488, abs=1e-6)
    assert at(1.0, 0.0, margin=0.4) == pytest.approx(0.437488, abs=1e-6)
    assert at(3.0, 3.0) == pytest.approx(math.log(2.0), abs=1e-6)


@given(numbers, numbers, numbers, st.floats(0.0, 1.0, width=32), st.floats(0.0, 2.0, width=32))
def test_value_and_gradient_by_formula(chosen, rejected, margin, smoothing, weight):
    arrays = [np.full(4, x, np.float32) for x in (chosen, rejected, margin, smoothing, weight)]
    value, slopes = both(*arrays)
    z = chosen - rejected - margin
    expected = (1 - smoothing) * softplus(-z) + smoothing * softplus(z)
    expected = weight * (expected + 0.01 * (chosen + rejected) ** 2)
    np.testing.assert_allclose(value, 4 * expected, rtol=1e-4, atol=1e-5)
    push, pull = 1 / (1 + np.exp(-z)) - (1 - smoothing), 0.02 * (chosen + rejected)
    np.testing.assert_allclose(slopes[0], weight * (pull + push), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(slopes[1], weight * (pull - push), rtol=1e-3, atol=1e-5)
    for slope in slopes[2:]:
        np.testing.assert_array_equal(slope, 0.0)


both = jax.jit(jax.value_and_grad(lambda *x: everything(*x).sum(), argnums=range(5)))


def test_the_smoothed_minimum():
    """At log((1 - a) / a); 1/2 has it at 0, 1 is the flipped pair."""
    slope = grad(lambda c, a: reward_models.bradley_terry(c, jnp.zeros(4), label_smoothing=a).sum())
    smoothing = np.array([0.1, 0.5, 0.25, 0.9], np.float32)
    np.testing.assert_allclose(
        slope(np.log((1 - smoothing) / smoothing), smoothing), 0.0, atol=1e-7
    )
    assert math.log(0.9 / 0.1) == pytest.approx(2.197225, abs=1e-6)
    assert at(0.0, 0.0, label_smoothing=0.5) == pytest.approx(math.log(2.0), abs=1e-6)
    assert at(1.0, -2.0, label_smoothing=1.0) == pytest.approx(at(-2.0, 1.0), abs=1e-6)


def test_reductions():
    plain = run(reward_models.bradley_terry, CHOSEN, REJECTED)
    np.testing.assert_allclose(plain, run(losses.dpo, CHOSEN, REJECTED, beta=1.0), rtol=1e-6)
    shifted = run(reward_models.bradley_terry, CHOSEN + 2.5, REJECTED + 2.5)
    np.testing.assert_allclose(shifted, plain, rtol=1e-5)
    swapped = run(reward_models.bradley_terry, REJECTED, CHOSEN)
    np.testing.assert_allclose(swapped - plain, CHOSEN - REJECTED, rtol=1e-5, atol=1e-6)
    # Some shape or other.
    table = run(reward_models.bradley_terry, CHOSEN.reshape(2, 2), REJECTED.reshape(2, 2))
    np.testing.assert_allclose(table.ravel(), plain, rtol=1e-6)


def test_edges_are_finite():
    inf = np.inf
    chosen = np.array([inf, -inf, np.nan, 5000.0], np.float32)
    rejected = np.array([inf, 0.0, 0.0, 0.0], np.float32)
    margin = np.array([np.nan, 0.0, inf, 0.0], np.float32)
    value = run(everything, chosen, rejected, margin, np.zeros(4, np.float32), WEIGHTS)
    np.testing.assert_allclose(value[:2], [math.log(2) + 16, 0.5 * (20.0 + 4.0)], rtol=1e-5)
    np.testing.assert_allclose(value[2:], [40.0, 0.0], rtol=1e-5)
    _, slopes = both(chosen, rejected, margin, np.zeros(4, np.float32), WEIGHTS)
    assert np.all(np.isfinite(slopes))
    np.testing.assert_array_equal(slopes[0][:3], 0.0)
    # A weight of 0, or none that is positive, leaves the pair out whatever it holds.
    negative = np.full(4, -1.0, np.float32)
    np.testing.assert_array_equal(run(everything, chosen, rejected, margin, SMOOTHING, negative), 0)


MARGINS = np.array([[1.0, 2.0, 3.0], [-2.0, -1.0, 0.0], [5.0, 5.0, 5.0]], np.float32)


def strength_valid(margins, valid):
    return reward_models.preference_strength(margins, valid=valid)


def test_strength_of_a_preference():
    mean, deviation = run(reward_models.preference_strength, MARGINS)
    np.testing.assert_allclose(mean, [2.0, -1.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(deviation, [0.816497, 0.816497, 0.0], atol=1e-6)
    flipped = run(reward_models.preference_strength, -MARGINS)
    np.testing.assert_allclose(flipped.mean, -mean, rtol=1e-6)
    np.testing.assert_allclose(flipped.deviation, deviation, atol=1e-6)
    odd = MARGINS.copy()
    odd[0, 2], odd[1] = np.inf, np.nan
    mean, deviation = run(reward_models.preference_strength, odd)
    np.testing.assert_allclose(mean, [1.5, 0.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(deviation, [0.5, 0.0, 0.0], atol=1e-6)
    valid = np.array([[True, False, True], [False, False, False], [False, True, True]])
    mean, deviation = run(strength_valid, MARGINS, valid)
    np.testing.assert_allclose(mean, [2.0, 0.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(deviation, [1.0, 0.0, 0.0], atol=1e-6)
    slope = grad(lambda m: sum(x.sum() for x in reward_models.preference_strength(m)))(MARGINS)
    np.testing.assert_array_equal(slope, 0.0)


def test_groups_of_strength():
    strength = np.array([0.5, -1.0, np.nan, 3.0, 0.0, 0.0, -2.0], np.float32)
    groups = run(reward_models.strength_groups, strength, groups=3)
    np.testing.assert_array_equal(groups, [2, 0, -1, 2, 1, 1, 0])
    halves = run(reward_models.strength_groups, np.arange(40.0, dtype=np.float32)[::-1])
    np.testing.assert_array_equal(halves, np.arange(40)[::-1] // 2)  # 20 groups by default
    nothing = run(reward_models.strength_groups, np.full(7, np.nan, np.float32), groups=3)
    np.testing.assert_array_equal(nothing, -1)
    np.testing.assert_array_equal(run(reward_models.strength_groups, strength, groups=1)[:2], 0)


def test_which_pairs_to_flip():
    strength = np.array([0.5, -1.0, np.nan, 3.0, 0.0, -0.5, -2.0], np.float32)
    flips = run(reward_models.flip_mask, strength)
    np.testing.assert_array_equal(flips, [False, True, False, False, False, True, True])
    flips = run(reward_models.flip_mask, strength, threshold=0.5)
    np.testing.assert_array_equal(flips, [False, True, False, False, True, True, True])
    flips = run(reward_models.flip_mask, strength, fraction=0.35)  # two of six
    np.testing.assert_array_equal(flips, [False, True, False, False, False, False, True])
    assert not run(reward_models.flip_mask, strength, fraction=0.0).any()
    np.testing.assert_array_equal(
        run(reward_models.flip_mask, strength, fraction=1.0), np.isfinite(strength)
    )


def objective_valid(scores, valid):
    return reward_models.difference_objective(scores, valid=valid)


def test_the_difference_objective():
    value = lambda *x: float(run(reward_models.difference_objective, np.array(x, np.float32)))  # noqa: E731
    assert value(2.0, 2.0) == pytest.approx(0.25)
    assert value(1.0, 1.0, 1.0, 1.0) == pytest.approx(0.375)
    assert value(0.0, 1.0, 3.0) == pytest.approx(0.569873, abs=1e-6)
    assert value(4.0, 1.0, 2.0) == pytest.approx(0.569873, abs=1e-6)
    assert value(0.0, 90.0, 300.0) == pytest.approx(2 / 3, abs=1e-6)
    assert value(7.0) == 0.0
    scores = np.array([[0.0, 9.0, 1.0, 3.0], [0.0, np.nan, np.inf, 3.0]], np.float32)
    valid = np.array([[True, False, True, True], [True, True, True, False]])
    found = run(objective_valid, scores, valid)
    np.testing.assert_allclose(found, [0.569873, 0.0], atol=1e-6)
    found = run(reward_models.difference_objective, scores)
    np.testing.assert_allclose(found[1], 0.5 / (1 + math.exp(-3.0)), rtol=1e-6)
    assert run(reward_models.difference_objective, scores[:, :0]).tolist() == [0.0, 0.0]


def test_the_gradient_of_the_objective_moves_scores_apart():
    slope = grad(lambda s: reward_models.difference_objective(s).sum())
    scores = np.array([0.0, 1.0, 3.0], np.float32)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    steep = {d: 2 / 9 * sigmoid(d) * sigmoid(-d) for d in (1, 2, 3)}
    expected = [-steep[1] - steep[3], steep[1] - steep[2], steep[2] + steep[3]]
    np.testing.assert_allclose(slope(scores), expected, rtol=1e-5)
    np.testing.assert_array_equal(slope(np.ones(3, np.float32)), 0.0)
    assert np.all(np.isfinite(slope(np.array([np.nan, 1.0, np.inf], np.float32))))


def linear_model():
    """A loss on labelled pairs and the objective on two samples, of five parameters in a tree."""
    rng = np.random.default_rng(1)
    chosen, rejected, samples = (jnp.array(x) for x in rng.normal(size=(3, 6, 5)))
    params = {"w": jnp.array(rng.normal(size=3)), "v": jnp.array(rng.normal(size=2))}
    score = lambda p, x: x @ jnp.concatenate([p["w"], p["v"]])  # noqa: E731
    loss = lambda p: reward_models.bradley_terry(score(p, chosen), score(p, rejected)).mean()  # noqa: E731
    objective = lambda p: reward_models.difference_objective(score(p, samples[:2])).sum()  # noqa: E731
    return loss, objective, params, lambda p: score(p, samples[:2])


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_the_meta_gradient_is_that_of_the_moved_parameters():
    with jax.enable_x64(True):
        loss, objective, params, scores = linear_model()
        meta = jax.jit(
            lambda p, eta: reward_models.meta_gradient(loss, objective, p, step_size=eta)
        )
        plain = jax.jit(jax.grad(loss))
        np.testing.assert_allclose(flat(meta(params, 0.0)), flat(plain(params)), rtol=1e-12)
        uphill = jax.jit(jax.grad(objective))(params)
        moved = jax.tree.map(lambda p, g: p + 0.7 * g, params, uphill)
        np.testing.assert_allclose(flat(meta(params, 0.7)), flat(plain(moved)), rtol=1e-10)
        # The derivative in the step size at 0 is the Hessian of the loss times uphill.
        finite = (flat(meta(params, 1e-4)) - flat(meta(params, -1e-4))) / 2e-4
        curvature = jax.jit(lambda p, d: jax.jvp(jax.grad(loss), (p,), (d,))[1])(params, uphill)
        np.testing.assert_allclose(finite, flat(curvature), atol=1e-6)
        # A step uphill moves the two samples apart.
        before, after = scores(params), scores(jax.tree.map(lambda p, g: p + g, params, uphill))
        assert abs(after[0] - after[1]) > abs(before[0] - before[1]) > 0


def test_bad_arguments():
    x, y = jnp.zeros(3), jnp.zeros(4)
    for name, arguments, settings in (
        ("rejected_scores", (x, y), {}),
        ("margin has shape", (x, x), {"margin": y}),
        ("label_smoothing has shape", (x, x), {"label_smoothing": y}),
        ("weights", (x, x), {"weights": y}),
        ("label_smoothing is -0.1", (x, x), {"label_smoothing": -0.1}),
        ("label_smoothing is 1.1", (x, x), {"label_smoothing": 1.1}),
        ("center is -1", (x, x), {"center": -1.0}),
    ):
        with pytest.raises(ValueError, match=name):
            reward_models.bradley_terry(*arguments, **settings)
    for function, name in (
        (reward_models.preference_strength, "margins"),
        (reward_models.difference_objective, "scores"),
    ):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            function(jnp.zeros(()))
        with pytest.raises(ValueError, match="valid has shape"):
            function(x, valid=jnp.ones(4, bool))
    with pytest.raises(ValueError, match="groups is 0"):
        reward_models.strength_groups(x, groups=0)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            reward_models.flip_mask(x, fraction=fraction)
    for function in (reward_models.strength_groups, reward_models.flip_mask):
        with pytest.raises(ValueError, match="strength has shape"):
            function(jnp.zeros((2, 2)))


def test_bfloat16_and_vmap():
    low = [jnp.asarray(x, jnp.bfloat16).reshape(2, 2) for x in (CHOSEN, REJECTED, MARGIN)]

    def call(chosen, rejected, margin):
        strength = reward_models.preference_strength(jnp.stack([chosen, rejected], -1))
        loss = reward_models.bradley_terry(chosen, rejected, margin=margin)
        return (
            loss,
            *strength,
            reward_models.difference_objective(jnp.stack([chosen, rejected], -1)),
        )

    for together, mapped in zip(run(call, *low), jax.jit(jax.vmap(call))(*low)):
        assert together.dtype == jnp.float32
        np.testing.assert_allclose(mapped, together, rtol=1e-6)


def test_value_and_grad_of_the_weighted_sum():
    value, slope = value_and_grad(
        lambda c: reward_models.bradley_terry(
            c, jnp.asarray(REJECTED), weights=jnp.asarray(WEIGHTS)
        ).sum()
    )(CHOSEN)
    z = (CHOSEN - REJECTED).astype(float)
    np.testing.assert_allclose(value, WEIGHTS @ softplus(-z), rtol=1e-5)
    np.testing.assert_allclose(slope, -WEIGHTS / (1 + np.exp(z)), rtol=1e-5)
