"""The cipher ladder: its rewards by hand, its accuracies against sampling and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import small
from polgrad.contract import Needs
from polgrad.small import CipherLadder
from polgrad.small.tasks.cipher import CipherQuestions

LADDER = CipherLadder(jnp.array([[2, 0], [1, 3], [0, 0]]), vocabulary=4)
POLICY = small.FeaturePolicy(small.PositionTable(2, 4, length=3), LADDER.features, LADDER.lengths)


def test_a_whole_answer_is_right_or_nothing():
    questions = CipherQuestions(jnp.array([[1, 0, 1], [0, 1, 1]]), jnp.array([2, 3]))
    answers = jnp.array([[[0, 1, 3], [0, 2, 0], [3, 1, 0]], [[2, 3, 0], [2, 3, 1], [0, 3, 0]]])
    rewards = run(LADDER.reward, questions, answers)
    # The third token of a level-2 answer does not count.
    np.testing.assert_array_equal(rewards, [[1, 0, 0], [1, 0, 0]])


def test_an_untrained_table_solves_a_level_by_chance():
    table = POLICY.init(jax.random.key(0))["table"]
    np.testing.assert_allclose(run(LADDER.accuracy, table), [1 / 4, 1 / 16, 1 / 64])


def test_accuracy_is_the_expected_reward():
    table = jax.random.normal(jax.random.key(0), (3, 2, 4))
    symbols = jnp.array(list(itertools.product(range(2), repeat=3)))
    words = jnp.array(list(itertools.product(range(4), repeat=3)))
    answers = jnp.broadcast_to(words, (8, 64, 3))

    @jax.jit
    def by_enumeration(level):
        questions = CipherQuestions(symbols, jnp.full(8, level))
        rows = {
            "prompts": jnp.repeat(symbols, 64, axis=0),
            "completions": answers.reshape(-1, 3),
            "mask": jnp.ones((8 * 64, 3)),
        }
        outputs = POLICY.forward({"table": table}, rows, needs=Needs())
        chance = jnp.exp(outputs.logp.sum(-1)).reshape(8, 64)
        return jnp.sum(chance * LADDER.reward(questions, answers)) / 8, jnp.sum(chance) / 8

    accuracy = run(LADDER.accuracy, table)
    for level in (1, 2, 3):
        expected, total = by_enumeration(level)
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)
        np.testing.assert_allclose(accuracy[level - 1], expected, rtol=1e-5)


def test_questions_are_those_of_the_arms():
    arm = jnp.array([2, 0, 1, 1])
    questions = LADDER.draw(jax.random.key(1), 4, arm)
    np.testing.assert_array_equal(questions.level, [3, 1, 2, 2])
    assert questions.symbols.shape == (4, 3)
    drawn = run(lambda key: LADDER.draw(key, 2000), jax.random.key(2))
    for x, values in ((drawn.level, [1, 2, 3]), (drawn.symbols[:, 0], [0, 1])):
        np.testing.assert_array_equal(np.unique(x), values)
        assert np.bincount(x)[values].min() > 2000 / len(values) - 100


def test_a_question_has_one_number():
    """The symbols behind the level do not count, and no two questions share a number."""
    symbols = jnp.tile(jnp.array(list(itertools.product(range(2), repeat=3))), (3, 1))
    questions = CipherQuestions(symbols, jnp.repeat(jnp.arange(1, 4), 8))
    ids = np.asarray(run(LADDER.ids, questions))
    assert ids.min() == 0 and ids.max() == LADDER.size - 1 == 23
    asked = {(int(n), *map(int, s[:n])) for s, n in zip(*questions)}
    assert len(set(ids)) == len(asked) == 2 + 4 + 8


def test_answers_are_as_long_as_the_level():
    """And the tokens are drawn in proportion to the table's probabilities."""
    chances = np.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    params = {"table": jnp.log(jnp.broadcast_to(chances, (3, 2, 4)))}
    questions = CipherQuestions(jnp.array([[0, 1, 1], [1, 0, 0]]), jnp.array([2, 3]))

    def sample(key):
        prompts = POLICY.prompts(questions)
        return POLICY.sample(params, prompts, LADDER.ids(questions), key, samples=4000)

    rows = run(sample, jax.random.key(0))
    np.testing.assert_array_equal(rows["mask"].sum(-1), np.repeat([2, 3], 4000))
    np.testing.assert_array_equal(rows["completion_lengths"], np.repeat([2, 3], 4000))
    assert (rows["behavior_logp"][:4000, 2] == 0).all()
    for row in range(2):
        for position in range(int(questions.level[row])):
            found = rows["completions"][row * 4000 : (row + 1) * 4000, position]
            shares = np.bincount(found, minlength=4) / 4000
            expected = chances[questions.symbols[row, position]]
            np.testing.assert_allclose(shares, expected, atol=0.03)
    outputs = run(lambda rows: POLICY.forward(params, rows, needs=Needs()), rows)
    np.testing.assert_allclose(outputs.logp, rows["behavior_logp"], rtol=1e-6)


def test_worlds_differ_by_key_and_use_the_whole_vocabulary():
    worlds = jax.vmap(CipherLadder.create)(jax.random.split(jax.random.key(0), 20)).hidden
    assert worlds.shape == (20, 8, 3) and set(np.unique(worlds)) == {0, 1, 2, 3}
    assert len({w.tobytes() for w in np.asarray(worlds)}) == 20


def test_bad_arguments():
    with pytest.raises(ValueError, match="symbols is 0"):
        CipherLadder.create(jax.random.key(0), symbols=0)
    with pytest.raises(ValueError, match="table has shape"):
        LADDER.accuracy(jnp.zeros((3, 2, 2)))
