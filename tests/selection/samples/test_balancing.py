"""Dataset balancing by hand-made groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.selection.samples import anna_karenina_select


@pytest.mark.parametrize(
    "correct, keep",
    [
        ([0, 1, 0, 1, 1], [1, 1, 1, 0, 0]),
        ([1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
        ([1, 0, 0, 0, 1], [1, 1, 1, 1, 0]),
    ],
)
def test_all_wrong_and_the_first_right(correct, keep):
    np.testing.assert_array_equal(
        anna_karenina_select(jnp.array([correct])), np.array([keep], bool)
    )


def test_invalid_samples_are_dropped_and_do_not_count_as_the_first():
    correct = jnp.array([[1, 0, 1, 1], [0, 1, 0, 0]], bool)
    valid = jnp.array([[0, 0, 1, 1], [1, 1, 0, 1]], bool)
    kept = jax.jit(anna_karenina_select)(correct, valid=valid)
    np.testing.assert_array_equal(kept, np.array([[0, 0, 1, 0], [1, 1, 0, 1]], bool))
    with pytest.raises(ValueError, match=r"correct.reshape\(-1, G\)"):
        anna_karenina_select(correct.ravel())
    assert anna_karenina_select(jnp.zeros((3, 0), bool)).shape == (3, 0)
