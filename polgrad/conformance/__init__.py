"""A card for any policy-gradient objective: which gradient it follows, and what it survives.

    card = conformance.check(my_loss)
    print(card)
    assert card.ok
    print(conformance.check(algorithms.GRPO(clip_high=0.28)))
    measure_kl(my_kl_term, place="loss")
    measure_advantages(my_baseline)

An objective is a loss with polgrad's signature, from this package or from anybody's notebook:
of tokens or sequences, of groups, or of preference pairs. Or it is the settings of an algorithm,
as `training.train` takes them: then the whole path from the samples to the gradient is examined,
with the rewards, the advantages, the weights and every term of the loss. Nothing is sampled: the policies are
small enough to sum over every completion in float64, so the expected gradient, its bias and its
variance are exact.
"""

from polgrad.conformance.card import Card, check
from polgrad.conformance.estimators import (
    AdvantageMeasurement,
    KLMeasurement,
    measure_advantages,
    measure_kl,
)
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.requirements import Check

__all__ = [
    "AdvantageMeasurement",
    "Card",
    "Check",
    "KLMeasurement",
    "Measurement",
    "check",
    "measure_advantages",
    "measure_kl",
]
