"""BLEU of token ids: sacrebleu's counts on random ids, invariances, masks, jit and vmap."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from polgrad import advantages
from polgrad.rewards import bleu, text_metrics

T, K, R = 7, 3, 6
CAT = [1, 2, 3, 4, 1, 5]
ON = [1, 2, 6, 4, 1, 5]
THERE = [7, 6, 8, 2, 4, 1, 5]


def arrays(text, references, width=T):
    """Right-padded ids and masks; the padding is a token that also occurs."""
    tokens, mask = np.ones(width, int), np.zeros(width)
    tokens[: len(text)], mask[: len(text)] = text, 1
    padded = np.ones((K, width), int), np.zeros((K, width))
    for k, reference in enumerate(references):
        padded[0][k, : len(reference)], padded[1][k, : len(reference)] = reference, 1
    return tokens, mask, *padded


def as_text(tokens):
    return " ".join(f"w{token}" for token in tokens)


@pytest.mark.parametrize(
    ("text", "references", "score"),
    [
        (CAT, [CAT], 1.0),
        ([1, 2], [CAT], math.exp(-2)),
        ([1] * 6, [CAT], 0.244462),
        (ON, [CAT], 0.488923),
        (ON, [CAT, THERE], 0.508133),
        ([], [CAT], 0.0),
        (CAT, [], 0.0),
    ],
)
def test_by_hand(text, references, score):
    given = arrays(text, references)
    np.testing.assert_allclose(run(bleu.sentence_bleu, *given), score, atol=1e-6)


def test_without_smoothing_by_hand():
    given = arrays(ON, [CAT])
    parts = run(bleu.bleu_components, *given, smoothing="none")
    np.testing.assert_allclose(parts.precisions, [5 / 6, 3 / 5, 1 / 4, 0], rtol=1e-6)
    np.testing.assert_array_equal(run(bleu.sentence_bleu, *given, smoothing="none"), 0.0)
    two = run(bleu.sentence_bleu, *given, smoothing="none", max_order=2)
    np.testing.assert_allclose(two, math.sqrt(5 / 6 * 3 / 5), rtol=1e-6)


ids = st.lists(st.integers(1, 4), max_size=T)
some = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=T), min_size=1, max_size=K)


@given(ids, some)
def test_counts_and_scores_are_those_of_the_texts(text, references):
    given = arrays(text, references)
    theirs = BLEU(tokenize="none", smooth_method="none").sentence_score(
        as_text(text), [as_text(r) for r in references]
    )
    counts = run(bleu.ngram_matches, *given)
    np.testing.assert_array_equal(counts.matched, theirs.counts)
    np.testing.assert_array_equal(counts.possible, theirs.totals)
    for settings in (
        {},
        {"smoothing": "none", "reference_length": "closest"},
    ):
        expected = text_metrics.bleu_components(
            as_text(text), [as_text(r) for r in references], **settings
        )
        parts = run(bleu.bleu_components, *given, **settings)
        np.testing.assert_allclose(parts.precisions, expected.precisions, rtol=1e-6)
        np.testing.assert_allclose(parts.brevity_penalty, expected.brevity_penalty, rtol=1e-6)
        score = run(bleu.sentence_bleu, *given, **settings)
        np.testing.assert_allclose(score, expected.score, rtol=1e-5, atol=1e-7)
    rouge = text_metrics.rouge_l_f1(as_text(text), [as_text(r) for r in references])
    np.testing.assert_allclose(run(bleu.rouge_l, *given), rouge, rtol=1e-6)


@given(ids, some, st.randoms(use_true_random=False))
def test_holes_order_of_references_and_names_do_not_matter(text, references, random):
    tokens, mask, refs, ref_mask = arrays(text, references)
    expected = run(bleu.sentence_bleu, tokens, mask, refs, ref_mask)
    rouge = run(bleu.rouge_l, tokens, mask, refs, ref_mask)
    # Scatter the tokens over more places, permute the references, rename the words.
    places = sorted(random.sample(range(T), len(text)))
    spread, spread_mask = np.full(T, 9), np.zeros(T)
    spread[places], spread_mask[places] = text, 1
    order = random.sample(range(K), K)
    names = np.arange(10) * 3 + 5
    given = names[spread], spread_mask, names[refs[order]], ref_mask[order]
    np.testing.assert_allclose(run(bleu.sentence_bleu, *given), expected, rtol=1e-6)
    np.testing.assert_allclose(run(bleu.rouge_l, *given), rouge, rtol=1e-6)


def test_the_reference_length_that_is_closest():
    references = [[1] * 2, [1] * 4, [1] * 6]
    given = arrays([1] * 5, references)
    parts = run(bleu.bleu_components, *given, reference_length="closest")
    np.testing.assert_array_equal(parts.brevity_penalty, 1.0)
    given = arrays([1] * 5, [[1] * 3, [1] * 6])
    closest = run(bleu.bleu_components, *given, reference_length="closest")
    np.testing.assert_allclose(closest.brevity_penalty, math.exp(-0.2), rtol=1e-6)
    np.testing.assert_array_equal(run(bleu.bleu_components, *given).brevity_penalty, 1.0)


def test_rouge_l_by_hand():
    for text, score in ((ON, 0.833333), ([1, 2], 0.5), ([9], 0.0), ([], 0.0)):
        np.testing.assert_allclose(run(bleu.rouge_l, *arrays(text, [CAT])), score, atol=1e-6)
    np.testing.assert_allclose(run(bleu.rouge_l, *arrays(ON, [[9], CAT])), 0.833333, atol=1e-6)


def test_a_batch_of_groups():
    rows = [(CAT, [CAT]), (ON, [CAT, THERE]), ([1, 2], [ON]), ([], [CAT])]
    stacked = [np.stack(x) for x in zip(*(arrays(*row) for row in rows))]
    alone = np.stack([run(bleu.sentence_bleu, *arrays(*row)) for row in rows])
    np.testing.assert_allclose(run(bleu.sentence_bleu, *stacked), alone, rtol=1e-6)
    groups = [x.reshape(2, 2, *x.shape[1:]) for x in stacked]
    mapped = jax.jit(jax.vmap(jax.vmap(bleu.sentence_bleu)))(*groups)
    np.testing.assert_allclose(mapped, alone.reshape(2, 2), rtol=1e-6)
    rouge = np.stack([run(bleu.rouge_l, *arrays(*row)) for row in rows])
    np.testing.assert_allclose(run(bleu.rouge_l, *groups), rouge.reshape(2, 2), rtol=1e-6)
    assert run(bleu.sentence_bleu, *groups).dtype == jnp.float32


def test_harmonic_mean():
    first, second = jnp.array([0.5, 0.0, 1.0, 0.0, 0.3]), jnp.array([0.25, 1.0, 1.0, 0.0, -0.3])
    mean = run(bleu.harmonic_mean, first, second)
    np.testing.assert_allclose(mean, [1 / 3, 0.0, 1.0, 0.0, 0.0], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda x: bleu.harmonic_mean(x, second).sum()))(first)
    assert np.all(np.isfinite(slope))


def test_group_advantages_see_neither_scale_nor_offset():
    rewards = run(bleu.sentence_bleu, *(np.stack([x] * 3) for x in arrays(ON, [CAT, THERE])))[
        None
    ] + jnp.array([0.0, 0.1, 0.3])
    with jax.enable_x64(True):
        plain = advantages.group_relative(rewards, epsilon=0.0)
        moved = advantages.group_relative(3.0 * rewards - 2.0, epsilon=0.0)
        np.testing.assert_allclose(moved, plain, atol=1e-4)
        # So does the mean of two standardised rewards, each in its own unit.
        other = jnp.array([[5.0, 1.0, 3.0]])
        mixed = 0.5 * (plain + advantages.group_relative(other, epsilon=0.0))
        np.testing.assert_allclose(mixed.sum(), 0.0, atol=1e-5)


def test_bad_arguments_are_named():
    tokens, mask, refs, ref_mask = arrays(ON, [CAT])
    with pytest.raises(ValueError, match="smoothing is 'x'"):
        bleu.sentence_bleu(tokens, mask, refs, ref_mask, smoothing="x")
    with pytest.raises(ValueError, match="reference_length is 'x'"):
        bleu.sentence_bleu(tokens, mask, refs, ref_mask, reference_length="x")
    with pytest.raises(ValueError, match="max_order is 0"):
        bleu.ngram_matches(tokens, mask, refs, ref_mask, max_order=0)
    assert bleu.ngram_matches(tokens, mask, refs, ref_mask, max_order=1).possible.shape == (1,)
    with pytest.raises(ValueError, match="one mask entry a token.*the shape of tokens"):
        bleu.rouge_l(tokens, mask[:2], refs, ref_mask)
    with pytest.raises(ValueError, match="the shape of references"):
        bleu.rouge_l(tokens, mask, refs, ref_mask[:2])
    with pytest.raises(ValueError, match="second_scores"):
        bleu.harmonic_mean(jnp.ones(2), jnp.ones(3))
