"""What the rank of a loss decides, by hand: weights, further terms, the sampler's correction."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import algorithms
from polgrad.algorithms import surrogates
from polgrad.contract import Context

MASK = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
CONTEXT = Context(group_size=1, max_tokens=5, num_prompts=3, on_policy=False)
WEIGHTS = {
    "token": [[1 / 3, 1 / 3], [1 / 3, 0], [0, 0]],
    # The answer without a token is none.
    "sequence": [[1 / 4, 1 / 4], [1 / 2, 0], [0, 0]],
    "sequence_sum": [[1 / 2, 1 / 2], [1 / 2, 0], [0, 0]],
    # Of three rows with 5 tokens.
    "constant": [[1 / 15, 1 / 15], [1 / 15, 0], [0, 0]],
}


@pytest.mark.parametrize("aggregation", WEIGHTS)
def test_weights_of_tokens_by_hand(aggregation):
    found = surrogates.TokenSurrogate(aggregation).weights(MASK, CONTEXT)
    np.testing.assert_allclose(found, WEIGHTS[aggregation], rtol=1e-6)


def test_weights_of_answers_by_hand():
    found = surrogates.SequenceSurrogate().weights(MASK, CONTEXT)
    np.testing.assert_allclose(found, [1 / 2, 1 / 2, 0], rtol=1e-6)


def test_further_terms_are_weighted_as_the_tokens_are():
    loss, term = jnp.array([[1.0, 2.0], [3.0, 9.0], [9.0, 9.0]]), jnp.full((3, 2), 0.5)
    batch = {"mask": MASK, "weights": jnp.array(WEIGHTS["token"])}
    found = surrogates.TokenSurrogate("token").total(loss, [term], batch)
    np.testing.assert_allclose(found, (1.5 + 2.5 + 3.5) / 3, rtol=1e-6)


def test_further_terms_of_answers_are_means_over_tokens():
    loss, term = jnp.array([1.0, 3.0, 9.0]), jnp.array([[0.5, 1.5], [4.0, 9.0], [9.0, 9.0]])
    batch = {"mask": MASK, "weights": jnp.array([1 / 2, 1 / 2, 0.0])}
    found = surrogates.SequenceSurrogate().total(loss, [term], batch)
    np.testing.assert_allclose(found, ((1 + 1) + (3 + 4)) / 2, rtol=1e-6)


def test_the_correction_has_the_rank_of_the_loss():
    """The ratios are 3 and 1/2 in the first answer, 1/2 in the second one; the cap is 2."""
    logp = jnp.log(jnp.array([[3.0, 0.5], [0.5, 9.0], [9.0, 9.0]]))
    given = algorithms.TruncatedWeights(2.0), logp, jnp.zeros((3, 2)), MASK
    found = surrogates.TokenSurrogate().correction(*given)
    np.testing.assert_allclose(found, [[2, 0.5], [0.5, 0], [0, 0]], rtol=1e-6)
    found = surrogates.SequenceSurrogate().correction(*given)
    np.testing.assert_allclose(found[:2], [1.5, 0.5], rtol=1e-6)


def test_advantages_have_the_rank_of_the_loss():
    column = jnp.array([[1.0], [2.0]])
    assert surrogates.TokenSurrogate().shaped(column).shape == (2, 1)
    assert surrogates.SequenceSurrogate().shaped(column).shape == (2,)
    assert math.isclose(surrogates.SequenceSurrogate().shaped(column)[1], 2.0)


def test_a_surrogate_without_a_rank_says_what_to_derive_it_from():
    class Bare(surrogates.Surrogate):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return logp

    with pytest.raises(NotImplementedError, match="Bare is derived from Surrogate alone; .*Token"):
        algorithms.PolicyGradient(surrogate=Bare()).build(Context(2, 5, 3, on_policy=False))


def test_a_surrogate_without_a_loss_says_so():
    with pytest.raises(NotImplementedError, match="TokenSurrogate has no method surrogate"):
        surrogates.TokenSurrogate().surrogate(MASK, MASK, MASK, MASK)
