"""Surrogates of whole answers by hand: the token ratios 0.5, 1 and 2, of which a mask takes two."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.algorithms import surrogates

LOGP = jnp.log(jnp.array([[0.5, 1.0, 2.0]] * 4)) - 1.0
BEHAVIOR = jnp.full((4, 3), -1.0)
ADVANTAGES = jnp.array([1.0, -1.0, 1.0, -1.0])
# The first two answers have the ratios 0.5 and 1, the last two 1 and 2.
MASK = jnp.array([[1.0, 1.0, 0.0]] * 2 + [[0.0, 1.0, 1.0]] * 2)
LOW, HIGH = math.sqrt(0.5), math.sqrt(2.0)

HAND_COMPUTED = [
    # -n min(s A, clip(s, 1 - 2e-3, 1 + 2.5e-3) A), s the geometric mean.
    (surrogates.LUSPO(), [-2 * LOW, 2 * (1 - 2e-3), -2 * (1 + 2.5e-3), 2 * HIGH]),
    # -A times the geometric mean of ratios between e^-0.4 (for A < 0) and e^0.4 (for A > 0).
    (surrogates.GMPO(), [-LOW, math.exp(-0.2), -math.exp(0.2), HIGH]),
    # -min(W A, clip(W, 0.8, 1.2) A), W the product.
    (surrogates.PPOClipSequence(), [-0.5, 0.8, -1.2, 2]),
    (surrogates.PPOClipSequence(clip_low=0.6, clip_high=0.9), [-0.5, 0.5, -1.9, 2]),
]


@pytest.mark.parametrize(("surrogate", "losses"), HAND_COMPUTED)
def test_losses_of_answers_by_hand(surrogate, losses):
    found = surrogate.surrogate(LOGP, BEHAVIOR, ADVANTAGES, MASK)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    assert surrogate.of_answers and surrogate.ratio_settings == ("clip_low", "clip_high")
