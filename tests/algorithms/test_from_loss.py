"""A public loss as settings: fields, texts and places."""

import dataclasses
import inspect
import math
import pickle
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Numbers, check, pairs, samples

from polgrad import algorithms, losses


def squared(chosen_logratio, rejected_logratio, *, target: float = 2.0):
    """A regression of the margin.

    Args:
      chosen_logratio: of the better answer.
      rejected_logratio: of the worse answer.
      target: of the margin, in nats.

    References:
      Nobody, 2026.
    """
    return (chosen_logratio - rejected_logratio - target) ** 2


def ranked(logp, rewards, *, valid, power: float, kind: str = "plain"):
    """A loss of groups."""
    return jnp.where(valid, -(rewards**power) * logp, 0.0)


Squared = algorithms.settings_of(squared, "Squared", algorithms.PairLoss)
Ranked = algorithms.settings_of(
    ranked,
    "Ranked",
    algorithms.GroupLoss,
    choices={"kind": ("plain", "other")},
    defaults={"power": 2.0},
)


def test_a_loss_of_pairs_of_ones_own_by_hand():
    """Margins log 4 and -log 8 to a target of 1; the third row is no pair."""
    one, two = math.log(4) - 1, -math.log(8) - 1
    numbers = Numbers(
        experience=pairs(),
        prepared={"weights": [1 / 2, 1 / 2, 0]},
        loss=(one**2 + two**2) / 2,
        gradient=[[one, -one], [two, -two], [0, 0]],
    )
    check(Squared(target=1.0), numbers)


def test_a_loss_of_groups_of_ones_own_by_hand():
    """Rewards 1, 0, 3; 2, 0 and an invalid one: -R^2 log p, the mean over 5 samples."""
    numbers = Numbers(
        experience=samples(group=3),
        group=3,
        prepared={},
        loss=-(math.log(0.1875) + 9 * math.log(0.3375) + 4 * math.log(0.6)) / 5,
        gradient=[[-1 / 5, 0, -9 / 5], [-4 / 5, 0, 0]],
    )
    check(Ranked(), numbers)


def test_fields_have_the_defaults_and_types_of_the_loss():
    fields = {field.name: field for field in dataclasses.fields(Ranked)}
    assert "valid" not in fields  # it comes from the batch
    assert fields["power"].default == 2.0 and fields["kind"].default == "plain"
    assert typing.get_args(fields["kind"].type) == ("plain", "other")
    for name in ("beta", "label_smoothing"):
        given = inspect.signature(losses.dpo).parameters[name].default
        assert getattr(algorithms.DPO(), name) == given
    # The loss takes a rate for each pair; a setting is one number.
    fields = {field.name: field for field in dataclasses.fields(algorithms.RobustDPO)}
    assert fields["flip_rate"].type is float


def test_the_docstring_is_that_of_the_loss():
    text = inspect.getdoc(Squared)
    assert text.startswith("A regression of the margin.")
    assert "target: of the margin, in nats." in text and "Nobody, 2026." in text
    assert "The loss is `losses.squared`." in text
    assert "pairs:" in text and "reference:" in text


def test_the_class_stands_in_the_module_that_made_it():
    assert Squared.__module__ == __name__
    assert algorithms.DPO.__module__ == "polgrad.algorithms.pairs"
    assert algorithms.CoPG.__module__ == "polgrad.algorithms.groups"
    assert algorithms.LUSPO.__module__ == "polgrad.algorithms.sequences"


def test_settings_are_frozen_and_can_be_pickled():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Squared().target = 3.0
    for settings in (algorithms.DPO(beta=0.3), algorithms.CoPG(), algorithms.LUSPO()):
        assert pickle.loads(pickle.dumps(settings)) == settings


def test_class_attributes_reach_the_base():
    found = algorithms.settings_of(squared, "Averaged", algorithms.PairLoss, average=True)
    assert found.average and not Squared.average
    np.testing.assert_equal(found.function(3.0, 1.0, target=2.0), 0.0)
