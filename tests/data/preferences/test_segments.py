"""Segments: every window once, its contents, edges."""

import jax
import numpy as np
import pytest

from polgrad import data

LENGTHS = np.array([3, 1, 5, 2])
STEPS = {"state": np.arange(24).reshape(4, 6), "action": np.arange(48).reshape(4, 6, 2)}


def test_every_window_is_equally_likely_and_whole():
    noise = (np.arange(60) + 0.5) / 60
    found = data.preferences.sample_segments(STEPS, LENGTHS, noise, length=2)
    windows = [(n, s) for n, length in enumerate(LENGTHS) for s in range(length - 1)]
    drawn = list(zip(found.trajectory.tolist(), found.start.tolist()))
    assert drawn == [w for w in windows for _ in range(60 // len(windows))][:60] or (
        {w: drawn.count(w) for w in windows}.keys() == set(drawn)
    )
    counts = [drawn.count(w) for w in windows]
    assert max(counts) - min(counts) <= 1
    for b, (n, s) in enumerate(drawn):
        np.testing.assert_array_equal(found.steps["state"][b], STEPS["state"][n, s : s + 2])
        np.testing.assert_array_equal(found.steps["action"][b], STEPS["action"][n, s : s + 2])


def test_noise_close_to_one_and_under_jit():
    draw = jax.jit(lambda u: data.preferences.sample_segments(STEPS, LENGTHS, u, length=5))
    found = draw(np.array([0.0, 0.5, 1.0], np.float32))
    np.testing.assert_array_equal(found.trajectory, 2)
    np.testing.assert_array_equal(found.start, 0)


def test_bad_arguments():
    noise = np.zeros(2)
    for length in (0, 7):
        with pytest.raises(ValueError, match=f"length is {length}, expected 1 to 6"):
            data.preferences.sample_segments(STEPS, LENGTHS, noise, length=length)
    with pytest.raises(ValueError, match="no trajectory of 6 steps"):
        data.preferences.sample_segments(STEPS, LENGTHS, noise, length=6)
    with pytest.raises(ValueError, match="trajectories"):
        data.preferences.sample_segments(STEPS, LENGTHS[:3], noise, length=2)
    with pytest.raises(ValueError, match="lengths"):
        data.preferences.sample_segments(STEPS, LENGTHS[None], noise, length=2)
