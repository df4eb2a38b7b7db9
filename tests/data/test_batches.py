import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from polgrad.data import batch_indices

seeds = st.integers(0, 2**40)


def sequence(seed, batch_size, size, steps):
    return np.concatenate([batch_indices(seed, step, batch_size, size) for step in range(steps)])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, batch_size=st.integers(1, 40), size=st.integers(1, 60))
def test_each_epoch_is_a_permutation(seed, batch_size, size):
    steps = -(-3 * size // batch_size)
    epochs = sequence(seed, batch_size, size, steps)[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, first=st.integers(1, 40), second=st.integers(1, 40), size=st.integers(1, 60))
def test_the_order_does_not_depend_on_the_batch_size(seed, first, second, size):
    one = sequence(seed, first, size, -(-120 // first))[:120]
    other = sequence(seed, second, size, -(-120 // second))[:120]
    np.testing.assert_array_equal(one, other)


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    assert (first != second).any() and (first != np.arange(100)).any()
    assert (batch_indices(1, 0, 100, 100) != first).any()


def test_a_late_step_of_a_large_seed():
    indices = batch_indices(2**64 - 1, 10**13, 3, 7)
    assert indices.dtype == np.int64 and indices.shape == (3,)
    assert ((indices >= 0) & (indices < 7)).all()


def test_the_stream_is_pinned():
    # A resumed run must meet the batches of the run that it resumes, on any numpy.
    assert batch_indices(0, 0, 10, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 1, 1), "seed"),
        ((0, -1, 1, 1), "step"),
        ((0, 0, 0, 1), "batch_size"),
        ((0, 0, 1, 0), "size"),
        ((0, 0.5, 1, 1), "step"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be an integer"):
        batch_indices(*arguments)
