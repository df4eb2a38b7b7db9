"""Policy filtration: weights over broken ties, choices by their frequencies, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run
from filters import KINDS, by_rank
from hypothesis import given
from hypothesis import strategies as st

from polgrad import selection

NOISE = np.random.default_rng(0).random((4000, 5)).astype(np.float32)
TIES = np.random.default_rng(1).random((4000, 5)).astype(np.float32)
GROUP = np.array([0.2, 0.9, -0.4, 0.9, 0.1], np.float32)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_rank_weights(kind, n):
    found = selection.rank_weights(n, kind=kind)
    np.testing.assert_allclose(found, by_rank(kind, n), rtol=1e-6, atol=1e-7)
    if kind == "best_random":
        np.testing.assert_array_equal(selection.rank_weights(n), found)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000))
def test_filtered_weights_are_the_mean_over_broken_ties(kind, seed):
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 3, 4).astype(np.float32)
    rewards[rng.random(4) < 0.1] = np.nan
    valid = rng.random(4) < 0.8
    on = np.flatnonzero(valid & np.isfinite(rewards))
    expected = np.zeros(4)
    orders = list(itertools.permutations(on)) if on.size else []
    for order in orders:
        ranked = sorted(order, key=lambda i: -rewards[i])  # stable: `order` breaks the ties
        expected[ranked] += by_rank(kind, on.size) / len(orders)
    found = WEIGHTS[kind](rewards, valid)
    np.testing.assert_allclose(found, expected, atol=1e-6)


WEIGHTS = {
    kind: jax.jit(lambda r, v, k=kind: selection.filtered_weights(r, kind=k, valid=v))
    for kind in KINDS
}


def test_filtered_weights_by_default_and_under_an_increasing_map():
    found = run(selection.filtered_weights, GROUP)
    np.testing.assert_allclose(found, [0.125, 0.3125, 0.125, 0.3125, 0.125], rtol=1e-6)
    moved = run(selection.filtered_weights, np.exp(3 * GROUP))
    np.testing.assert_array_equal(moved, found)
    whole = run(selection.filtered_weights, GROUP.reshape(-1), kind="best_worst")
    np.testing.assert_allclose(whole, [0, 0.25, 0.5, 0.25, 0], rtol=1e-6)
    slope = jax.grad(lambda r: (selection.filtered_weights(r) * r).sum())(jnp.asarray(GROUP))
    np.testing.assert_allclose(slope, found, rtol=1e-6)


def test_power_weights():
    rewards = np.array([-0.5, 0.0, 0.25, np.nan], np.float32)
    found = run(selection.power_weights, rewards)
    np.testing.assert_allclose(found, [0.25, 1e-8, 0.0625, 0.0], rtol=1e-5)
    cubed = run(selection.power_weights, rewards, power=3.0, epsilon=0.5)
    np.testing.assert_allclose(cubed, [0.625, 0.5, 0.515625, 0.0], rtol=1e-6)
    flat = run(selection.power_weights, rewards, power=0.0, epsilon=0.0)
    np.testing.assert_array_equal(flat, [1, 1, 1, 0])
    masked = jax.jit(lambda r, v: selection.power_weights(r, valid=v))
    valid = np.array([False, True, True, True])
    np.testing.assert_allclose(masked(rewards, valid)[:2], [0.0, 1e-8], rtol=1e-5)
    slope = jax.grad(lambda r: selection.power_weights(r).sum())(jnp.asarray(rewards))
    np.testing.assert_array_equal(slope, 0.0)


# --- choices ------------------------------------------------------------------------------------


def pairs(function, rewards, *rest, **settings):
    rewards = np.broadcast_to(rewards, TIES.shape)
    return np.asarray(jax.jit(lambda *x: function(*x, **settings))(rewards, TIES, *rest))


def close(counts, chance, draws=4000):
    """Within five standard errors."""
    np.testing.assert_array_less(
        np.abs(counts - draws * chance), 5 * math.sqrt(draws * chance * (1 - chance)) + 1e-9
    )


def test_best_and_random():
    kept = pairs(selection.best_and_random, GROUP, NOISE[:, 0])
    np.testing.assert_array_equal(kept.sum(1), 2)
    assert np.all(kept[:, 1] | kept[:, 3])
    # One of the two best, then a quarter each of the others.
    for sample, chance in enumerate([0.25, 0.625, 0.25, 0.625, 0.25]):
        close(kept[:, sample].sum(), chance)
    equal = pairs(selection.best_and_random, np.zeros(5, np.float32), NOISE[:, 0])
    for sample in range(5):
        close(equal[:, sample].sum(), 0.4)
    # The first of the others at noise 0, the last just below 1; larger tie-breaks win.
    rewards, ties = np.zeros(4, np.float32), np.array([0.1, 0.9, 0.3, 0.2], np.float32)
    pick = jax.jit(selection.best_and_random)
    np.testing.assert_array_equal(pick(rewards, ties, np.float32(0.0)), [1, 1, 0, 0])
    np.testing.assert_array_equal(pick(rewards, ties, np.float32(0.34)), [0, 1, 1, 0])
    np.testing.assert_array_equal(pick(rewards, ties, np.float32(0.999)), [0, 1, 0, 1])


def test_best_and_worst():
    kept = pairs(selection.best_and_worst, GROUP)
    np.testing.assert_array_equal(kept.sum(1), 2)
    assert np.all(kept[:, 2])
    close(kept[:, 1].sum(), 0.5)
    moved = pairs(selection.best_and_worst, np.exp(GROUP))
    np.testing.assert_array_equal(moved, kept)
    equal = pairs(selection.best_and_worst, np.zeros(5, np.float32))
    for sample in range(5):
        close(equal[:, sample].sum(), 0.4)


@pytest.mark.parametrize("function", [selection.best_and_random, selection.best_and_worst])
def test_few_samples_keep_what_there_is(function):
    nan = np.nan
    rewards = np.array([[nan, 1.0, 5.0, nan], [nan, 3.0, nan, nan], [nan] * 4])
    valid = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    rest = (np.full(3, 0.5, np.float32),) if function is selection.best_and_random else ()
    call = jax.jit(lambda r, t, v: function(r, t, *rest, valid=v))
    ties = NOISE[:3, :4]
    np.testing.assert_array_equal(
        call(rewards, ties, valid), [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    )
    valid[0, 2] = False
    np.testing.assert_array_equal(call(rewards, ties, valid)[0], [0, 1, 0, 0])
    with pytest.raises(ValueError, match="ties"):
        function(rewards, ties[:2], *rest)
    with pytest.raises(ValueError, match="valid"):
        function(rewards, ties, *rest, valid=valid[:2])
    with pytest.raises(ValueError, match=r"rewards has shape \[\]"):
        function(np.float32(0.0), np.float32(0.0), *rest)


def test_thresholds():
    rewards = np.array([0.9, 0.5, 0.1, -0.5, -0.9, np.inf, -np.inf, np.nan], np.float32)
    top = run(selection.threshold_filter, rewards)
    np.testing.assert_array_equal(top, [1, 0, 0, 0, 0, 0, 0, 0])
    both = run(selection.threshold_filter, rewards, high=0.0, low=-0.5)
    np.testing.assert_array_equal(both, [1, 1, 1, 0, 1, 0, 0, 0])
    noise = np.array([0.9, 0.4, 0.6, 0.5, 0.2, 0.1, 0.1, 0.1], np.float32)
    random = jax.jit(lambda r, n: selection.threshold_filter(r, share=0.5, noise=n))
    np.testing.assert_array_equal(random(rewards, noise), [1, 1, 0, 0, 1, 0, 0, 0])
    unused = jax.jit(lambda r, n: selection.threshold_filter(r, noise=n))
    np.testing.assert_array_equal(unused(rewards, 0 * noise), top)
    traced = jax.jit(lambda r, n, s: selection.threshold_filter(r, share=s, noise=n))
    np.testing.assert_array_equal(traced(rewards, noise, 0.5), random(rewards, noise))


def test_resampling_follows_the_weights():
    weights = np.array([0.1, 0.0, 0.4, 0.5], np.float32)
    drawn = run(selection.resample, weights, NOISE.reshape(-1))
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    for index in (0, 2, 3):
        close(counts[index], weights[index], NOISE.size)
    edges = run(selection.resample, weights, np.array([0.0, 0.0999, 0.1001, 0.4999, 0.51, 0.999]))
    np.testing.assert_array_equal(edges, [0, 0, 2, 2, 3, 3])


def test_choosing_without_replacement():
    weights = np.broadcast_to(np.array([4.0, 1.0, 0.0, 3.0, 2.0], np.float32), NOISE.shape)
    one = np.asarray(run(selection.choose, weights, NOISE, count=1))
    for sample in range(5):
        close(one[:, sample].sum(), weights[0, sample] / 10)
    two = np.asarray(run(selection.choose, weights, NOISE))
    np.testing.assert_array_equal(two.sum(1), 2)
    # The first, or the second after one of the others.
    close(two[:, 1].sum(), 0.1 + 0.1 * (4 / 6 + 3 / 7 + 2 / 8))
    every = run(selection.choose, weights, NOISE, count=5)
    np.testing.assert_array_equal(every, weights > 0)
    whole = run(selection.choose, np.ones((2, 3)), np.zeros((2, 3)), count=3)
    np.testing.assert_array_equal(whole, True)
    # A noise of 0 waits longest but is not lost.
    last = run(selection.choose, np.ones(3), np.array([0.0, 0.9, 0.8]), count=2)
    np.testing.assert_array_equal(last, [False, True, True])


# --- mistakes --------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="n is 0"):
        selection.rank_weights(0)
    with pytest.raises(ValueError, match="kind"):
        selection.rank_weights(3, kind="worst")
    with pytest.raises(ValueError, match="kind"):
        selection.filtered_weights(x, kind="worst")
    with pytest.raises(ValueError, match=r"rewards has shape \[\]"):
        selection.filtered_weights(1.0)
    with pytest.raises(ValueError, match="valid"):
        selection.filtered_weights(x, valid=x[:1])
    with pytest.raises(ValueError, match="noise"):
        selection.best_and_random(x, x, jnp.ones(3))
    with pytest.raises(ValueError, match="low is"):
        selection.threshold_filter(x, high=0.0, low=0.1)
    selection.threshold_filter(x, high=0.0, low=0.0)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share is"):
            selection.threshold_filter(x, share=share, noise=x)
    selection.threshold_filter(x, share=1.0, noise=x)
    with pytest.raises(ValueError, match="noise is None"):
        selection.threshold_filter(x, share=0.5)
    with pytest.raises(ValueError, match="noise has shape"):
        selection.threshold_filter(x, share=0.5, noise=x[:1])
    with pytest.raises(ValueError, match="power is"):
        selection.power_weights(x, power=-1.0)
    with pytest.raises(ValueError, match="epsilon is"):
        selection.power_weights(x, epsilon=-1.0)
    with pytest.raises(ValueError, match="valid"):
        selection.power_weights(x, valid=x[:1])
    with pytest.raises(ValueError, match="weights"):
        selection.resample(x, x[0])
    with pytest.raises(ValueError, match="noise"):
        selection.resample(x[0], x)
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"count is {count}"):
            selection.choose(x, x, count=count)
    with pytest.raises(ValueError, match="noise"):
        selection.choose(x, x[:1])
    with pytest.raises(ValueError, match=r"weights has shape \[\]"):
        selection.choose(1.0, 1.0)
