"""Held-out accuracy: the numbers of samples that pass@k is told for."""

import pytest

from polgrad.training import evaluation


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, [1]), (2, [1, 2]), (10, [1, 2, 4, 8, 10]), (16, [1, 2, 4, 8, 16]), (100, 100)],
)
def test_pass_at_k_is_told_for_the_samples_that_were_paid_for(samples, expected):
    found = evaluation.tried(samples)
    assert found == expected if isinstance(expected, list) else found[-2:] == [64, 100]
