"""Which samples a teacher still has something to say about."""

import jax
import numpy as np
from compiled import run

from polgrad import selection

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, TEACHING = RNG.normal(-2, 0.5, (3, 3, 4)).astype(np.float32)


# --- masks --------------------------------------------------------------------------------------


def test_masks_by_hand():
    correct = np.array([[1, 0], [0, 0], [1, 1]], bool)
    response = run(selection.distillation_mask, correct)
    np.testing.assert_array_equal(response, [[0, 1], [1, 1], [0, 0]])
    group = run(selection.distillation_mask, correct, level="group")
    np.testing.assert_array_equal(group, [[0, 0], [1, 1], [0, 0]])


def test_a_sample_that_could_not_be_scored_is_not_distilled_and_not_right():
    correct = np.array([[1, 0], [0, 0], [1, 0]], bool)
    valid = np.array([[0, 1], [1, 0], [1, 0]], bool)
    masked = jax.jit(selection.distillation_mask, static_argnames="level")
    for level, last in (("response", 0), ("group", 0)):
        found = masked(correct, level=level, valid=valid)
        np.testing.assert_array_equal(found, [[0, 1], [1, 0], [last, 0]])
