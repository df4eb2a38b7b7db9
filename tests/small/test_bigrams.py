"""Bigram policies: enumeration, scores and samples agree with the definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.distributions import token_statistics
from polgrad.small import bigrams
from tests.support.compiled import grad, run

SIZE, LENGTH = 3, 4
RNG = np.random.default_rng(0)
POLICY = bigrams.Bigrams(
    RNG.normal(size=SIZE).astype(np.float32),
    RNG.normal(size=(LENGTH - 1, SIZE, SIZE)).astype(np.float32),
)
SEQUENCES = np.array(list(itertools.product(range(SIZE), repeat=LENGTH)))


def sequence_logp(policy, tokens):
    return token_statistics(bigrams.token_logits(policy, tokens), tokens)[0].sum(-1)


def by_definition(words):
    first, following = (np.asarray(jax.nn.log_softmax(x)) for x in POLICY)
    steps = [following[t, words[:, t], words[:, t + 1]] for t in range(LENGTH - 1)]
    return first[words[:, 0]] + sum(steps)


def test_enumeration_and_scores_are_the_definition():
    every = run(bigrams.every_logp, POLICY)
    np.testing.assert_allclose(every, by_definition(SEQUENCES), rtol=1e-5)
    np.testing.assert_allclose(np.exp(every).sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(run(sequence_logp, POLICY, SEQUENCES), every, rtol=1e-5)


def test_samples_have_the_probabilities_of_the_policy():
    draws = 200_000
    uniforms = jax.random.uniform(jax.random.key(0), (draws, LENGTH))
    tokens = np.asarray(run(bigrams.sample, POLICY, uniforms))
    places = tokens @ SIZE ** np.arange(LENGTH)[::-1]
    rates = np.bincount(places, minlength=SIZE**LENGTH) / draws
    expected = np.exp(by_definition(SEQUENCES))
    np.testing.assert_array_less(np.abs(rates - expected), 5.0 * np.sqrt(expected / draws) + 1e-6)


def test_uniform_numbers_pick_tokens_in_order():
    policy = bigrams.Bigrams(jnp.log(jnp.array([0.25, 0.75])), jnp.zeros((1, 2, 2)))
    tokens = bigrams.sample(policy, jnp.array([[0.24, 0.49], [0.26, 0.51], [0.0, 0.999]]))
    np.testing.assert_array_equal(tokens, [[0, 0], [1, 1], [0, 1]])


def test_expected_score_is_zero():
    probabilities = jnp.exp(bigrams.every_logp(POLICY))
    mean = lambda policy: probabilities @ sequence_logp(policy, SEQUENCES)  # noqa: E731
    for gradient in grad(mean)(bigrams.Bigrams(*map(jnp.asarray, POLICY))):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_policy_of_one_token():
    single = bigrams.Bigrams(jnp.zeros(2), jnp.zeros((0, 2, 2)))
    np.testing.assert_allclose(jnp.exp(bigrams.every_logp(single)), 0.5)
    tokens = bigrams.sample(single, jnp.array([[0.1], [0.9]]))
    np.testing.assert_allclose(sequence_logp(single, tokens), np.log(0.5), rtol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="tokens"):
        bigrams.token_logits(POLICY, SEQUENCES[:, 1:])
    with pytest.raises(ValueError, match="uniforms"):
        bigrams.sample(POLICY, jnp.zeros((2, LENGTH + 1)))
