"""What the enumeration says of KL terms and group baselines, against what is known of them."""

import functools

import numpy as np
import pages
import pytest

from polgrad import advantages, conformance, divergences, losses


@functools.cache
def kl(place, **settings):
    term = losses.kl_penalty if place == "loss" else divergences.kl_estimate
    return conformance.measure_kl(functools.partial(term, **settings), place=place)


@pytest.mark.parametrize(
    "place, settings, bandit, sequences",
    [
        (
            "loss",
            {"gradient": "k2"},
            "KL(policy || reference)",
            "the same, later states held fixed",
        ),
        ("loss", {"gradient": "k3"}, "KL(reference || policy)", "the same, states of the policy"),
        ("reward", {"kind": "k1"}, "KL(policy || reference)", "KL(policy || reference)"),
        ("reward", {"kind": "k3"}, "none of the known", "none of the known"),
    ],
)
def test_the_gradient_that_a_kl_term_follows(place, settings, bandit, sequences):
    assert [m.follows for m in kl(place, **settings)] == [bandit, sequences]


def test_k1_and_k3_are_unbiased_values_and_k2_is_not():
    for kind, unbiased in (("k1", True), ("k2", False), ("k3", True)):
        for measured in kl("reward", kind=kind):
            assert (abs(measured.value - 1.0) < 1e-12) == unbiased
    assert kl("reward", kind="k3")[0].deviation < kl("reward", kind="k1")[0].deviation


def test_k1_in_a_loss_moves_nothing_on_average():
    measured = conformance.measure_kl(lambda logp, reference: logp - reference, place="loss")
    assert {m.follows for m in measured} == {"nothing: its mean is zero"}


def test_group_baselines():
    leave_one_out = conformance.measure_advantages(advantages.leave_one_out)
    np.testing.assert_allclose(leave_one_out, (1.0, 0.0, 1.0), atol=1e-12)
    # The group's mean holds the sample itself: (G - 1) / G of the policy gradient, G = 4.
    centred = conformance.measure_advantages(
        functools.partial(advantages.group_relative, scale="none")
    )
    np.testing.assert_allclose(centred, (0.75, 0.0, 1.0), atol=1e-12)
    # Divided by the group's deviation it points elsewhere.
    assert conformance.measure_advantages(advantages.group_relative).bias > 0.1


@pytest.mark.parametrize("name", pages.generate.KL_TERMS)
def test_kl_terms_are_those_of_the_page(name):
    for line in pages.generate.kl_lines(name):
        assert line in pages.lines("estimators"), pages.HINT


@pytest.mark.parametrize("name", pages.generate.GROUP_ADVANTAGES)
def test_advantages_are_those_of_the_page(name):
    assert pages.generate.advantage_line(name) in pages.lines("estimators"), pages.HINT


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="place is 'advantage', expected one of 'loss', 'reward'"):
        conformance.measure_kl(losses.kl_penalty, place="advantage")
