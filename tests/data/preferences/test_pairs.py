"""Pairs and triples out of pools: by loops, by a tournament played by hand, counts, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import data, reward_models
from polgrad.losses import ranking

K = 4
SCORES = np.array([[5.0, 3.0, 6.0, 1.0], [2.0, 4.0, 4.0, np.nan]], np.float32)
TEACHER = np.array([[True, False, False, False], [False, True, False, False]])
seeds = st.integers(0, 2**16)


def with_arrays(scores, teacher, valid):
    return data.preferences.large_margin_pairs(
        scores, margin=2.0, floor=4.0, teacher=teacher, student_margin=1.0, valid=valid
    )


def pairs_of(found):
    return {tuple(int(i) for i in pair) for pair in np.argwhere(found)}


def test_pairs_of_a_large_margin():
    found = run(data.preferences.large_margin_pairs, SCORES, margin=2.0)
    assert pairs_of(found[0]) == {(0, 1), (0, 3), (1, 3), (2, 1), (2, 3)}
    assert pairs_of(found[1]) == {(1, 0), (2, 0)}
    high = run(data.preferences.large_margin_pairs, SCORES, margin=2.0, floor=5.0)
    assert pairs_of(high[0]) == {(0, 1), (0, 3), (2, 1), (2, 3)}
    assert not high[1].any()
    assert not run(data.preferences.large_margin_pairs, SCORES, margin=5.5).any()


def test_students_need_a_smaller_margin():
    found = run(with_arrays, SCORES, TEACHER, np.ones((2, K), bool))
    # The student's 6 beats the teacher's 5 by 1; the teacher's 5 needs 2.
    assert pairs_of(found[0]) == {(2, 0), (2, 1), (2, 3), (0, 1), (0, 3)}
    assert pairs_of(found[1]) == {(1, 0), (2, 0)}
    found = run(with_arrays, SCORES, ~TEACHER, np.ones((2, K), bool))
    assert pairs_of(found[0]) == {(2, 1), (2, 3), (0, 1), (0, 3)}
    valid = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
    found = run(with_arrays, SCORES, TEACHER, valid)
    assert pairs_of(found[0]) == {(2, 0), (2, 3), (0, 3)}
    assert not found[1].any()


def test_answers_that_may_only_be_rejected():
    scores = np.array([3.0, -np.inf, -np.inf, np.inf], np.float32)
    found = run(data.preferences.large_margin_pairs, scores, margin=1.0)
    assert pairs_of(found) == {(0, 1), (0, 2)}


def test_a_pools_win_rates():
    """One draw a pair, three samples and a teacher: the pairs that win rates of 1/3 apart make."""
    wins = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], np.float32)
    rates = run(ranking.win_rate_labels, wins)
    np.testing.assert_allclose(rates, [1.0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    found = run(data.preferences.large_margin_pairs, rates, margin=0.4)
    assert pairs_of(found) == {(0, 1), (0, 2), (0, 3)}


def by_hand(preference, calls):
    """The tournament with a list of players, asking for one comparison at a time."""

    def play(first, second):
        calls.append((first, second))
        return (first, second) if preference[first, second] >= 0.5 else (second, first)

    matches = [play(a, a + 1) for a in range(0, len(preference), 2)]
    best, worst = [m[0] for m in matches], [m[1] for m in matches]
    while len(best) > 1:
        best = [play(a, b)[0] for a, b in zip(best[::2], best[1::2])]
        worst = [play(a, b)[1] for a, b in zip(worst[::2], worst[1::2])]
    calls.append((best[0], worst[0]))
    return best[0], worst[0], preference[best[0], worst[0]] > 0.5


@given(seeds)
def test_the_tournament_by_hand(seed):
    preference = (np.random.default_rng(seed).integers(0, 5, (2, 8, 8)) / 4.0).astype(np.float32)
    found = run(data.preferences.knockout_pair, preference)
    for b in range(2):
        calls = []
        expected = by_hand(preference[b], calls)
        assert tuple(x[b] for x in found) == expected
        assert len(calls) == 11
        unread = np.ones((8, 8), bool)
        unread[tuple(np.array(calls).T)] = False
        preference[b][unread] = np.nan
    again = run(data.preferences.knockout_pair, preference)
    for x, y in zip(found, again):
        np.testing.assert_array_equal(x, y)


def test_a_tie_goes_to_the_first():
    found = run(data.preferences.knockout_pair, np.full((2, 2), 0.5, np.float32))
    assert (found.chosen, found.rejected, found.usable) == (0, 1, False)
    transitive = np.where(np.arange(4)[:, None] > np.arange(4), 1.0, 0.0).astype(np.float32)
    found = run(data.preferences.knockout_pair, transitive)
    assert (found.chosen, found.rejected, found.usable) == (3, 0, True)


def test_replay_takes_less_of_what_is_older():
    new = {"id": jnp.arange(20), "x": jnp.zeros((20, 2))}
    older = [{"id": 100 * age + jnp.arange(30), "x": jnp.ones((30, 2))} for age in (1, 2, 3)]
    older.append({"id": 400 + jnp.arange(30), "x": jnp.ones((30, 2))})
    found = data.preferences.mix_replay(jax.random.key(0), new, older)
    ids = np.asarray(found["id"])
    np.testing.assert_array_equal(ids[:20], np.arange(20))
    counts = [np.sum(ids // 100 == age) for age in (1, 2, 3, 4)]
    assert counts == [6, 3, 1, 0]
    assert found["x"].shape == (30, 2) and len(set(ids.tolist())) == 30
    other = data.preferences.mix_replay(jax.random.key(1), new, older)
    assert not np.array_equal(other["id"], ids)
    # Each pool has its own draws.
    twice = data.preferences.mix_replay(
        jax.random.key(0), new, [older[0], older[0]], fraction=0.5, decay=1.0
    )
    rows = np.asarray(twice["id"])[20:]
    assert len(rows) == 20 and not np.array_equal(rows[:10], rows[10:])


def test_replay_of_little_and_of_nothing():
    new, old = jnp.arange(30.0), -1.0 - jnp.arange(2.0)
    assert len(data.preferences.mix_replay(jax.random.key(0), new, [])) == 30
    both = data.preferences.mix_replay(jax.random.key(0), new, [old])
    assert sorted(both.tolist()) == [-2.0, -1.0, *range(30)]
    tenth = data.preferences.mix_replay(jax.random.key(0), new, [-1.0 - new], fraction=0.1)
    assert len(tenth) == 33
    assert len(data.preferences.mix_replay(jax.random.key(0), new, [new], fraction=0.0)) == 30
    assert (
        len(
            data.preferences.mix_replay(jax.random.key(0), new, [new, new], fraction=1.0, decay=0.0)
        )
        == 60
    )


def test_bad_arguments():
    x, y = jnp.zeros(4), jnp.zeros(3)
    marks, key = jnp.ones(4, bool), jax.random.key(0)
    for call, message in (
        (lambda: data.preferences.large_margin_pairs(x, margin=0.0), "margin is 0"),
        (lambda: data.preferences.large_margin_pairs(x[0], margin=1.0), "scores has shape"),
        (
            lambda: data.preferences.large_margin_pairs(x, margin=1.0, valid=marks[:3]),
            "valid has shape",
        ),
        (
            lambda: data.preferences.large_margin_pairs(
                x, margin=1.0, teacher=marks[:3], student_margin=1.0
            ),
            "teacher has shape",
        ),
        (
            lambda: data.preferences.large_margin_pairs(
                x, margin=1.0, teacher=marks, student_margin=0.0
            ),
            "student_margin is 0",
        ),
        (
            lambda: data.preferences.large_margin_pairs(x, margin=1.0, student_margin=1.0),
            "without teacher",
        ),
        (lambda: data.preferences.knockout_pair(x), "preference has shape"),
        (lambda: data.preferences.knockout_pair(x[0]), "preference has shape"),
        (lambda: data.preferences.knockout_pair(jnp.zeros((4, 2))), "preference has shape"),
        (lambda: data.preferences.knockout_pair(jnp.zeros((6, 6))), "preference has shape"),
        (lambda: data.preferences.knockout_pair(jnp.zeros((1, 1))), "preference has shape"),
        (lambda: data.preferences.mix_replay(key, x, [], fraction=1.1), "fraction is 1.1"),
        (lambda: data.preferences.mix_replay(key, x, [], fraction=-0.1), "fraction is -0.1"),
        (lambda: data.preferences.mix_replay(key, x, [], decay=1.1), "decay is 1.1"),
        (lambda: data.preferences.mix_replay(key, x, [], decay=-0.1), "decay is -0.1"),
        (lambda: reward_models.policy_pairs(key, policies=1, count=2), "policies is 1"),
        (lambda: reward_models.reference_triples(x[:2]), "scores has shape"),
        (lambda: reward_models.reference_triples(x[0]), "scores has shape"),
        (lambda: reward_models.reference_triples(x, valid=marks[:3]), "valid has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert y.shape == (3,) and not reward_models.reference_triples(y).usable


def test_a_noisy_judge():
    first, second = np.array([2.0, 2.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.0])
    p = 1 / (1 + np.exp(-2.0))
    wins = data.preferences.judge_scores(first, second, np.array([p - 1e-3, p + 1e-3, 0.49, 0.51]))
    np.testing.assert_array_equal(wins, [True, False, True, False])
    broken = np.array([np.nan, 1.0, np.nan, -np.inf])
    wins = data.preferences.judge_scores(broken, broken[::-1], np.array([0.1, 0.9, 0.4, 0.6]))
    np.testing.assert_array_equal(wins, [True, True, False, False])
    with pytest.raises(ValueError, match="noise"):
        data.preferences.judge_scores(first, second, np.zeros(3))
