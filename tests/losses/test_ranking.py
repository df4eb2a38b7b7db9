"""Places, gains, what a pair is worth to its list, and labels from a ranker: by loops, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad.losses import ranking

SCORES = np.array([[0.2, 0.5, -0.1, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
LABELS = np.array([[1.0, 0.5, 0.0, 0.7], [0.2, 0.9, 0.4, 0.4]], np.float32)
VALID = np.array([[True, True, True, False], [True, True, True, True]])
NONE = np.zeros((2, 4), bool)
K = 4
lists = st.lists(st.integers(-8, 8), min_size=K, max_size=K).map(lambda x: np.array(x) / 8.0)


def places_of(scores):
    """By sorting, best first; Python's sort keeps the order of equals."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    places = np.zeros(len(scores), int)
    for place, i in enumerate(order):
        places[i] = place + 1
    return places


def dcg(labels, places, top=None):
    top = len(labels) if top is None else top
    return sum((2.0**y - 1.0) / math.log(1.0 + p) for y, p in zip(labels, places) if p <= top)


def swap_gain(labels, places, i, j, top=None):
    """How much the cumulative gain changes when two answers exchange places."""
    swapped = places.copy()
    swapped[i], swapped[j] = places[j], places[i]
    return abs(dcg(labels, swapped, top) - dcg(labels, places, top))


def matrix(entry):
    return np.array([[entry(i, j) for j in range(K)] for i in range(K)])


def test_the_papers_example():
    np.testing.assert_array_equal(run(ranking.ranks, SCORES, valid=None)[0], [2, 1, 4, 3])
    weights = run(weighed_valid, SCORES, LABELS, VALID)
    expected = [0.311905, 0.188892, 0.298792]
    np.testing.assert_allclose(weights[0][[0, 0, 1], [1, 2, 2]], expected, atol=2e-6)
    np.testing.assert_allclose(weights, np.swapaxes(weights, 1, 2), atol=1e-7)
    np.testing.assert_array_equal(np.diagonal(weights, axis1=1, axis2=2), 0.0)
    np.testing.assert_array_equal(weights[0, 3], 0.0)
    np.testing.assert_array_equal(weights[0, :, 3], 0.0)


def weighed_valid(scores, labels, valid):
    return ranking.lambda_weights(scores, labels, valid=valid)


def ranked_valid(scores, valid):
    return ranking.ranks(scores, valid=valid)


@given(lists)
def test_places_by_sorting(scores):
    np.testing.assert_array_equal(run(ranking.ranks, scores.astype(np.float32)), places_of(scores))


def test_places_of_those_that_count():
    places = run(ranked_valid, SCORES, VALID)
    np.testing.assert_array_equal(places, [[2, 1, 3, 0], [1, 2, 3, 4]])
    assert places.dtype == jnp.int32
    np.testing.assert_array_equal(run(ranked_valid, SCORES, NONE), 0)
    odd = np.array([[np.nan, 1.0, -np.inf, np.inf], [3.0, 2.0, 5.0, 2.0]], np.float32)
    np.testing.assert_array_equal(run(ranking.ranks, odd), [[0, 1, 0, 0], [2, 3, 1, 4]])
    assert run(ranking.ranks, np.zeros((2, 0), np.float32)).shape == (2, 0)


