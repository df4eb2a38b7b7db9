"""Triples of answers for a policy discriminator."""

import jax
import numpy as np
from compiled import run

from polgrad import reward_models


def test_pairs_of_policies():
    first, second = reward_models.policy_pairs(jax.random.key(0), policies=3, count=6000)
    counts = np.zeros((3, 3))
    np.add.at(counts, (first, second), 1)
    np.testing.assert_array_equal(np.diagonal(counts), 0)
    off = counts[~np.eye(3, dtype=bool)]
    np.testing.assert_allclose(off / 1000, 1.0, atol=0.12)
    two = reward_models.policy_pairs(jax.random.key(1), policies=2, count=5)
    np.testing.assert_array_equal(two[0] + two[1], 1)


def triple_valid(scores, valid):
    return reward_models.reference_triples(scores, valid=valid)


def test_triples_of_ranked_answers():
    scores = np.array(
        [[1.0, 4.0, 3.0, 2.0], [2.0, 2.0, 2.0, 1.0], [np.nan, 1.0, np.inf, 2.0]], np.float32
    )
    found = run(reward_models.reference_triples, scores)
    np.testing.assert_array_equal(found.reference, [1, 0, 3])
    np.testing.assert_array_equal(found.chosen, [2, 1, 1])
    np.testing.assert_array_equal(found.rejected[:2], [3, 2])
    np.testing.assert_array_equal(found.usable, [True, False, False])
    valid = np.array([[1, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]], bool)
    found = run(triple_valid, scores, valid)
    np.testing.assert_array_equal(found.reference, [2, 0, 3])
    np.testing.assert_array_equal(found.chosen, [3, 2, 1])
    np.testing.assert_array_equal(found.rejected[:2], [0, 3])
    np.testing.assert_array_equal(found.usable, [True, True, False])
