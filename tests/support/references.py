"""A loss against an independent NumPy reference, value and gradient, on random inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled import run
from hypothesis import given, settings
from hypothesis import strategies as st

_STEP = 1e-6


def agrees_with(loss, reference, count, *, scale=3.0, below=np.inf, examples=8, rows=6):
    """Asserts that `loss` of `count` arrays [B] is `reference`, row by row, in float64.

    The reference sees NumPy arrays; its gradient is taken by central differences, all rows at
    once, since no row depends on another.

    Args:
      loss: a function of arrays only.
      reference: the same, written from the formula.
      count: how many arrays.
      scale: their standard deviation.
      below: their upper bound, 0 for log-probabilities.
      examples: how many draws.
      rows: B.
    """

    def summed(*arrays):
        value = loss(*arrays)
        return jnp.sum(value), value

    both = jax.grad(summed, argnums=tuple(range(count)), has_aux=True)

    @settings(max_examples=examples)
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        arrays = np.random.default_rng(seed).normal(0.0, scale, (count, rows))
        arrays = np.minimum(arrays, -arrays) - 0.01 if below == 0 else arrays
        gradients, value = run(both, *map(jnp.asarray, arrays))
        np.testing.assert_allclose(value, reference(*arrays), rtol=1e-9, atol=1e-12)
        for i, gradient in enumerate(gradients):
            step = _STEP * np.eye(count)[i][:, None]
            slope = (reference(*(arrays + step)) - reference(*(arrays - step))) / (2 * _STEP)
            np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=1e-7)

    check()
