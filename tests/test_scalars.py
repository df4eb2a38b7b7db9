"""Range checks: ends, NaN, and traced values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import diagnostics, losses, ratios, schedules, selection
from polgrad._scalars import clip_widths, in_range, limits


@pytest.mark.parametrize("value", [0.0, 0.5, 1, jnp.float32(1.0)])
def test_inside(value):
    assert in_range("x", value, low=0.0, high=1.0) is None


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, -math.inf])
def test_outside_names_value_and_range(value):
    with pytest.raises(ValueError, match=r"x is .*expected a number in \[0, 1\]"):
        in_range("x", value, low=0.0, high=1.0)


def test_an_open_end_excludes_itself():
    in_range("x", 1e-9, low=0.0, above=True)
    with pytest.raises(ValueError, match=r"x is 0.0, expected a number above 0$"):
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


def test_an_end_with_a_name_is_named():
    with pytest.raises(ValueError, match="x is 3, expected at most y = 2$"):
        in_range("x", 3, low=0.0, high=2.0, high_name="y")
    with pytest.raises(ValueError, match="x is 3, expected below y = 3$"):
        in_range("x", 3, high=3, high_name="y", below=True)
    with pytest.raises(ValueError, match="x is 3, expected at least y = 4$"):
        in_range("x", 3, low=4, low_name="y")
    with pytest.raises(ValueError, match="x is 3, expected above y = 3$"):
        in_range("x", 3, low=3.0, low_name="y", above=True)
    # The end that is passed is the one without a name.
    with pytest.raises(ValueError, match=r"x is -1, expected a number in \[0, 2\]$"):
        in_range("x", -1, low=0.0, high=2.0, high_name="y")


def test_ends_and_values_may_be_arrays():
    end = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    in_range("x", 1.0, high=end)
    with pytest.raises(
        ValueError, match=r"x is 2.0, expected at most y = \[\[1. 2.\] \[3. 4.\]\]$"
    ):
        in_range("x", 2.0, high=end, high_name="y")
    with pytest.raises(
        ValueError, match=r"x is \[\[1. 2.\] \[3. 4.\]\], expected a number of at most 3$"
    ):
        in_range("x", end, high=3.0)
    with pytest.raises(ValueError, match=r"x is 2.0, expected a number of at most \[1. 3.\]$"):
        in_range("x", 2.0, high=np.array([1.0, 3.0]))


def test_limits_are_a_pair_in_order():
    assert limits("clip", (0.0, 2.0)) is None
    with pytest.raises(
        ValueError, match=r"clip is \(3.0, 2.0\), expected \(low, high\) with 0 <= low"
    ):
        limits("clip", (3.0, 2.0))
    with pytest.raises(ValueError, match=r"clip is \(-1.0, 2.0\)"):
        limits("clip", (-1.0, 2.0))


X, MASK = jnp.zeros((2, 3)), jnp.ones((2, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (functools.partial(losses.cispo, X, X, X, cap_high=-1.0), "cap_high is -1.0, expected a "),
        (
            functools.partial(losses.cispo, X, X, X, cap_low=6.0),
            "cap_low is 6.0, expected at most cap_high = 5$",
        ),
        (
            functools.partial(losses.cispo, X, X, X, cap_low=2.0, cap_high=jnp.array([1.0, 2, 3])),
            r"cap_low is 2.0, expected at most cap_high = \[1. 2. 3.\]$",
        ),
        (
            functools.partial(selection.rejection_mask, X, X, MASK, high=-1.0),
            "high is -1.0, expected at least low = -0.693147$",
        ),
        (
            functools.partial(
                ratios.truncated_importance_weights, X, X, MASK, floor=3.0, cap=jnp.array([1.0, 2])
            ),
            r"floor is 3.0, expected at most cap = \[1. 2.\]$",
        ),
        (
            functools.partial(schedules.annealed_coefficient, 0, initial=0.0),
            "floor is 0.001, expected at most initial = 0$",
        ),
        (
            functools.partial(losses.density_weight, X, low=20.0),
            "high is 10.0, expected at least low = 20$",
        ),
    ],
)
def test_a_message_names_both_of_two_arguments_that_exclude_each_other(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


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
        ({"clip_high": -0.1}, "clip_high is -0.1, expected a number of at least 0$"),
    ],
)
def test_a_clip_that_is_no_distance_from_one_is_refused(name, settings, message):
    CLIPPED[name](clip_low=0.0, clip_high=0.0)
    CLIPPED[name](clip_low=1.0, clip_high=math.inf)
    with pytest.raises(ValueError, match=message):
        CLIPPED[name](**settings)


@pytest.mark.parametrize("name", CLIPPED)
def test_bounds_of_the_ratio_given_as_distances_are_refused(name):
    message = (
        r"clip_low is 0.8 and clip_high is 1.2, expected distances of the ratio from 1 "
        r"\(0.2 and 0.2 allow ratios from 0.8 to 1.2\)"
    )
    with pytest.raises(ValueError, match=message):
        CLIPPED[name](clip_low=0.8, clip_high=1.2)


def test_only_what_looks_like_bounds_of_the_ratio_is_refused():
    for low in (0.5, 0.999, jnp.array([0.2, 0.8])):
        with pytest.raises(ValueError, match="expected distances of the ratio from 1"):
            clip_widths(low, 1.001)
    for low, high in [(0.49, 1.2), (0.8, 1.0), (1.0, 1.2), (1.0, 1.0), (0.2, 9.0), (0.8, math.inf)]:
        clip_widths(low, high)
    jax.jit(clip_widths)(0.8, 1.2)  # the range of a traced number is the caller's business


@pytest.mark.parametrize("value", ["0.2", None, {}])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=f"clip_low is {value!r}, expected a number"):
        losses.ppo_clip(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1)), clip_low=value)
