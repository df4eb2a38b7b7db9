"""The contract's own checks: policies that can be had, numbers in range."""

import jax
import jax.numpy as jnp
import pytest

from polgrad.contract import (
    Algorithm,
    Average,
    Collect,
    Curriculum,
    Data,
    Group,
    Initial,
    Learner,
    Mixture,
    Nothing,
    Pair,
    Previous,
    Replay,
    Samples,
    Steps,
    Wants,
)


def make(**parts):
    return Algorithm(prepare=lambda *given: given, loss=lambda *given: given, **parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"policies": {"a": "initial"}}, "policies has 'initial' for 'a', expected Initial"),
        (
            {"policies": {"a": Previous(1)}, "collect": Collect(None, ("answer",))},
            "for 'a', which is the sampling policy, but",
        ),
        (
            {
                "policies": {"reference": Initial()},
                "collect": Collect(Samples(versus=Mixture("referense", 0.5))),
            },
            "mixes in policy 'referense', expected one of policies .reference",
        ),
    ],
)
def test_policies_that_cannot_be_had_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        make(**parts).check()


def test_policies_that_can_be_had_pass():
    versus = Mixture("old", 0.5)
    several = {"old": Previous(2), "mean": Average(0.9), "start": Initial()}
    assert make(policies=several, collect=Collect(Samples(versus=versus))).check() is None
    assert make(policies={"now": Previous(1)}).check() is None


def test_numbers_out_of_range_are_refused_and_traced_ones_pass():
    for build, value in ((Average, 1.5), (lambda x: Mixture("a", x), -0.1), (Previous, 0)):
        with pytest.raises(ValueError, match="expected"):
            build(value)
    jax.vmap(lambda x: jnp.asarray(Mixture("a", x).weight))(jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="either samples or columns"):
        Collect(None)


def test_rows_are_units():
    assert make().rows(3, 4) == 12
    assert make(unit=Group()).rows(3, 4) == 3
    assert make(unit=Pair()).rows(3, 4) == 3
    assert make(collect=Collect(None, ("answer",))).rows(3, 4) == 3


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Steps(0, 4), "steps is 0, expected a whole number of at least 1"),
        (lambda: Steps(8, 2.0), "copies is 2.0, expected a whole number"),
        (lambda: Replay(16, 32), "batch is 32, expected at most size = 16"),
        (lambda: Replay(16, 8, every=0), "every is 0, expected"),
        (lambda: Data(8, window=True), "window is True, expected"),
    ],
)
def test_what_a_learner_wants_has_whole_numbers(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_learner_remembers_nothing_unless_it_says_so():
    class Still(Learner):
        wants = Nothing()

    assert Still().start(state=None, copies=3) == ()
    assert isinstance(Still.wants, Wants) and isinstance(Replay(16, 16), Wants)


def test_a_curriculum_learns_where_it_has_an_update():
    choose = lambda state, step, noise: noise.astype(int)  # noqa: E731
    fixed = Curriculum(jnp.zeros, choose)
    assert not fixed.learns and fixed.update("state", None, None, None) == "state"
    assert Curriculum(jnp.zeros, choose, lambda *given: given).learns
