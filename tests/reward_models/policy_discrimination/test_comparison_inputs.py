"""The layout of two trajectories for a reward model, and what is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import reward_models

SEPARATOR, END = 98, 99
ids = st.lists(st.integers(1, 50), max_size=9)


def build(prompt, reference, candidate, length=20, response_length=4):
    return reward_models.comparison_input(
        prompt,
        reference,
        candidate,
        separator=SEPARATOR,
        end=END,
        length=length,
        response_length=response_length,
    )


def test_the_layout():
    tokens, mask = build([1, 2], [3], [4, 5, 6], length=12)
    np.testing.assert_array_equal(tokens, [1, 2, 3, SEPARATOR, 1, 2, 4, 5, 6, END, 0, 0])
    np.testing.assert_array_equal(mask, [True] * 10 + [False] * 2)
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_what_is_cut():
    tokens, mask = build([1, 2, 3, 4], [5, 6, 7, 8], [9], length=12, response_length=3)
    # 12 - 3 - 1 - 2 leaves 6: the last three tokens of the prompt, twice.
    np.testing.assert_array_equal(tokens, [2, 3, 4, 5, 6, 7, SEPARATOR, 2, 3, 4, 9, END])
    assert mask.all()
    tokens, mask = build([1, 2], [5, 6, 7], [8, 9, 10], length=8, response_length=3)
    np.testing.assert_array_equal(tokens, [5, 6, 7, SEPARATOR, 8, 9, 10, END])
    tokens, mask = build([1, 2], [5], [6], length=2, response_length=0)
    np.testing.assert_array_equal(tokens, [SEPARATOR, END])
    odd, mask = build([1, 2], [5], [6], length=7, response_length=1)
    np.testing.assert_array_equal(odd, [2, 5, SEPARATOR, 2, 6, END, 0])


@given(ids, ids, ids)
def test_it_always_fits_and_ends_where_the_mask_ends(prompt, reference, candidate):
    tokens, mask = build(prompt, reference, candidate)
    used = tokens[mask].tolist()
    assert mask[: len(used)].all() and not mask[len(used) :].any()
    assert used[-1] == END and not tokens[~mask].any()
    first, second = used[: used.index(SEPARATOR)], used[used.index(SEPARATOR) + 1 : -1]
    kept = len(first) - len(reference[:4])
    assert kept == len(second) - len(candidate[:4])
    assert first == [*prompt[len(prompt) - kept :], *reference[:4]]
    assert second == [*prompt[len(prompt) - kept :], *candidate[:4]]
    # Whatever more of the prompt there was had no room.
    assert kept == len(prompt) or len(used) in (19, 20)


@pytest.mark.parametrize(("length", "response_length"), [(9, 4), (2, -1), (1, 0)])
def test_no_room_for_two_responses(length, response_length):
    with pytest.raises(ValueError, match=f"length is {length}"):
        build([1], [2], [3], length=length, response_length=response_length)
