import itertools
import math

import numpy as np
import pytest
import scipy.stats
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


SAMPLES = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5, 8.9])


@pytest.mark.parametrize(
    ("values", "mean"),
    [([2.0], 2.0), ([1.0, 5.0], 3.0), ([0.0, 1.0, 3.0, 50.0], 2.0), ([9.0, 1.0, 2.0, 3.0, 4.0], 3)],
)
def test_interquartile_mean_by_hand(values, mean):
    assert statistics.interquartile_mean(values) == pytest.approx(mean)


def test_interquartile_mean_is_the_trimmed_mean_of_scipy():
    assert statistics.interquartile_mean(SAMPLES) == pytest.approx(
        scipy.stats.trim_mean(SAMPLES, 0.25)
    )
    by_task = SAMPLES.reshape(3, 3)
    assert statistics.interquartile_mean(by_task) == statistics.interquartile_mean(SAMPLES)


def test_the_bootstrap_interval_is_that_of_scipy():
    low, high = statistics.bootstrap_interval(SAMPLES, statistic=np.mean, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (SAMPLES,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx(theirs, abs=0.08)


def test_the_bootstrap_of_two_seeds_by_hand():
    # The mean of two draws from {0, 1} is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    assert statistics.bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert statistics.bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)
    assert statistics.bootstrap_interval([0.5]) == (-math.inf, math.inf)


def test_the_bootstrap_is_stratified_by_task():
    """Every task keeps its number of runs: tasks far apart do not widen the interval."""
    values = np.array([[0.0, 100.0]] * 6)
    assert statistics.bootstrap_interval(values, statistic=np.mean) == (50.0, 50.0)


def test_bootstrap_intervals_cover_at_their_rate():
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(300, 30))
    covered = 0
    for row in draws:
        low, high = statistics.bootstrap_interval(row, statistic=np.mean, resamples=300)
        covered += low <= 0.0 <= high
    assert 0.90 <= covered / 300 <= 0.97


def test_probability_of_improvement_is_the_rank_sum_of_scipy():
    ours, theirs = SAMPLES, np.array([2.6, 3.5, 0.1])
    u = scipy.stats.mannwhitneyu(ours, theirs).statistic
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(u / 27)
    assert statistics.probability_of_improvement([1.0, 2.0], [1.0, 0.0]) == 0.875
    assert statistics.probability_of_improvement([1.0], [1.0]) == 0.5


def test_seeds_needed_is_where_the_t_test_decides():
    differences = np.array([0.5, -0.2, 0.4, 0.1, -0.1])
    mean, sd = differences.mean(), differences.std(ddof=1)

    def p_value(n):
        return 2 * scipy.stats.t.sf(mean / (sd / math.sqrt(n)), n - 1)

    total = 5 + statistics.seeds_needed(differences)
    assert p_value(total) < 0.05 <= p_value(total - 1)
    assert statistics.seeds_needed(differences) == statistics.seeds_needed(-differences) > 0
    assert statistics.seeds_needed([1.0, 1.1, 0.9, 1.0]) == 0
    assert statistics.seeds_needed([1.0, -1.0]) is None
    assert statistics.seeds_needed([1.0]) is None
    assert statistics.seeds_needed([0.0, 0.0]) is None


def test_arms_are_compared_seed_by_seed():
    theirs = np.array([10.0, -20.0, 3.0, 40.0, 5.0])
    comparison = statistics.compare(theirs + 1.0, theirs)
    assert comparison[:3] == pytest.approx((1.0, 1.0, 1.0))
    assert comparison.probability_of_improvement == pytest.approx(15 / 25)
    assert comparison.seeds_needed == 0
    with pytest.raises(ValueError, match=r"ours has shape \[5\] and theirs \[4\]"):
        statistics.compare(theirs, theirs[:4])
    with pytest.raises(ValueError, match="at least one seed"):
        statistics.interquartile_mean([])


def test_a_power_law_is_recovered():
    sizes = np.array([5e7, 1e8, 2e8, 5e8, 1e9])
    law = statistics.fit_power_law(sizes, 0.9 * sizes**-0.0425)
    assert law == pytest.approx((0.9, -0.0425, 1.0))
    assert law.coefficient * 1e9**law.exponent == pytest.approx(0.373, abs=1e-3)
    assert statistics.fit_power_law([1.0, 2.0], [3.0, 3.0]) == pytest.approx((3.0, 0.0, 1.0))


@given(seed=st.integers(0, 2**16))
def test_a_noisy_power_law_by_regression(seed):
    rng = np.random.default_rng(seed)
    x, noise = rng.uniform(1, 9, 12), rng.normal(size=12)
    y = 2.0 * x**0.5 * np.exp(0.3 * noise)
    found = statistics.fit_power_law(x, y)
    line = scipy.stats.linregress(np.log(x), np.log(y))
    expected = (np.exp(line.intercept), line.slope, line.rvalue**2)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 2.0], [1.0], "expected .M. for both"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "expected .M. for both"),
        ([1.0, 1.0], [1.0, 2.0], "two different values"),
        ([0.0, 1.0], [1.0, 2.0], "positive"),
        ([1.0, 2.0], [0.0, 2.0], "positive"),
        ([], [], "at least one"),
    ],
)
def test_no_power_law_fits(x, y, message):
    with pytest.raises(ValueError, match=message):
        statistics.fit_power_law(x, y)


def test_main_effects_of_an_additive_design_are_its_terms():
    # 2 x 3 cells, 4 seeds: the seeds shift all cells alike, so paired differences have no spread.
    data, method = np.array([0.0, 3.0]), np.array([1.0, 2.0, 0.5])
    seeds = np.array([0.3, -0.2, 0.1, 0.7])
    values = data[:, None, None] + method[:, None] + seeds
    effects = statistics.main_effects(values, ["data", "method"])
    assert [effect[:2] for effect in effects] == [("data", 1), ("method", 1), ("method", 2)]
    for effect, expected in zip(effects, [3.0, 1.0, -0.5]):
        assert effect[2:] == pytest.approx((expected,) * 3)


def test_main_effects_average_over_the_other_factor_and_over_seeds():
    values = np.array([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [10.0, 15.0]]])
    first, second = statistics.main_effects(values, ["a", "b"])
    # Seed by seed: (4 + 8) / 2 and (4 + 12) / 2; (2 + 6) / 2 and (2 + 10) / 2.
    assert first.difference == pytest.approx(7.0) and second.difference == pytest.approx(5.0)
    assert (first.low, first.high) == pytest.approx((6.0, 8.0))
    assert first[3:] == statistics.bootstrap_interval(np.array([6.0, 8.0]), statistic=np.mean)


def test_a_missing_cell_leaves_its_match_out():
    values = np.array([[[1.0], [5.0]], [[2.0], [np.nan]]])
    first, second = statistics.main_effects(values, ["algorithm", "width"])
    assert first.difference == 1.0 and second.difference == 4.0
    assert (first.low, first.high) == (-np.inf, np.inf)


def test_bad_designs_are_named():
    with pytest.raises(ValueError, match="factors a; expected an axis"):
        statistics.main_effects(np.ones((2, 2, 3)), ["a"])
    with pytest.raises(ValueError, match="level 1 of b has no cell"):
        statistics.main_effects(np.array([[[1.0], [np.nan]], [[2.0], [np.nan]]]), ["a", "b"])
    one_seed = np.array([[[1.0, 1.0], [np.nan, 1.0]], [[2.0, 1.0], [np.nan, 1.0]]])
    with pytest.raises(ValueError, match="level 1 of b"):
        statistics.main_effects(one_seed, ["a", "b"])
