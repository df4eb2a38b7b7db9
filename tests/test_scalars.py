"""Range checks: ends, NaN, and traced values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import diagnostics, losses
from polgrad._scalars import in_range, limits


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


def test_a_traced_end_lets_every_value_pass():
    def f(end):
        in_range("x", 3.0, high=end)
        return end

    np.testing.assert_array_equal(jax.vmap(f)(jnp.array([1.0, 2.0])), [1.0, 2.0])


def test_limits_are_a_pair_in_order():
    assert limits("clip", (0.0, 2.0)) is None
    with pytest.raises(
        ValueError, match=r"clip is \(3.0, 2.0\), expected \(low, high\) with 0 <= low"
    ):
        limits("clip", (3.0, 2.0))
    with pytest.raises(ValueError, match=r"clip is \(-1.0, 2.0\)"):
        limits("clip", (-1.0, 2.0))


X, MASK = jnp.zeros((2, 3)), jnp.ones((2, 3))
# Losses whose clip is a distance of a ratio from 1, and the share that is clipped.
CLIPPED = {
    "ppo_clip": functools.partial(losses.ppo_clip, X, X, X),
    "ppo_clip_sequence": functools.partial(losses.ppo_clip_sequence, X, X, X[:, 0], MASK),
    "gspo": functools.partial(losses.gspo, X, X, X[:, 0], MASK),
    "gspo_token": functools.partial(losses.gspo_token, X, X, X, MASK),
    "luspo": functools.partial(losses.luspo, X, X, X[:, 0], MASK),
    "clip_cov": functools.partial(losses.clip_cov, X, X, X, MASK),
    "kdrl": functools.partial(losses.kdrl, X, X, X, X, beta=0.1),
    "clip_fraction": functools.partial(diagnostics.clip_fraction, X, X, X, MASK),
}


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clip_low": -0.1}, r"clip_low is -0.1, expected a number in \[0, 1\]"),
        ({"clip_low": 1.1}, r"clip_low is 1.1, expected a number in \[0, 1\]"),
        ({"clip_high": -0.1}, r"clip_high is -0.1, expected a number in \[0, inf\]"),
    ],
)
def test_a_clip_that_is_no_distance_from_one_is_refused(name, settings, message):
    CLIPPED[name](clip_low=0.0, clip_high=0.0)
    CLIPPED[name](clip_low=1.0, clip_high=math.inf)
    with pytest.raises(ValueError, match=message):
        CLIPPED[name](**settings)
