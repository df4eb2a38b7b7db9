"""Two-digit addition: answers, rewards and the noise of the warm start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.small import Addition

ADDITION = Addition()
QUESTIONS = jnp.array([[7, 5], [99, 99], [40, 60]])


def test_answers_keep_leading_zeros():
    np.testing.assert_array_equal(ADDITION.answer(QUESTIONS), [[0, 1, 2], [1, 9, 8], [1, 0, 0]])
    assert ADDITION.length == 3
    np.testing.assert_array_equal(Addition(3).answer(jnp.array([[999, 1]])), [[1, 0, 0, 0]])


def test_every_digit_must_be_right():
    answers = ADDITION.answer(QUESTIONS)
    tokens = jnp.stack([answers, answers.at[:, 0].add(1), answers.at[:, 2].set(10)], axis=1)
    np.testing.assert_array_equal(ADDITION.reward(QUESTIONS, tokens), [[1, 0, 0]] * 3)


def test_features_are_the_digits():
    features = np.asarray(ADDITION.features(jnp.array([[7, 35]]))).reshape(4, 10)
    assert ADDITION.width == features.size
    np.testing.assert_array_equal(features.argmax(1), [0, 7, 3, 5])
    np.testing.assert_array_equal(features.sum(1), 1)


def test_everything_is_every_pair_once():
    pairs = {tuple(x) for x in np.asarray(ADDITION.everything()).tolist()}
    assert pairs == {(a, b) for a in range(100) for b in range(100)}


def test_questions_cover_all_operands():
    questions = np.asarray(ADDITION.draw(jax.random.key(0), 2000))
    assert questions.min() == 0 and questions.max() == 99


@pytest.mark.parametrize(("noise", "vocabulary"), [(0.0, 10), (0.5, 10), (0.5, 20)])
def test_share_of_right_tokens_under_noise(noise, vocabulary):
    questions = ADDITION.draw(jax.random.key(0), 8000)
    noisy = ADDITION.noisy_answer(jax.random.key(1), questions, noise=noise, vocabulary=vocabulary)
    share = float(jnp.mean(noisy == ADDITION.answer(questions)))
    # 24,000 tokens: a standard error of 0.003.
    assert abs(share - (1 - noise + noise / vocabulary)) < 0.015
    assert int(noisy.max()) == (9 if noise == 0 else vocabulary - 1)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="digits"):
        Addition(0)
    with pytest.raises(ValueError, match="noise"):
        ADDITION.noisy_answer(jax.random.key(0), QUESTIONS, noise=1.5)
