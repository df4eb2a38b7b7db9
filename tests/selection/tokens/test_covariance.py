import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import selection

RNG = np.random.default_rng(0)
MASK = (np.arange(8) < np.array([8, 5, 7, 0])[:, None]).astype(np.float32)
LOGP = RNG.normal(-2, 1, size=(4, 8)).astype(np.float32)
ADVANTAGES = RNG.normal(size=(4, 8)).astype(np.float32)
NOISE = RNG.random((4, 8)).astype(np.float32)
COUNT = int(MASK.sum())  # 20


def covariance():
    """The definition in numpy; minus infinity where masked."""
    on = MASK > 0
    c = (LOGP - LOGP[on].mean()) * (ADVANTAGES - ADVANTAGES[on].mean())
    return np.where(on, c, -np.inf)


def with_nan(x):
    return np.where(MASK > 0, x, np.nan).astype(np.float32)


def test_token_covariance_equals_the_definition_and_averages_to_the_covariance():
    c = run(selection.token_covariance, with_nan(LOGP), with_nan(ADVANTAGES), MASK)
    np.testing.assert_allclose(c, covariance(), rtol=1e-4, atol=1e-6)
    on = MASK > 0
    expected = np.cov(LOGP[on], ADVANTAGES[on], ddof=0)[0, 1]
    assert np.asarray(c)[on].mean() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("fraction", "count"), [(1e-4, 1), (0.1, 2), (0.15, 3), (0.19, 3), (1.0, COUNT)]
)
def test_covariance_top_takes_the_largest(fraction, count):
    chosen = run(selection.covariance_top, LOGP, ADVANTAGES, MASK, fraction=fraction)
    order = np.argsort(-covariance(), axis=None)[:count]
    np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(order))


@pytest.mark.parametrize(("fraction", "count"), [(1e-4, 1), (0.15, 3), (1.0, None)])
def test_covariance_band_takes_the_candidates_of_smallest_noise(fraction, count):
    settings = {"fraction": fraction, "low": 0.1, "high": 0.8}
    chosen = run(selection.covariance_band, LOGP, ADVANTAGES, MASK, NOISE, **settings)
    candidates = np.flatnonzero((covariance() > 0.1) & (covariance() < 0.8))
    assert 3 < candidates.size < np.sum(covariance() > 0.1), "both ends of the band cut"
    order = candidates[np.argsort(NOISE.reshape(-1)[candidates])][:count]
    np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(order))


def test_band_leaves_out_what_is_excluded_and_keeps_its_share():
    def choose(exclude):
        return selection.covariance_band(
            LOGP, ADVANTAGES, MASK, NOISE, fraction=0.15, low=0.1, high=2.0, exclude=exclude
        )

    first = np.asarray(run(choose, np.zeros((4, 8), bool)))
    second = np.asarray(run(choose, first))
    assert first.sum() == second.sum() == 3 and not np.any(first & second)


def test_the_choice_is_uniform_over_the_candidates():
    keys = jax.random.split(jax.random.key(0), 4000)

    def count(keys):
        draw = lambda k: selection.covariance_band(  # noqa: E731
            LOGP, ADVANTAGES, MASK, jax.random.uniform(k, (4, 8)), fraction=0.1, low=0.1, high=2.0
        )
        return jnp.sum(jax.vmap(draw)(keys), axis=0)

    counts = np.asarray(run(count, keys))
    candidates = (covariance() > 0.1) & (covariance() < 2.0)
    assert np.all(counts[~candidates] == 0)
    expected = 4000 * 2 / candidates.sum()
    assert np.abs(counts[candidates] - expected).max() < 5 * np.sqrt(expected)


def test_permuted_rows_permute_the_choice():
    rows = np.array([2, 0, 3, 1])
    args = (LOGP, ADVANTAGES, MASK, NOISE)
    for function, given in (
        (lambda *x: selection.covariance_top(*x, fraction=0.2), args[:3]),
        (lambda *x: selection.covariance_band(*x, fraction=0.2, low=0.0, high=2.0), args),
    ):
        whole, moved = run(function, *given), run(function, *(x[rows] for x in given))
        np.testing.assert_array_equal(np.asarray(whole)[rows], moved)


def test_nothing_to_choose():
    """Equal advantages have covariance 0; an empty mask has no token at all."""
    equal = np.ones((4, 1), np.float32)
    band = {"fraction": 0.5, "low": -1.0, "high": 5.0}
    assert not np.any(run(selection.covariance_top, LOGP, equal, MASK, fraction=0.5))
    assert not np.any(run(selection.covariance_band, LOGP, equal, MASK, NOISE, fraction=0.5))
    empty = np.zeros_like(MASK)
    assert not np.any(run(selection.covariance_top, LOGP, ADVANTAGES, empty, fraction=0.5))
    assert not np.any(run(selection.covariance_band, LOGP, ADVANTAGES, empty, NOISE, **band))


