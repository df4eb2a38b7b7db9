import numpy as np
import pytest

from polgrad.reward_models.agreement import preference_agreement, standardized_mean

NAN, INF = np.nan, np.inf


def test_agreement_by_hand():
    first, second = [2.0, 1.0, 1.0, 3.0, 0.5], [1.0, 2.0, 1.0, 1.0, 0.5]
    assert preference_agreement(first, second, [1, -1, 0, -1, 1]) == 0.6
    assert preference_agreement(first, second, [1, -1, 0, 1, 0]) == 1.0
    assert preference_agreement(second, first, [1, -1, 0, 1, 0]) == 0.4
    assert preference_agreement([INF, NAN, -INF], [INF, 1.0, 0.0], [0, 1, -1]) == 2 / 3
    assert preference_agreement([NAN, 1.0], [1.0, NAN], [0, 0]) == 0.0
    assert preference_agreement([], [], []) == 0.5


def test_the_mean_of_two_units():
    scores = np.array([[1.0, 2.0, 3.0], [300.0, 100.0, 200.0]])
    unit = 1.0 / np.sqrt(2.0 / 3.0)
    np.testing.assert_allclose(standardized_mean(scores), [0.0, -unit / 2, unit / 2], atol=1e-12)
    np.testing.assert_allclose(standardized_mean(scores[:1]), [-unit, 0.0, unit], atol=1e-12)
    moved = standardized_mean(scores * [[3.0], [0.1]] + 5.0)
    np.testing.assert_allclose(moved, standardized_mean(scores), atol=1e-12)
    flat = standardized_mean([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]])
    np.testing.assert_allclose(flat, [-unit / 2, 0.0, unit / 2], atol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="labels \\[1\\]"):
        preference_agreement([1.0, 2.0], [1.0, 2.0], [1])
    with pytest.raises(ValueError, match="expected \\[n\\]"):
        preference_agreement([[1.0]], [[1.0]], [[1]])
    with pytest.raises(ValueError, match="second_scores \\[1\\]"):
        preference_agreement([1.0, 2.0], [1.0], [1, 1])
    with pytest.raises(ValueError, match="labels has \\[1, 2\\]"):
        preference_agreement([1.0, 2.0], [1.0, 2.0], [1, 2])
    for scores in (np.ones(2), np.ones((0, 2)), np.ones((2, 0))):
        with pytest.raises(ValueError, match="scores has shape"):
            standardized_mean(scores)
