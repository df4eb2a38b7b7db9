"""Pairs picked from the samples of a prompt, and exchanged."""

import jax
import numpy as np
import pytest
from compiled import run
from hypothesis import strategies as st

from polgrad.data import preferences

N = 4
CHOSEN, REJECTED = np.arange(8).reshape(N, 2), 100 + np.arange(8).reshape(N, 2)
HIGH, LOW = np.array([9.0, 5.0, 3.0, 7.0], np.float32), np.array([8.0, 5.0, 1.0, 2.0], np.float32)
scores = st.floats(0.0, 10.0, width=32)


def select_valid(scores, noise, valid):
    return preferences.select_pair(scores, noise, valid=valid)


def test_selected_pairs():
    scores = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, np.nan], [np.inf, 1.0, np.nan]], np.float32)
    noise = np.array([[0.1, 0.9, 0.2], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]], np.float32)
    found = run(preferences.select_pair, scores, noise)
    np.testing.assert_array_equal(found.chosen, [1, 0, 1])
    np.testing.assert_array_equal(found.rejected[:2], [2, 1])
    np.testing.assert_array_equal(found.usable, [True, True, False])
    valid = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    found = run(select_valid, scores, noise, valid)
    np.testing.assert_array_equal(found.chosen[:2], [2, 1])
    assert found.rejected[0] == 0
    np.testing.assert_array_equal(found.usable, [True, False, False])


def test_the_rejected_sample_is_uniform_among_the_others():
    noise = np.random.default_rng(0).random((3000, 3)).astype(np.float32)
    scores = np.broadcast_to(np.array([1.0, 3.0, 2.0], np.float32), noise.shape)
    found = run(preferences.select_pair, scores, noise)
    np.testing.assert_array_equal(found.chosen, 1)
    assert np.mean(np.asarray(found.rejected) == 0) == pytest.approx(0.5, abs=0.03)


def test_flipped_pairs():
    flip = np.array([True, False, False, True])
    chosen, rejected = {"a": CHOSEN, "b": HIGH}, {"a": REJECTED, "b": LOW}
    there, here = run(preferences.flip_pairs, chosen, rejected, flip)
    np.testing.assert_array_equal(there["a"], np.where(flip[:, None], REJECTED, CHOSEN))
    np.testing.assert_array_equal(here["a"], np.where(flip[:, None], CHOSEN, REJECTED))
    np.testing.assert_array_equal(there["b"], np.where(flip, LOW, HIGH))
    back, again = run(preferences.flip_pairs, there, here, flip)
    for found, wanted in zip(jax.tree.leaves((back, again)), jax.tree.leaves((chosen, rejected))):
        np.testing.assert_array_equal(found, wanted)
