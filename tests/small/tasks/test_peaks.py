"""The reference against samples of a squashed Cauchy variable; where the peaks lie under it."""

import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.small import PeakBandit, length_rewards


def test_the_reference_is_a_histogram_of_a_squashed_cauchy_variable():
    world = PeakBandit()
    probabilities = np.exp(world.log_reference)
    assert probabilities.shape == (100,)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)
    draws = np.tanh(-0.7 + 0.4 * np.random.default_rng(0).standard_cauchy(200_000))
    share = np.histogram(draws, bins=100, range=(-1, 1))[0] / len(draws)
    error = np.sqrt(probabilities * (1 - probabilities) / len(draws))
    assert np.all(np.abs(share - probabilities) < 5 * error)


def test_a_centred_reference_is_symmetric():
    reference = PeakBandit(bins=10, location=0.0).log_reference
    np.testing.assert_allclose(reference, reference[::-1], atol=1e-12)
    # Four bins: atanh(1/2) = log(3) / 2 cuts the tails off.
    four = np.exp(PeakBandit(bins=4, location=0.0, scale=np.log(3.0) / 2).log_reference)
    np.testing.assert_allclose(four, 0.25, rtol=1e-12)


@pytest.mark.parametrize(("peak", "expected"), [(70.0, 0.04), (20.0, 0.38)])
def test_how_much_reward_the_reference_has(peak, expected):
    world = PeakBandit(peak=peak)
    reward = np.exp(world.log_reference) @ world.action_rewards
    assert abs(reward - expected) < 0.01


def test_rewards_by_hand():
    world = PeakBandit(length=2)
    np.testing.assert_allclose(
        world.action_rewards[[70, 80, 60, 50]], np.exp([0.0, -1.0, -1.0, -4.0]), rtol=1e-12
    )
    answers = jnp.array([[70, 70], [80, 70], [60, 80]])
    one = np.exp(-1.0)
    np.testing.assert_allclose(world.reward(answers), [1.0, (1 + one) / 2, one], rtol=1e-6)
    narrow = PeakBandit(peak=3.0, width=2.0, bins=5)
    np.testing.assert_allclose(narrow.action_rewards[1], np.exp(-1.0), rtol=1e-12)
    assert narrow.action_rewards.shape == (5,)


def test_lengths():
    lengths = jnp.array([0, 5, 300])
    np.testing.assert_array_equal(length_rewards(lengths), [0.0, -5.0, -300.0])
    np.testing.assert_array_equal(length_rewards(lengths, target=203), [-203.0, -198.0, -97.0])
