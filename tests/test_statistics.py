import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0)],
)
def test_wilson_textbook_values(successes, trials, low, high):
    assert statistics.wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-5)


@given(
    trials=st.integers(1, 2000),
    share=st.floats(0, 1),
    confidence=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_wilson_bounds_are_where_the_score_test_turns(trials, share, confidence):
    """The definition: p with |successes - n p| = z sqrt(n p (1 - p)); and both ends mirror."""
    z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[confidence]
    successes = int(share * trials)
    low, high = statistics.wilson_interval(successes, trials, confidence=confidence)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    for p in (low, high):
        if 0.0 < p < 1.0:
            deviation = abs(successes - trials * p)
            assert deviation == pytest.approx(z * np.sqrt(trials * p * (1 - p)), rel=1e-6)
    mirrored = statistics.wilson_interval(trials - successes, trials, confidence=confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_without_trials_and_bad_arguments():
    assert statistics.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes is 3, expected 0..trials = 2"):
        statistics.wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence is 95"):
        statistics.wilson_interval(1, 2, confidence=95)


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(k):
    n = 6
    for correct in range(n + 1):
        right = [i < correct for i in range(n)]
        share = np.mean([any(subset) for subset in itertools.combinations(right, k)])
        assert statistics.pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(share)


def test_pass_at_k_is_unbiased():
    """Averaged over binomial counts it is 1 - (1 - p)^k exactly."""
    n, p = 5, 0.3
    counts = np.arange(n + 1)
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in counts]
    for k in range(1, n + 1):
        mean = chance @ statistics.pass_at_k(counts, n, k)
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_does_not_overflow_and_names_bad_arguments():
    np.testing.assert_allclose(statistics.pass_at_k([0, 5000, 10_000], 10_000, 1), [0, 0.5, 1])
    with pytest.raises(ValueError, match="k is 4, expected 1..n = 3"):
        statistics.pass_at_k([1], 3, 4)
    with pytest.raises(ValueError, match="correct has values outside 0..n = 3"):
        statistics.pass_at_k([4], 3, 1)
