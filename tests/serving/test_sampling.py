"""Sampling from a policy: how long a completion may be."""

import re

import pytest

from polgrad.serving import sampling


@pytest.mark.parametrize(
    ("prompt", "asked", "context", "expected"),
    [
        (9, None, 14, 5),
        (9, None, 100, 64),
        (9, 5, 14, 5),
        (9, 6, 14, "max_tokens is 6; expected at most 5, because it has 9 tokens"),
        (14, None, 14, "it has 14 tokens; expected at most 13, so that the policy's context of 14"),
        (20, 1, 14, "it has 20 tokens; expected at most 13"),
        (0, None, 14, "it has no tokens"),
    ],
)
def test_a_completion_has_the_room_that_the_context_leaves(prompt, asked, context, expected):
    if isinstance(expected, int):
        assert sampling.room("it", prompt, asked, context) == expected
        return
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        sampling.room("it", prompt, asked, context)
    assert " -" not in str(caught.value)
