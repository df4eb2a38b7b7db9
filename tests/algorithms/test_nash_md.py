"""Nash-MD by hand, on the samples of `tests/support/hand_made.py`."""

import math

import numpy as np
from hand_made import Numbers, by_hand, samples

from polgrad import algorithms
from polgrad.contract import Average, Context, Mixture

# Log-probabilities of the answers, and their log-ratios to the reference: log 3, -log 2, -log 2,
# log 3.
LOG = [math.log(0.1875), math.log(0.25), math.log(0.3375), math.log(0.6)]
UP, DOWN = math.log(3), -math.log(2)
# Rewards 1, 0, 1, 3 against these: sigmoid(4 (1 - 1)) = 1/2, sigmoid(-log 3) = 1/4,
# sigmoid(log 4) = 4/5, sigmoid(log 9) = 9/10.
OPPONENTS = np.array([1.0, math.log(3) / 4, 1.0 - math.log(4) / 4, 3.0 - math.log(9) / 4])
# preference - 1/2 - 0.008 log(policy / reference)
A = [-0.008 * UP, -0.25 - 0.008 * DOWN, 0.3 - 0.008 * DOWN, 0.4 - 0.008 * UP]
# Preferences that are given, and a KL of 0.5.
G = [0.5 - 0.5 * UP, -0.5 - 0.5 * DOWN, 0.5 - 0.5 * DOWN, -0.5 * UP]

HAND_COMPUTED = {
    # -stop(preference - 1/2 - 0.008 log(policy / reference)) log p, the mean over answers.
    "nash_md": Numbers(
        experience=samples(opponent_rewards=OPPONENTS),
        prepared={"preference": [0.5, 0.25, 0.8, 0.9], "weights": [1 / 4] * 4},
        loss=-sum(a * x for a, x in zip(A, LOG, strict=True)) / 4,
        gradient=[-a / 4 for a in A],
    ),
    # Given preferences come before rewards.
    "nash_md, given preferences": Numbers(
        settings={"tau": 0.5},
        experience=samples(preferences=np.array([1.0, 0.0, 1.0, 0.5])),
        prepared={"preference": [1.0, 0.0, 1.0, 0.5]},
        loss=-sum(a * x for a, x in zip(G, LOG, strict=True)) / 4,
        gradient=[-a / 4 for a in G],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


def test_the_opponent_is_sampled_from_a_mixture_or_from_the_average():
    context = Context(group_size=2, max_tokens=2, num_prompts=2, on_policy=True)
    mixed = algorithms.NashMD().build(context)
    assert mixed.collect.samples.versus == Mixture("reference", 0.125)
    average = algorithms.NashMD(opponent=Average(0.9)).build(context)
    assert average.collect.samples.versus == Mixture("average", 1.0)
    assert average.policies["average"] == Average(0.9)
