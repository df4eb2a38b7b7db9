"""Decode-ready weights: the plain step's numbers, and matrices rounded to half a scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.policies import TransformerConfig, TransformerNetwork
from polgrad.policies.decoder import prepare, restore, round_matrix

CONFIG = TransformerConfig(
    vocab_size=11,
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=10,
    max_length=8,
    qkv_bias=True,
    qk_norm=True,
)
GEMMA = dataclasses.replace(
    CONFIG,
    activation="gelu_tanh",
    embedding_scale=True,
    centered_norms=True,
    post_norms=True,
    query_scalar=5,
    attention_cap=2.0,
    window=2,
    global_every=2,
    local_rope_theta=100.0,
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("config", "weights"), [(CONFIG, "full"), (CONFIG, "int8"), (GEMMA, "full")]
)
def test_a_prepared_step_is_the_plain_step(config, weights):
    network = TransformerNetwork(config)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), network.shapes())
        plain = jax.jit(network.round_layers)(params) if weights == "int8" else params
        settings = {"compute_dtype": jnp.float64, "weights": weights}
        ready = jax.jit(lambda params: prepare(config, params, **settings))(params)
        cache = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape)),
            network.init_cache(3, 6, jnp.float64),
        )
        # The last row lies outside the cache and must write nothing.
        tokens, positions = jnp.array([1, 10, 4]), jnp.array([0, 3, 6])
        step = jax.jit(network.decode, static_argnames="compute_dtype")
        want, after = step(plain, tokens, positions, cache, compute_dtype=jnp.float64)
        step = jax.jit(lambda ready, cache: ready.decode(tokens, positions, ready.caches(cache)))
        got, kept = step(ready, cache)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
            kept,
            ready.caches(after),
        )


def test_rounding_is_off_by_half_a_scale_and_keeps_columns_of_zeros():
    kernel = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
    kernel[:, 2] = 0
    rounded = round_matrix(jnp.asarray(kernel))
    np.testing.assert_allclose(rounded.scales, np.abs(kernel).max(0) / 127, rtol=1e-6)
    assert np.abs(np.asarray(rounded.values)).max(0).tolist() == [127, 127, 0, 127, 127]
    gap = np.abs(np.asarray(restore(rounded, jnp.float32)) - kernel)
    assert (gap <= 0.5001 * np.asarray(rounded.scales)).all() and gap.max() > 0
