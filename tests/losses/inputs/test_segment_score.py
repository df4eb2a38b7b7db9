"""Scores of segments of behaviour."""

import jax
import numpy as np
import pytest

from polgrad import losses

MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
LOGP = np.array([[-1.0, -2.0, -5.0], [-1.0, -99.0, -5.0], [-1.0, -1.0, -1.0]])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_scores_by_hand():
    np.testing.assert_allclose(losses.segment_score(LOGP, MASK), [-0.8, -0.6, 0.0], rtol=1e-12)
    score = losses.segment_score(LOGP, MASK, alpha=1.0, discount=0.5)
    np.testing.assert_allclose(score, [-3.25, -2.25, 0.0], rtol=1e-12)