def test_excluded_tokens_enter_neither_means_nor_choice():
    impossible = np.zeros((4, 8), bool)
    impossible[0, 3] = True
    logp = np.where(impossible, -np.inf, LOGP).astype(np.float32)
    shorter = np.where(impossible, 0.0, MASK).astype(np.float32)
    np.testing.assert_array_equal(
        run(selection.token_covariance, logp, ADVANTAGES, MASK),
        run(selection.token_covariance, LOGP, ADVANTAGES, shorter),
    )


def test_no_gradient():
    total = lambda x, a: jnp.sum(  # noqa: E731
        jnp.where(MASK > 0, selection.token_covariance(x, a, MASK), 0.0)
    )
    for gradient in grad(total, argnums=(0, 1))(LOGP, ADVANTAGES):
        np.testing.assert_array_equal(gradient, 0.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"fraction is 2.0, expected a number in \(0, 1\]"):
        selection.covariance_top(LOGP, ADVANTAGES, MASK, fraction=2.0)
    with pytest.raises(ValueError, match="low is 5.0"):
        selection.covariance_band(LOGP, ADVANTAGES, MASK, NOISE, low=5.0, high=5.0)
    with pytest.raises(ValueError, match=r"noise has shape \[8\]"):
        selection.covariance_band(LOGP, ADVANTAGES, MASK, NOISE[0])
    with pytest.raises(ValueError, match=r"exclude has shape \[8\]"):
        selection.covariance_band(LOGP, ADVANTAGES, MASK, NOISE, exclude=MASK[0])
    with pytest.raises(ValueError, match=r"advantages has shape \[8\]"):
        selection.covariance_top(LOGP, ADVANTAGES[0], MASK)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_high_entropy_takes_what_is_not_below_the_quantile(fraction):
    on = MASK > 0
    chosen = np.asarray(run(selection.high_entropy, with_nan(NOISE), MASK, fraction=fraction))
    threshold = np.quantile(NOISE[on].astype(np.float64), 1 - fraction)
    np.testing.assert_array_equal(chosen, on & (threshold - 1e-7 <= NOISE))
    if fraction == 0.2:
        np.testing.assert_array_equal(run(selection.high_entropy, NOISE, MASK), chosen)


def test_high_entropy_of_few_equal_or_no_tokens():
    mask = np.zeros_like(MASK)
    assert not np.any(run(selection.high_entropy, NOISE, mask))
    mask[1, 2] = 1
    np.testing.assert_array_equal(run(selection.high_entropy, NOISE, mask), mask > 0)
    equal = np.full((4, 8), 0.5, np.float32)
    np.testing.assert_array_equal(run(selection.high_entropy, equal, MASK), MASK > 0)
    # Eleven tokens: 1 + floor(0.2 * 10) = 3, whatever the rounding of 0.2.
    eleven = np.arange(11, dtype=np.float32)[None]
    chosen = run(selection.high_entropy, eleven, np.ones((1, 11), np.float32))
    np.testing.assert_array_equal(np.flatnonzero(chosen), [8, 9, 10])
    # What is not finite is not counted: of ten again two.
    eleven[0, 10] = np.inf
    chosen = run(selection.high_entropy, eleven, np.ones((1, 11), np.float32))
    np.testing.assert_array_equal(np.flatnonzero(chosen), [8, 9])


def test_high_entropy_checks_and_stops():
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            selection.high_entropy(NOISE, MASK, fraction=fraction)
    with pytest.raises(ValueError, match="entropy"):
        selection.high_entropy(NOISE[0], MASK[0])
    with pytest.raises(ValueError, match="mask"):
        selection.high_entropy(NOISE, MASK[:2])


def test_the_band_is_open_and_its_limits_are_one_and_five():
    # Covariances are exactly -2, 0, 2: advantages -2, 0, 2 against logp -1, 0, 1 about their means.
    advantages = jnp.array([[-2.0, 0.0, 2.0, 0.0]])
    logp, mask = jnp.array([[1.0, 0.0, -1.0, 0.0]]), jnp.ones((1, 4))
    covariance = selection.token_covariance(-logp, advantages, mask)
    np.testing.assert_array_equal(covariance, [[2.0, 0.0, 2.0, 0.0]])

    def band(logp, **limits):
        noise = jnp.array([[0.1, 0.2, 0.3, 0.4]])
        return np.asarray(
            selection.covariance_band(logp, advantages, mask, noise, fraction=1.0, **limits)
        )[0].tolist()

    inside = [True, False, True, False]
    assert band(-logp) == band(-logp, low=1.0, high=5.0) == inside
    assert band(-logp, low=2.0) == band(-logp, high=2.0, low=1.0) == [False] * 4
    assert band(-0.75 * logp) == inside and band(-0.5 * logp) == [False] * 4  # 1.5; exactly 1
    assert band(-2.75 * logp) == [False] * 4  # 5.5