def test_gain_and_discount():
    x = np.array([0.0, 0.5, 1.0, -1.0, 1e9], np.float32)
    expected = [0.0, math.sqrt(2) - 1, 1.0, -0.5, 2.0**60]
    np.testing.assert_allclose(run(ranking.gain, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(grad(lambda x: ranking.gain(x).sum())(x), 0.0)
    places = np.array([-1, 0, 1, 2, 7])
    expected = np.log([2.0, 2.0, 2.0, 3.0, 8.0])
    np.testing.assert_allclose(run(ranking.discount, places), expected, rtol=1e-6)
    assert run(ranking.gain, x.astype(jnp.bfloat16)).dtype == jnp.float32


@given(lists, lists)
def test_a_weight_is_the_change_of_the_cumulative_gain(scores, labels):
    labels = np.abs(labels)
    places = places_of(scores)
    args = scores.astype(np.float32), labels.astype(np.float32)
    best = dcg(labels, places_of(labels))
    swaps = matrix(lambda i, j: swap_gain(labels, places, i, j))
    np.testing.assert_allclose(run(ranking.lambda_weights, *args), swaps, atol=1e-6)
    found = run(ranking.lambda_weights, *args, ideal=True)
    np.testing.assert_allclose(found, swaps / best if best > 0 else 0.0, atol=2e-6)


@given(lists, lists)
def test_truncated_weights(scores, labels):
    labels, top = np.abs(labels), 2
    places = places_of(scores)
    args = scores.astype(np.float32), labels.astype(np.float32)
    best = dcg(labels, places_of(labels), top)
    swaps = matrix(lambda i, j: swap_gain(labels, places, i, j, top))
    found = run(ranking.lambda_weights, *args, top=top, ideal=True)
    np.testing.assert_allclose(found, swaps / best if best > 0 else 0.0, atol=2e-6)


@pytest.mark.parametrize("kind", ["gain", "rank", "ndcg2"])
def test_other_kinds(kind):
    places = places_of(SCORES[0])
    gains = 2.0 ** LABELS[0].astype(float) - 1.0

    def entry(i, j):
        gap = abs(gains[i] - gains[j])
        step = abs(1 / math.log(1 + places[i]) - 1 / math.log(1 + places[j]))
        apart = abs(places[i] - places[j])
        bound = 0 if i == j else 1 / math.log(1 + apart) - 1 / math.log(2 + apart)
        return {"gain": gap, "rank": step, "ndcg2": gap * bound}[kind]

    found = run(ranking.lambda_weights, SCORES, LABELS, kind=kind)
    np.testing.assert_allclose(found[0], matrix(entry), atol=1e-6)


def test_truncated_rank_weights():
    found = run(ranking.lambda_weights, SCORES, LABELS, kind="rank", top=1)
    expected = matrix(lambda i, j: abs((i == 1) - (j == 1)) / math.log(2))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_weights_carry_no_gradient_and_survive_the_edges():
    def total(scores, labels, valid, ideal):
        return ranking.lambda_weights(scores, labels, ideal=ideal, valid=valid).sum()

    for ideal in (False, True):
        slope = grad(lambda s, y, v, i=ideal: total(s, y, v, i), argnums=(0, 1))
        for labels in (LABELS, np.zeros_like(LABELS), np.full_like(LABELS, np.nan)):
            for valid in (VALID, NONE):
                for gradient in slope(SCORES, labels, valid):
                    np.testing.assert_array_equal(gradient, 0.0)
    ideal = run(ranking.lambda_weights, SCORES, np.zeros_like(LABELS), ideal=True)
    np.testing.assert_array_equal(ideal, 0.0)
    np.testing.assert_array_equal(run(weighed_valid, SCORES, LABELS, NONE), 0.0)
    # A score or a label that is not finite leaves its answer out.
    odd = np.array([[0.2, np.inf, -0.1, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    without = np.array([[1, 0, 1, 1], [1, 1, 1, 1]], bool)
    expected = run(weighed_valid, SCORES, LABELS, without)
    np.testing.assert_allclose(run(ranking.lambda_weights, odd, LABELS), expected, atol=1e-7)


PREFERENCE = np.array(
    [[0.9, 1.0, 0.25, 0.5], [0.0, 0.1, 0.5, np.nan], [0.75, 0.5, 9.0, 1.0], [0.5, 0.0, 0.0, 0.3]],
    np.float32,
)


def label_valid(preference, valid):
    return ranking.win_rate_labels(preference, valid=valid)


def test_win_rates_over_the_others():
    found = run(ranking.win_rate_labels, PREFERENCE)
    np.testing.assert_allclose(found, [1.75 / 3, 0.25, 2.25 / 3, 0.5 / 3], rtol=1e-6)
    valid = np.array([True, True, False, True])
    found = run(label_valid, PREFERENCE, valid)
    np.testing.assert_allclose(found, [0.75, 0.0, 0.0, 0.25], rtol=1e-6)
    alone = np.array([True, False, False, False])
    np.testing.assert_array_equal(run(label_valid, PREFERENCE, alone), 0.0)
    slope = grad(lambda p: ranking.win_rate_labels(p).sum())(PREFERENCE)
    np.testing.assert_array_equal(slope, 0.0)


def test_labels_from_places():
    places = np.array([[2, 1, 3, 4], [1, 3, 2, 9]])
    found = run(ranking.rank_labels, places)
    np.testing.assert_allclose(found[0], [2 / 3, 1.0, 1 / 3, 0.0], atol=1e-6)

    def labels(places, valid):
        return ranking.rank_labels(places, valid=valid)

    valid = np.array([[True, False, False, False], [True, True, True, False]])
    places = np.array([[1, 1, 3, 4], [1, 3, 2, 9]])
    found = run(labels, places, valid)
    np.testing.assert_allclose(found, [[1.0, 0, 0, 0], [1.0, 0.0, 0.5, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(run(labels, places, NONE), 0.0)


def test_bad_arguments():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="scores has shape"):
        ranking.ranks(jnp.zeros(()))
    with pytest.raises(ValueError, match="valid has shape"):
        ranking.ranks(x, valid=jnp.ones((2, 2), bool))
    with pytest.raises(ValueError, match="labels has shape"):
        ranking.lambda_weights(x, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="kind is 'dcg'"):
        ranking.lambda_weights(x, x, kind="dcg")
    for kind, top in (("lambda", 0), ("gain", 2), ("ndcg2", 1)):
        with pytest.raises(ValueError, match=f"top is {top} with kind '{kind}'"):
            ranking.lambda_weights(x, x, kind=kind, top=top)
    for shape in ((3,), (3, 2)):
        with pytest.raises(ValueError, match="preference has shape"):
            ranking.win_rate_labels(jnp.zeros(shape))
    with pytest.raises(ValueError, match="valid has shape"):
        ranking.win_rate_labels(jnp.zeros((2, 2)), valid=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="places has shape"):
        ranking.rank_labels(jnp.ones((), int))


def test_vmap_is_the_leading_axis():
    def everything(scores, labels):
        return ranking.lambda_weights(scores, labels, ideal=True), ranking.ranks(scores)

    for together, mapped in zip(
        run(everything, SCORES, LABELS), jax.jit(jax.vmap(everything))(SCORES, LABELS)
    ):
        np.testing.assert_allclose(mapped, together, atol=1e-7)


def test_two_answers_and_answers_left_out():
    np.testing.assert_allclose(ranking.rank_labels(np.array([1, 2])), [1.0, 0.0])
    values, counted = ranking.answers(np.array([True, False, True]), x=np.array([3.0, 4.0, np.nan]))
    np.testing.assert_array_equal(values, [3.0, 0.0, 0.0])
    np.testing.assert_array_equal(counted, [True, False, False])
