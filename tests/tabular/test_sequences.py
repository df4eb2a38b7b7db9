"""Enumerated completions: counts, prefixes, and probabilities that sum to one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.tabular.sequences import enumerate_sequences, token_logp


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "vocabulary, length, end, count, prefixes",
    [(4, 1, None, 4, 1), (3, 2, None, 9, 4), (3, 3, 2, 1 + 2 * (1 + 2 * 3), 7), (2, 3, 0, 4, 3)],
)
def test_counts_and_total_probability(vocabulary, length, end, count, prefixes):
    sequences = enumerate_sequences(vocabulary, length, end=end)
    assert sequences.tokens.shape == (count, length) and sequences.prefixes == prefixes
    logits = jax.random.normal(jax.random.key(0), (prefixes, vocabulary))
    logp = token_logp(sequences, logits)
    np.testing.assert_allclose(jnp.exp(logp.sum(-1)).sum(), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(logp[sequences.mask == 0], 0.0)


def test_lengths_count_the_end_token():
    sequences = enumerate_sequences(3, 3, end=2)
    for tokens, mask in zip(sequences.tokens, sequences.mask):
        expected = list(tokens).index(2) + 1 if 2 in tokens[mask > 0] else 3
        assert mask.sum() == expected
        np.testing.assert_array_equal(tokens[mask == 0], 0)


def test_equal_prefixes_share_a_row_and_different_ones_do_not():
    sequences = enumerate_sequences(3, 3, end=2)
    rows = {}
    for tokens, mask, prefix in zip(sequences.tokens, sequences.mask, sequences.prefix):
        for t in range(int(mask.sum())):
            assert rows.setdefault(tuple(tokens[:t]), prefix[t]) == prefix[t]
    for (a, row_a), (b, row_b) in itertools.combinations(rows.items(), 2):
        assert row_a != row_b, (a, b)
