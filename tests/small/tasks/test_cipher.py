"""The cipher ladder: its rewards by hand, its accuracies against sampling and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad.small import CipherLadder

LADDER = CipherLadder(levels=3, symbols=2, vocabulary=4)
HIDDEN = jnp.array([[2, 0], [1, 3], [0, 0]])


def test_a_whole_answer_is_right_or_nothing():
    prompts, mask = jnp.array([[1, 0, 1], [0, 1, 1]]), LADDER.mask(jnp.array([2, 3]))
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 1, 1]])
    answers = jnp.array([[[0, 1, 3], [0, 2, 0], [3, 1, 0]], [[2, 3, 0], [2, 3, 1], [0, 3, 0]]])
    rewards = run(LADDER.reward, HIDDEN, prompts, answers, mask)
    # The third token of a level-2 answer does not count.
    np.testing.assert_array_equal(rewards, [[1, 0, 0], [1, 0, 0]])


def test_an_untrained_table_solves_a_level_by_chance():
    table = jnp.zeros((3, 2, 4))
    np.testing.assert_allclose(run(LADDER.accuracy, table, HIDDEN), [1 / 4, 1 / 16, 1 / 64])


def test_accuracy_is_the_expected_reward():
    table = jax.random.normal(jax.random.key(0), (3, 2, 4))
    prompts = jnp.array(list(itertools.product(range(2), repeat=3)))
    words = jnp.array(list(itertools.product(range(4), repeat=3)))
    answers = jnp.broadcast_to(words, (8, 64, 3))

    @jax.jit
    def by_enumeration(level):
        chance = jnp.exp(LADDER.logp(table, prompts, answers).sum(-1))
        rewards = LADDER.reward(HIDDEN, prompts, answers, LADDER.mask(jnp.full(8, level)))
        return jnp.sum(chance * rewards) / 8, jnp.sum(chance) / 8

    accuracy = run(LADDER.accuracy, table, HIDDEN)
    for level in (1, 2, 3):
        expected, total = by_enumeration(level)
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)
        np.testing.assert_allclose(accuracy[level - 1], expected, rtol=1e-5)


def test_logits_are_those_of_the_symbols():
    table = jax.random.normal(jax.random.key(0), (3, 2, 4))
    prompts = LADDER.prompts(jax.random.uniform(jax.random.key(1), (5, 3)))
    assert prompts.shape == (5, 3) and set(np.unique(prompts)) == {0, 1}
    by_index = table[jnp.arange(3), prompts]
    np.testing.assert_allclose(run(LADDER.logits, table, prompts), by_index, rtol=1e-6)


def test_answers_are_drawn_in_proportion():
    chances = np.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    table = jnp.log(jnp.broadcast_to(chances, (3, 2, 4)))
    noise = jnp.broadcast_to((jnp.arange(800)[:, None] + 0.5) / 800, (2, 800, 3))
    prompts = jnp.array([[0, 1, 1], [1, 0, 0]])
    answers = run(LADDER.answers, table, prompts, noise)
    for row in range(2):
        for position in range(3):
            counts = np.bincount(answers[row, :, position], minlength=4)
            np.testing.assert_array_equal(counts, 800 * chances[prompts[row, position]])


def test_worlds_differ_by_key_and_use_the_whole_vocabulary():
    worlds = jax.vmap(CipherLadder().init)(jax.random.split(jax.random.key(0), 20))
    assert worlds.shape == (20, 8, 3) and set(np.unique(worlds)) == {0, 1, 2, 3}
    assert len({w.tobytes() for w in np.asarray(worlds)}) == 20


def test_bad_arguments():
    with pytest.raises(ValueError, match="symbols is 0"):
        CipherLadder(symbols=0)
    with pytest.raises(ValueError, match="table has shape"):
        LADDER.logits(jnp.zeros((3, 2, 2)), jnp.zeros((1, 3), int))
