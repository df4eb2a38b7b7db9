"""Parts of the transformer against their formulas."""

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


def test_projection_contracts_the_last_axes():
    projection = modules.Projection((2, 3, 4), (None,) * 3, inputs=2, bias=True)
    kernel, bias = np.random.default_rng(0).standard_normal(24).reshape(2, 3, 4), np.arange(4.0)
    projection.kernel[...], projection.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    x = np.random.default_rng(1).standard_normal((5, 2, 3))
    expected = np.einsum("bij,ijk->bk", x, kernel) + bias
    np.testing.assert_allclose(projection(jnp.asarray(x)), expected, atol=1e-5)
    assert nnx.split(projection)[1]["kernel"].get_metadata("axes") == (None,) * 3
