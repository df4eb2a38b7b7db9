"""Label noise: the wrapper against closed forms, probabilities there and back."""

import functools

import jax
import numpy as np
import pytest

from polgrad import losses

PAIR = np.array([1.3, -2.0]), np.array([0.0, 0.5])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_of_dpo_it_is_robust_dpo_and_of_ipo_a_stretched_target():
    robust = losses.debias_flips(losses.dpo, flip_rate=0.2)(*PAIR, beta=0.3)
    np.testing.assert_allclose(
        robust, losses.robust_dpo(*PAIR, beta=0.3, flip_rate=0.2), rtol=1e-12
    )
    ipo = losses.debias_flips(losses.ipo, flip_rate=0.2)(*PAIR, beta=0.5)
    np.testing.assert_allclose(ipo[0], -1.643333, atol=1e-6)
    h = PAIR[0] - PAIR[1]
    np.testing.assert_allclose(ipo, (h - 5 / 3) ** 2 + 1 - 25 / 9, rtol=1e-9)


@pytest.mark.parametrize("name", ["dpo", "hinge", "nca", "apo_down"])
def test_the_mean_over_flips_is_the_clean_loss(name):
    loss = getattr(losses, name)
    debiased = losses.debias_flips(loss, flip_rate=0.3)
    mean = 0.7 * debiased(*PAIR) + 0.3 * debiased(*PAIR[::-1])
    np.testing.assert_allclose(mean, loss(*PAIR), rtol=1e-9)


def test_smoothed_labels():
    smoothed = losses.smooth_labels(losses.dpo, label_smoothing=0.2)(*PAIR, beta=0.3)
    np.testing.assert_allclose(smoothed, losses.dpo(*PAIR, beta=0.3, label_smoothing=0.2))
    hinge = losses.smooth_labels(losses.hinge, label_smoothing=0.5)
    np.testing.assert_allclose(hinge(*PAIR), hinge(*PAIR[::-1]))
    # Labels flipped at a rate, seen by a loss that is debiased for it and smoothed by it.
    both = losses.smooth_labels(losses.debias_flips(losses.ipo, flip_rate=0.1), label_smoothing=0.1)
    np.testing.assert_allclose(both(*PAIR), losses.ipo(*PAIR), rtol=1e-9)
    assert losses.smooth_labels(losses.nca, label_smoothing=0.1).__name__ == "nca"
    for smoothing in (-0.1, 0.51):
        with pytest.raises(ValueError, match="label_smoothing"):
            losses.smooth_labels(losses.dpo, label_smoothing=smoothing)


def test_probabilities_by_hand_and_the_optimum_of_robust_dpo():
    p = np.array([0.8])
    noisy = losses.flipped_probability(p, flip_rate=0.2)
    np.testing.assert_allclose(noisy, 0.68, rtol=1e-12)
    np.testing.assert_allclose(losses.flipped_probability(noisy, flip_rate=0.2), 0.608)
    np.testing.assert_allclose(losses.unflipped_probability(noisy, flip_rate=0.2), p, rtol=1e-12)
    learned = losses.unflipped_probability(noisy, flip_rate=0.1)
    z = np.log(learned / (1 - learned))
    loss = functools.partial(losses.robust_dpo, beta=1.0, flip_rate=0.1)
    mean = lambda x: (noisy * loss(x, 0 * x) + (1 - noisy) * loss(0 * x, x)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(mean)(z), 0.0, atol=1e-12)
    np.testing.assert_allclose(losses.flipped_probability(p), 0.74)
    np.testing.assert_allclose(losses.unflipped_probability(np.array([0.74])), p)


@pytest.mark.parametrize("rate", [-0.1, 0.5])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="flip_rate"):
        losses.debias_flips(losses.dpo, flip_rate=rate)
    for function in (losses.flipped_probability, losses.unflipped_probability):
        with pytest.raises(ValueError, match="flip_rate"):
            function(np.array([0.5]), flip_rate=rate)
