"""Learning to rank: the papers' numbers, DPO as the case of two, loops in float64, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses
from polgrad.losses import ranking

K = 4
SCORES = np.array([[0.2, 0.5, -0.1, 9.0], [0.3, -0.7, 1.1, 0.4]], np.float32)
LABELS = np.array([[1.0, 0.5, 0.0, 0.25], [0.25, 0.75, 0.75, 0.0]], np.float32)
VALID = np.array([[True, True, True, False], [True, True, True, True]])
NONE = np.zeros((2, K), bool)
PAIRWISE = (losses.pairwise_logistic, losses.pairwise_hinge, losses.lipo)
POINTWISE = (losses.pointwise_squared, losses.pointwise_sigmoid)
ALL = (*PAIRWISE, losses.listwise_softmax, *POINTWISE)
lists = st.lists(st.integers(-16, 16), min_size=K, max_size=K).map(lambda x: np.array(x) / 8.0)


def softplus(x):
    return np.log1p(np.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def step(labels, places, i, j):
    gains = 2.0 ** np.asarray(labels, float) - 1.0
    return abs(gains[i] - gains[j]) * abs(1 / math.log(1 + places[i]) - 1 / math.log(1 + places[j]))


def reference(function, s, y):
    """Value and gradient from the formula, by loops in float64."""
    n = len(s)
    places = np.argsort(np.argsort(-s, kind="stable"), kind="stable") + 1
    value, slope = 0.0, np.zeros(n)
    if function in PAIRWISE:
        for i, j in itertools.permutations(range(n), 2):
            if not y[i] > y[j]:
                continue
            gap = s[i] - s[j]
            if function is losses.pairwise_hinge:
                value += max(0.0, 1.0 - gap)
                push = float(gap < 1.0)
            else:
                weight = step(y, places, i, j) if function is losses.lipo else 1.0
                value += weight * softplus(-gap)
                push = weight * sigmoid(-gap)
            slope[i] -= push
            slope[j] += push
    elif function is losses.listwise_softmax:
        total = y.sum()
        p = np.exp(s) / np.exp(s).sum()
        if total > 0:
            value = -(y / total) @ np.log(p)
            slope = p - y / total
    elif function is losses.pointwise_squared:
        value, slope = ((y - s) ** 2).sum(), 2 * (s - y)
    else:
        p = np.array([sigmoid(x) for x in s])
        value = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        slope = p - y
    return value, slope


def with_valid(function):
    def call(scores, labels, valid):
        return function(scores, labels, valid=valid)

    call.__name__ = function.__name__
    return call


MASKED = {function: with_valid(function) for function in ALL}


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (losses.lipo, 0.501909),
        (losses.pairwise_logistic, 1.846198),
        (losses.pairwise_hinge, 2.4),
        (losses.listwise_softmax, 1.028390),
        (losses.pointwise_squared, 0.65),
        (losses.pointwise_sigmoid, 1.966613),
    ],
)
def test_the_papers_list(function, value):
    found = run(MASKED[function], SCORES, LABELS, VALID)
    np.testing.assert_allclose(found[0], value, atol=2e-6)
    np.testing.assert_allclose(
        found[1],
        reference(function, SCORES[1].astype(float), LABELS[1].astype(float))[0],
        rtol=1e-6,
    )


def test_list_mle_is_plackett_luce_of_the_sorted_scores():
    order = jnp.argsort(-LABELS[:1, :3])
    found = run(losses.plackett_luce, jnp.take_along_axis(jnp.asarray(SCORES[:1]), order, 1))
    np.testing.assert_allclose(found, 1.565878, atol=1e-6)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
@given(lists, lists)
def test_value_and_gradient_by_loops(function, scores, labels):
    labels = np.abs(labels) / 2.0
    value, slope = slopes(function)(scores.astype(np.float32), labels.astype(np.float32))
    expected_value, expected_slope = reference(function, scores, labels)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-6)


SLOPES = {}


def slopes(function):
    return SLOPES.setdefault(function, value_and_grad(lambda s, y: function(s, y)))


def test_two_answers_are_dpo():
    chosen, rejected = np.array([0.7, -3.0, 2.0]), np.array([-0.4, 2.0, 2.5])
    scores = 0.3 * np.stack([chosen, rejected], -1).astype(np.float32)
    labels = np.array([[1.0, 0.0]] * 3, np.float32)
    expected = run(losses.dpo, chosen, rejected, beta=0.3)
    for function in (losses.pairwise_logistic, lambda s, y: losses.plackett_luce(s)):
        np.testing.assert_allclose(run(function, scores, labels), expected, rtol=1e-5)
    lipo = run(losses.lipo, scores, labels)
    np.testing.assert_allclose(lipo / expected, 0.532456, rtol=1e-5)
    hinge = np.maximum(0.0, 1.0 - 0.3 * (chosen - rejected))
    np.testing.assert_allclose(run(losses.pairwise_hinge, scores, labels), hinge, rtol=1e-5)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_a_function_of_the_prompt_cancels_but_in_the_pointwise_losses(function):
    plain, moved = (run(MASKED[function], SCORES + x, LABELS, VALID) for x in (0.0, 0.5))
    assert np.allclose(plain, moved, atol=1e-5) == (function not in POINTWISE)
    order = [2, 0, 3, 1]
    there = run(MASKED[function], *(x[:, order] for x in (SCORES, LABELS, VALID)))
    np.testing.assert_allclose(there, plain, rtol=1e-5)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_labels_are_stopped_and_answers_left_out(function):
    slope = grad(lambda s, y, v: MASKED[function](s, y, v).sum(), argnums=(0, 1))
    to_scores, to_labels = slope(SCORES, LABELS, VALID)
    np.testing.assert_array_equal(to_labels, 0.0)
    assert np.all(np.abs(to_scores).max(1) > 0.1)
    assert to_scores[0, 3] == 0.0
    # What is not finite is left out too.
    found = run(MASKED[function], SCORES, LABELS, VALID)
    everyone = np.ones((2, K), bool)
    for at in (0, 1):
        for value in (np.nan, np.inf, -np.inf):
            odd = [SCORES.copy(), LABELS.copy()]
            odd[at][0, 3] = value
            np.testing.assert_allclose(run(MASKED[function], *odd, everyone), found, rtol=1e-6)
            assert np.all(np.isfinite(slope(*odd, everyone)))


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_nothing_to_learn(function):
    slope = grad(lambda s, y, v: MASKED[function](s, y, v).sum())
    np.testing.assert_array_equal(run(MASKED[function], SCORES, LABELS, NONE), 0.0)
    np.testing.assert_array_equal(slope(SCORES, LABELS, NONE), 0.0)
    equal = np.zeros_like(LABELS)
    if function not in POINTWISE:
        np.testing.assert_array_equal(run(MASKED[function], SCORES, equal, VALID), 0.0)
        np.testing.assert_array_equal(slope(SCORES, equal, VALID), 0.0)
    assert run(function, np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)).shape == (2,)


def test_labels_that_cancel_are_no_target():
    labels = np.array([[1.0, -1.0, 0.0, 0.0]] * 2, np.float32)
    np.testing.assert_array_equal(run(losses.listwise_softmax, SCORES, labels), 0.0)
    np.testing.assert_array_equal(run(losses.listwise_softmax, SCORES, -LABELS), 0.0)


def test_pair_weights_are_constants_of_ordered_pairs():
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(2, K, K)).astype(np.float32)
    weights[:, np.arange(K), np.arange(K)] = np.nan  # not read
    scores = np.clip(SCORES, -1, 1)  # all gaps inside of the hinge's margin of 3

    for name in ("pairwise_logistic", "pairwise_hinge"):
        function = getattr(losses, name)
        extra = {"margin": 3.0} if name == "pairwise_hinge" else {}

        def call(s, w, function=function, extra=extra):
            return function(s, LABELS, weights=w, normalize=True, **extra)

        expected, pairs = np.zeros(2), np.zeros(2)
        for b, i, j in itertools.product(range(2), range(K), range(K)):
            if LABELS[b, i] > LABELS[b, j]:
                gap = float(scores[b, i]) - float(scores[b, j])
                term = max(0.0, 3.0 - gap) if extra else softplus(-gap)
                expected[b] += weights[b, i, j] * term
                pairs[b] += 1
        np.testing.assert_allclose(run(call, scores, weights), expected / pairs, rtol=1e-5)
        assert list(pairs) == [6, 5]
        to_scores, to_weights = grad(lambda s, w: call(s, w).sum(), argnums=(0, 1))(scores, weights)
        np.testing.assert_array_equal(to_weights, 0.0)
        assert np.all(to_scores != 0.0) and np.all(np.isfinite(to_scores))
    # Normalising an empty list divides by nothing.
    empty = run(losses.pairwise_logistic, SCORES, np.zeros_like(LABELS), normalize=True)
    np.testing.assert_array_equal(empty, 0.0)


def test_the_hinge_has_no_slope_from_its_margin_on():
    labels, slope = np.array([1.0, 0.0]), grad(lambda s, y: losses.pairwise_hinge(s, y))
    np.testing.assert_array_equal(slope(np.array([1.0, 0.0]), labels), 0.0)
    np.testing.assert_array_equal(slope(np.array([0.875, 0.0]), labels), [-1.0, 1.0])


def test_lipo_is_the_weighted_pairwise_loss():
    def weighed(scores, labels, valid, ideal, top):
        weights = ranking.lambda_weights(scores, labels, ideal=ideal, top=top, valid=valid)
        return losses.pairwise_logistic(scores, labels, weights=weights, valid=valid)

    for ideal, top in ((True, None), (False, 2)):
        ours = lambda s, y, v, i=ideal, t=top: losses.lipo(s, y, ideal=i, top=t, valid=v)  # noqa: E731
        theirs = lambda s, y, v, i=ideal, t=top: weighed(s, y, v, i, t)  # noqa: E731
        np.testing.assert_allclose(
            run(ours, SCORES, LABELS, VALID), run(theirs, SCORES, LABELS, VALID), rtol=1e-6
        )
    plain = run(losses.lipo, SCORES, LABELS)
    assert np.all(run(losses.lipo, SCORES, LABELS, ideal=True) != plain)
    assert np.all(run(losses.lipo, SCORES, LABELS, top=1) != plain)


def test_the_likelihood_of_rankings_is_consistent():
    """With rankings drawn from scores s*, the gradient of ListMLE vanishes at s*."""
    scores = jnp.array([0.3, -1.0, 0.8, 0.1])
    orders = jnp.array(list(itertools.permutations(range(4))))

    def loss(s, frozen):
        return jnp.exp(-losses.plackett_luce(frozen[orders])) @ losses.plackett_luce(s[orders])

    np.testing.assert_allclose(grad(loss)(scores, scores), 0.0, atol=1e-6)
    assert np.abs(grad(loss)(scores + jnp.arange(4.0), scores)).max() > 0.1


def test_bad_arguments():
    x = jnp.zeros((2, 3))
    for function in ALL:
        with pytest.raises(ValueError, match="labels has shape"):
            function(x, jnp.zeros((2, 4)))
        with pytest.raises(ValueError, match="valid has shape"):
            function(x, x, valid=jnp.ones(3, bool))
        with pytest.raises(ValueError, match="scores has shape"):
            function(jnp.zeros(()), jnp.zeros(()))
    for function in (losses.pairwise_logistic, losses.pairwise_hinge):
        with pytest.raises(ValueError, match="weights has shape"):
            function(x, x, weights=x)
    with pytest.raises(ValueError, match="margin is -0.1"):
        losses.pairwise_hinge(x, x, margin=-0.1)
    losses.pairwise_hinge(x, x, margin=0.0)
    with pytest.raises(ValueError, match="top is 0"):
        losses.lipo(x, x, top=0)


def test_bfloat16_and_vmap():
    def everything(scores, labels):
        return jnp.stack([function(scores, labels) for function in ALL])

    low = jnp.asarray(SCORES, jnp.bfloat16), jnp.asarray(LABELS, jnp.bfloat16)
    together = run(everything, *low)
    assert together.dtype == jnp.float32
    mapped = jax.jit(jax.vmap(everything))(*low)
    np.testing.assert_allclose(mapped, together.T, rtol=1e-5)


def test_small_labels_and_a_single_pair():
    scores, labels = np.array([0.3, -0.2, 1.0]), np.array([0.25, 0.25, 0.0])
    logs = scores - np.log(np.exp(scores).sum())
    found = run(losses.listwise_softmax, scores, labels)
    np.testing.assert_allclose(found, -0.5 * (logs[0] + logs[1]), rtol=1e-5)
    one = np.array([1.0, 0.0])
    np.testing.assert_allclose(
        run(losses.pairwise_logistic, scores[:2], one, normalize=True),
        run(losses.pairwise_logistic, scores[:2], one),
        rtol=1e-6,
    )
