"""Range checks: ends, NaN, and traced values."""

import math

import jax
import jax.numpy as jnp
import pytest

from polgrad._scalars import in_range


@pytest.mark.parametrize("value", [0.0, 0.5, 1, jnp.float32(1.0)])
def test_inside(value):
    assert in_range("x", value, low=0.0, high=1.0) is None


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, -math.inf])
def test_outside_names_value_and_range(value):
    with pytest.raises(ValueError, match=r"x is .*expected a number in \[0, 1\]"):
        in_range("x", value, low=0.0, high=1.0)


def test_an_open_end_excludes_itself():
    in_range("x", 1e-9, low=0.0, above=True)
    with pytest.raises(ValueError, match=r"\(0, inf\]"):
        in_range("x", 0.0, low=0.0, above=True)


def test_an_open_upper_end_excludes_itself():
    in_range("x", 0.499, low=0.0, high=0.5, below=True)
    with pytest.raises(ValueError, match=r"x is 0.5, expected a number in \[0, 0.5\)"):
        in_range("x", 0.5, low=0.0, high=0.5, below=True)


def test_every_entry_of_an_array_must_be_inside():
    in_range("x", jnp.array([0.0, 0.5]), low=0.0, high=0.5)
    with pytest.raises(ValueError, match="x is"):
        in_range("x", jnp.array([0.0, 0.6]), low=0.0, high=0.5)


def test_traced_values_pass():
    def f(x):
        in_range("x", x, low=0.0)
        return x

    assert jax.jit(f)(-1.0) == -1.0
