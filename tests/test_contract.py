"""The contract's own checks: policies that can be had, numbers in range."""

import jax
import jax.numpy as jnp
import pytest

from polgrad.contract import (
    Algorithm,
    Average,
    Collect,
    Group,
    Initial,
    Mixture,
    Pair,
    Previous,
    Samples,
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
