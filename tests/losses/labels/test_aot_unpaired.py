"""AOT without pairs: quantiles of good and bad answers."""

import jax
import numpy as np
import pytest

from polgrad import losses

RNG = np.random.default_rng(0)
LOGS = RNG.normal(-5, 2, (4, 5))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def sorted_loss(upper, lower, beta, s):
    z = beta * (np.sort(upper) - np.sort(lower))
    return (1 - s) * np.log1p(np.exp(-z)) + s * np.log1p(np.exp(z))


@pytest.mark.parametrize("s", [0.0, 0.2])
def test_equals_the_sorted_form(s):
    w, r, ref_w, ref_r = LOGS
    loss = losses.aot(w, r, ref_w, ref_r, label_smoothing=s)
    order = np.argsort(w - r)
    np.testing.assert_allclose(loss[order], sorted_loss(w - r, ref_w - ref_r, 0.01, s), rtol=1e-9)
    loss = losses.aot_unpaired(w, r, label_smoothing=s)
    np.testing.assert_allclose(loss[np.argsort(w)], sorted_loss(w, r, 0.01, s), rtol=1e-9)
