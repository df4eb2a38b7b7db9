import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polgrad.distributions import inverse_cdf
from polgrad.rollouts import Sampling, draw, token_uniforms
from polgrad.rollouts.sampling import sample_keys
from polgrad.rollouts.token_filters import filter_logits

JIT_CDF = jax.jit(inverse_cdf)
JIT_DRAW = jax.jit(draw, static_argnames="sampling")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, expected a number of at least 1$"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature is inf, expected a finite number"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"stop_ids": (3, -1)}, "stop_ids"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_tokens": 4, **settings})


def test_settings_from_a_list_hash():
    assert hash(Sampling(max_tokens=2, stop_ids=[1, 2])) == hash(Sampling(2, stop_ids=(1, 2)))


def test_uniforms_have_the_documented_address():
    key = jax.random.key(3)
    keys = sample_keys(key, jnp.array([7, 4_000_000_000], jnp.uint32), 3)
    u = token_uniforms(keys[1], jnp.array([5, 0, 2]))
    for sample, t in enumerate((5, 0, 2)):
        address = jax.random.fold_in(jax.random.fold_in(key, 4_000_000_000), sample)
        assert u[sample] == jax.random.uniform(jax.random.fold_in(address, t))


def test_tiny_tail_after_a_peak_is_reached():
    # 1e-4 of mass spread over 50 000 tokens: a float32 running sum beside 1.0 would lose it.
    weights = np.full((1, 50_000), 2e-9, np.float32)
    weights[0, 0] = 1.0
    u = np.linspace(0.99992, 0.99999, 200, dtype=np.float32)[None]
    tokens = np.asarray(JIT_CDF(weights, u)[0])[0]
    expected = (u[0].astype(np.float64) * weights.sum(dtype=np.float64) - 1.0) / 2e-9
    # One rounding of a number near 1 moves the answer by 30 tokens here; there are about ten.
    np.testing.assert_allclose(tokens, expected, atol=300)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2, "temperature": 1.5},
    ],
)
def test_frequencies_and_log_probabilities_are_those_of_the_filtered_softmax(settings):
    logits = jnp.array([[0.3, -1.0, 1.2, 0.0, 2.0, -0.5, 0.9]])
    sampling = Sampling(max_tokens=1, **settings)
    u = jax.random.uniform(jax.random.key(1), (1, 20_000))
    tokens, logp = JIT_DRAW(logits, u, sampling)
    expected = np.asarray(jax.nn.log_softmax(filter_logits(logits, **settings)))[0]
    np.testing.assert_allclose(logp[0], expected[np.asarray(tokens[0])], atol=1e-6)

    counts = np.bincount(np.asarray(tokens[0]), minlength=7)
    kept = np.isfinite(expected)
    assert counts[~kept].sum() == 0
    mean = 20_000 * np.exp(expected[kept])
    statistic = ((counts[kept] - mean) ** 2 / mean).sum()
    assert statistic < stats.chi2.ppf(0.999, max(kept.sum() - 1, 1))


def test_greedy_is_the_arg_max_with_log_probability_zero():
    logits = jnp.array([[0.0, 2.0, 2.0], [3.0, -jnp.inf, 1.0]])
    u = jnp.full((2, 4), 0.99)
    tokens, logp = JIT_DRAW(logits, u, Sampling(max_tokens=1, temperature=0.0))
    np.testing.assert_array_equal(tokens, [[1] * 4, [0] * 4])
    np.testing.assert_array_equal(logp, np.zeros((2, 4)))
    top = JIT_DRAW(logits[1:], u[1:], Sampling(max_tokens=1, top_k=1))
    np.testing.assert_array_equal(top[0], [[0] * 4])
    np.testing.assert_array_equal(top[1], np.zeros((1, 4)))


def test_forbidden_tokens_and_large_logits_stay_exact():
    logits = jnp.array([[1e4, -jnp.inf, 1e4, -1e4]])
    tokens, logp = JIT_DRAW(logits, jnp.array([[0.25, 0.75]]), Sampling(max_tokens=1))
    np.testing.assert_array_equal(tokens, [[0, 2]])
    np.testing.assert_allclose(logp, np.log([[0.5, 0.5]]), rtol=1e-6)


def test_a_nan_shows_in_the_log_probability():
    logits = jnp.array([[0.0, jnp.nan, 1.0]])
    assert jnp.isnan(JIT_DRAW(logits, jnp.array([[0.5]]), Sampling(max_tokens=1))[1]).all()


@pytest.mark.parametrize("function", [inverse_cdf, functools.partial(draw, sampling=Sampling(1))])
def test_shapes_are_checked_where_the_asserts_of_another_library_are_off(function):
    chex.disable_asserts()
    try:
        with pytest.raises(ValueError, match=r"has shape \[3\], expected rank 2: \[B, V\]"):
            function(jnp.ones(3), jnp.zeros((1, 1)))
        with pytest.raises(ValueError, match=r"uniforms has shape \[1, 4\], expected \[B, K\] = "):
            function(jnp.ones((2, 3)), jnp.zeros((1, 4)))
    finally:
        chex.enable_asserts()
