"""Two views of the same samples: cosines by hand, transport with equal columns, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import reward_models

B, D, K = 4, 3, 5
seeds = st.integers(0, 2**16)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def cosines(a, b):
    a, b = (
        x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (a, b)
    )
    return a @ b.T


def info_nce_valid(first, second, valid):
    return reward_models.info_nce(first, second, valid=valid)


@given(seeds)
def test_info_nce_by_formula(seed):
    first, second = draw(seed, (B, D), (B, D))
    valid = np.array([True, True, False, True])
    p = np.exp(cosines(first, second) / 0.05)
    expected = np.log(p.sum(1)) - np.log(np.diagonal(p))
    np.testing.assert_allclose(
        run(reward_models.info_nce, first, second), expected, rtol=1e-4, atol=1e-4
    )
    expected = (np.log(p[:, valid].sum(1)) - np.log(np.diagonal(p))) * valid
    found = run(info_nce_valid, first, second, valid)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found[2] == 0.0


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_info_nce_of_orthonormal_views(temperature):
    views = 3.0 * np.eye(D, dtype=np.float32)
    found = run(reward_models.info_nce, views, views, temperature=temperature)
    expected = math.log1p((D - 1) * math.exp(-1 / temperature))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_info_nce_learns_in_both_views_and_the_length_is_free():
    first, second = draw(0, (B, D), (B, D))
    slopes = grad(lambda a, b: reward_models.info_nce(a, b, temperature=0.5).sum(), argnums=(0, 1))
    for x, slope in zip((first, second), slopes(first, second)):
        assert np.all(np.abs(slope).max(1) > 1e-4)
        np.testing.assert_allclose((x * slope).sum(1), 0.0, atol=1e-5)
    scaled = run(reward_models.info_nce, 1e25 * first, 1e-25 * second)
    np.testing.assert_allclose(
        scaled, run(reward_models.info_nce, first, second), rtol=1e-3, atol=1e-5
    )
    step = 1e-3
    ahead, behind = (
        run(
            reward_models.info_nce,
            first + x * np.eye(B, D, dtype=np.float32),
            second,
            temperature=0.5,
        )
        for x in (step, -step)
    )
    directional = float(np.sum(np.asarray(slopes(first, second)[0]) * np.eye(B, D)))
    assert (ahead - behind).sum() / (2 * step) == pytest.approx(directional, abs=2e-3)


def test_edges_are_finite():
    first, second, prototypes = draw(1, (B, D), (B, D), (K, D))
    first[0], second[1], first[2, 0], prototypes[0] = 0.0, 0.0, np.inf, np.nan
    everyone = np.ones(B, bool)
    slopes = grad(lambda a, b, v: reward_models.info_nce(a, b, valid=v).sum(), argnums=(0, 1))
    for valid in (everyone, ~everyone):
        assert np.all(np.isfinite(run(info_nce_valid, first, second, valid)))
        assert np.all(np.isfinite(slopes(first, second, valid)))
    np.testing.assert_array_equal(run(info_nce_valid, first, second, ~everyone), 0.0)
    found = run(reward_models.info_nce, first, second)
    assert found[2] == 0.0
    assert found[0] == pytest.approx(math.log(3.0), abs=1e-6)  # cosine 0 with the three that count
    np.testing.assert_array_equal(slopes(first, second, everyone)[0][::2], 0.0)
    swav = grad(lambda a, b, c: reward_models.swav(a, b, c).sum(), argnums=(0, 1, 2))
    assert np.all(np.isfinite(run(reward_models.swav, first, second, prototypes)))
    for slope in swav(first, second, prototypes):
        assert np.all(np.isfinite(slope))
    odd = np.array([[np.inf, -np.inf, np.nan], [0.0, 1.0, 2.0]], np.float32)
    assert np.all(np.isfinite(run(reward_models.sinkhorn, odd)))


def transport(scores, epsilon, iterations):
    q = np.exp((scores - scores.max()) / epsilon)
    for _ in range(iterations):
        q = q / q.sum(0) * len(q) / q.shape[1]
        q = q / q.sum(1, keepdims=True)
    return q


@given(seeds)
def test_sinkhorn_by_formula(seed):
    scores = np.clip(draw(seed, (B, K))[0], -1, 1)
    found = run(reward_models.sinkhorn, scores)
    np.testing.assert_allclose(found, transport(scores.astype(float), 0.05, 3), atol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)


def test_sinkhorn_balances_the_columns():
    (scores,) = draw(2, (B, K))
    found = run(reward_models.sinkhorn, scores, epsilon=0.5, iterations=60)
    np.testing.assert_allclose(found.sum(0), B / K, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    once = run(reward_models.sinkhorn, scores, epsilon=0.5, iterations=1)
    np.testing.assert_allclose(once, transport(scores.astype(float), 0.5, 1), atol=1e-5)
    # No sum of the rows alone is kept: the columns were scaled first.
    assert np.abs(once.sum(0) - B / K).max() > 0.01
    slope = grad(lambda x: (reward_models.sinkhorn(x) * x).sum())(scores)
    np.testing.assert_allclose(slope, run(reward_models.sinkhorn, scores), atol=1e-6)


def swav_reference(first, second, prototypes, temperature, epsilon, iterations):
    views = [cosines(x, prototypes) for x in (first, second)]
    logp = [x / temperature - np.log(np.exp(x / temperature).sum(1, keepdims=True)) for x in views]
    codes = [transport(x, epsilon, iterations) for x in views]
    return -(codes[1] * logp[0]).sum(1) - (codes[0] * logp[1]).sum(1)


@given(seeds)
def test_swav_by_formula(seed):
    arrays = draw(seed, (B, D), (B, D), (K, D))
    expected = swav_reference(*arrays, 0.1, 0.05, 3)
    np.testing.assert_allclose(run(reward_models.swav, *arrays), expected, rtol=1e-3, atol=1e-3)


def test_swav_settings_and_gradient():
    arrays = draw(3, (B, D), (B, D), (K, D))
    settings = {"temperature": 0.7, "epsilon": 0.4, "iterations": 2}
    expected = swav_reference(*arrays, *settings.values())
    np.testing.assert_allclose(run(reward_models.swav, *arrays, **settings), expected, rtol=1e-4)
    # Codes are constants: the gradient is that of a cross-entropy with them held.
    directions = [cosines(x, arrays[2]) for x in arrays[:2]]
    codes = [transport(x, 0.4, 2) for x in directions]

    def held(a, b, c):
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
        logp = [jax.nn.log_softmax(unit(x) @ unit(c).T / 0.7) for x in (a, b)]
        return -(codes[1] * logp[0] + codes[0] * logp[1]).sum()

    ours = grad(lambda *x: reward_models.swav(*x, **settings).sum(), argnums=(0, 1, 2))(*arrays)
    for found, wanted in zip(ours, grad(held, argnums=(0, 1, 2))(*arrays)):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        assert np.abs(found).max() > 1e-2
    swapped = run(reward_models.swav, arrays[1], arrays[0], arrays[2], **settings)
    np.testing.assert_allclose(swapped, expected, rtol=1e-4)


def test_difference_views():
    chosen, rejected = draw(4, (2, D), (2, D))
    found = run(reward_models.difference_views, chosen, rejected)
    np.testing.assert_allclose(found[:2], chosen - rejected, rtol=1e-6)
    np.testing.assert_allclose(found[2:], rejected - chosen, rtol=1e-6)
    low = run(
        reward_models.difference_views, *(jnp.asarray(x, jnp.bfloat16) for x in (chosen, rejected))
    )
    assert low.dtype == jnp.float32
    slopes = grad(lambda a, b: reward_models.difference_views(a, b)[0].sum(), argnums=(0, 1))
    np.testing.assert_array_equal(slopes(chosen, rejected)[0][0], 1.0)
    np.testing.assert_array_equal(slopes(chosen, rejected)[1][0], -1.0)


def test_bad_arguments():
    x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    for function in (reward_models.info_nce, reward_models.difference_views):
        with pytest.raises(ValueError, match="expected .B, D. = "):
            function(x, y)
        with pytest.raises(ValueError, match="expected rank 2"):
            function(x[0], x[0])
    with pytest.raises(ValueError, match="valid has shape"):
        reward_models.info_nce(x, x, valid=jnp.ones(3, bool))
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            reward_models.info_nce(x, x, temperature=temperature)
        with pytest.raises(ValueError, match="temperature"):
            reward_models.swav(x, x, x, temperature=temperature)
        with pytest.raises(ValueError, match="epsilon"):
            reward_models.sinkhorn(x, epsilon=temperature)
    with pytest.raises(ValueError, match="iterations is 0"):
        reward_models.sinkhorn(x, iterations=0)
    with pytest.raises(ValueError, match="scores has shape"):
        reward_models.sinkhorn(x[0])
    with pytest.raises(ValueError, match="second has shape"):
        reward_models.swav(x, y, x)
    with pytest.raises(ValueError, match="first has shape"):
        reward_models.swav(x[0], x[0], x)
    with pytest.raises(ValueError, match="prototypes has shape"):
        reward_models.swav(x, x, y)
    assert reward_models.info_nce(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0,)
