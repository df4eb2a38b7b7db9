"""What a model of right answers says of wrong ones."""

import jax
import numpy as np
import pytest
from compiled import run

from polgrad import tabular

BEHAVIOR = np.array([0.4, 0.3, 0.2, 0.1])
SUCCESS = np.array([0.9, 0.3, 0.1, 0.5])
RATE = 0.52


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_the_implicit_negative_policy(x64):
    negative = run(tabular.implicit_negative_policy, BEHAVIOR, BEHAVIOR * SUCCESS / RATE, RATE)
    np.testing.assert_allclose(negative, BEHAVIOR * (1 - SUCCESS) / (1 - RATE), atol=1e-12)
    assert float(negative.sum()) == pytest.approx(1.0) and np.all(np.asarray(negative) >= 0)
    mixed = RATE * BEHAVIOR * SUCCESS / RATE + (1 - RATE) * np.asarray(negative)
    np.testing.assert_allclose(mixed, BEHAVIOR, atol=1e-12)
    without = run(tabular.implicit_negative_policy, BEHAVIOR, BEHAVIOR[::-1], 1.0)
    np.testing.assert_array_equal(without, BEHAVIOR)
