"""Parts of the transformer against their formulas."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from flax import nnx

from polgrad.policies import modules


def test_rms_norm_by_hand():
    norm = modules.RMSNorm(2, None, 0.5)
    norm.scale[...] = jnp.array([2.0, 1.0])
    # Mean square 12.5, plus 0.5: divide by sqrt(13).
    np.testing.assert_allclose(norm(jnp.array([3.0, 4.0])), np.array([6, 4]) / np.sqrt(13), 1e-6)
    large = jnp.array([300.0, 400.0], jnp.bfloat16)
    assert norm(large).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm(large).astype(float), [1.697, 1.131], rtol=1e-2)


def test_a_centered_norm_starts_at_zero_and_multiplies_by_one_more():
    norm = modules.RMSNorm(2, None, 0.5, centered=True)
    assert np.all(norm.scale[...] == 0)
    x = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(norm(x), np.array([3, 4]) / np.sqrt(13), 1e-6)
    norm.scale[...] = jnp.array([1.0, -0.5])
    np.testing.assert_allclose(norm(x), np.array([6, 2]) / np.sqrt(13), 1e-6)


def test_an_embedding_is_scaled_by_a_root_rounded_to_the_compute_type():
    embed, scaled = jnp.ones((2, 3072)), SimpleNamespace(embedding_scale=True, width=3072)
    assert modules.embedded(embed, jnp.array(1), scaled, jnp.float32)[0] == np.float32(3072**0.5)
    # sqrt(3072) is 55.43; bfloat16 has 55.5 there.
    assert modules.embedded(embed, jnp.array(1), scaled, jnp.bfloat16)[0] == 55.5


def test_projection_contracts_the_last_axes():
    projection = modules.Projection((2, 3, 4), (None,) * 3, inputs=2, bias=True)
    kernel, bias = np.random.default_rng(0).standard_normal(24).reshape(2, 3, 4), np.arange(4.0)
    projection.kernel[...], projection.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    x = np.random.default_rng(1).standard_normal((5, 2, 3))
    expected = np.einsum("bij,ijk->bk", x, kernel) + bias
    np.testing.assert_allclose(projection(jnp.asarray(x)), expected, atol=1e-5)
    assert nnx.split(projection)[1]["kernel"].get_metadata("axes") == (None,) * 3
