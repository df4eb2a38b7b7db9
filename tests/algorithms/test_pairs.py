"""Losses of pairs by hand, on the pairs and samples of `tests/support/hand_made.py`.

Two pairs count, each with the weight 1/2. The first test of a loss has its paper's defaults.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Numbers, by_hand, pairs, samples
from stored import GROUP, PROMPTS, T, stored_for, stored_rollouts

from polgrad import algorithms
from polgrad.contract import Average, Context, Initial, Outputs, Pair, Previous

OFF = Context(GROUP, T, PROMPTS, on_policy=False)

# Log-ratios to the reference of the chosen and the rejected answers, and the margins between them.
C0, R0, C1, R1 = math.log(2), -math.log(2), -math.log(2), math.log(4)
M0, M1 = math.log(4), -math.log(8)
# Log-probabilities of the answers under the policy. The chosen answers have 2 tokens and 1, the
# rejected ones 1 and 2.
P0, Q0, P1, Q1 = math.log(0.2), math.log(0.1), math.log(0.3), math.log(0.4)
# Their means over tokens.
A0, B0, A1, B1 = P0 / 2, Q0, P1, Q1 / 2
PREPARED = {"weights": [1 / 2, 1 / 2, 0]}

# Pairs of the samples 0, 1 and 3, 2: rewards 1, 0 and 3, 1. Log-ratios to the reference log 3,
# log 1/2, log 3, log 1/2; to the sampler log 0.75, log 0.5, log 6, log 1.35.
BEST_AND_WORST = {
    "weights": [1 / 2, 1 / 2],
    "policy_logp": [
        [[math.log(0.75), math.log(0.25)], [math.log(0.25), -7]],
        [[-7, math.log(0.6)], [math.log(0.75), math.log(0.45)]],
    ],
}


def gate(x):
    return 1.0 / (1.0 + math.exp(-x))


def logistic(z):
    """-log sigmoid(z), whose slope is -gate(-z)."""
    return math.log(1.0 + math.exp(-z))


def of_pairs(loss, chosen, rejected, *, third=None, prepared=PREPARED, **more):
    """Numbers of the data's pairs: means over two pairs, slopes in the answers' log-probabilities.

    Args:
      loss: of the two pairs.
      chosen: slopes of the losses in each chosen answer's log-probability.
      rejected: the same in each rejected answer's.
      third: the same in each third answer's; None for pairs.
      prepared: of the batch.
      more: for `Numbers`.
    """
    answers = [chosen, rejected] + ([] if third is None else [third])
    gradient = [[role[pair] / 2 for role in answers] for pair in range(2)]
    return Numbers(
        loss=sum(loss) / 2,
        gradient=[*gradient, [0] * len(answers)],
        prepared=prepared,
        experience=pairs(len(answers)),
        **more,
    )


def of_margins(loss, slopes, **more):
    """Losses that see the margins alone: the rejected answers have the opposite slopes."""
    return of_pairs(loss, slopes, [-x for x in slopes], **more)


def of_means(loss, chosen, rejected, **more):
    """Losses of means over tokens: a token's slope is that of its answer over the length."""
    lengths = ((2, 1), (1, 2))
    answers = zip((chosen, rejected), lengths, strict=True)
    return of_pairs(
        loss, *([x / n for x, n in zip(*both, strict=True)] for both in answers), **more
    )


def of_samples(loss, chosen, rejected, **more):
    """The same of the best and the worst sample of each prompt."""
    return Numbers(
        loss=sum(loss) / 2,
        gradient=[[a / 2, b / 2] for a, b in zip(chosen, rejected, strict=True)],
        prepared=BEST_AND_WORST,
        experience=samples(),
        **more,
    )


def discopop(z, tau=0.05):
    m = gate(z / tau)
    return (1 - m) * logistic(z) + m * math.exp(-z)


def discopop_slope(z, tau=0.05):
    m = gate(z / tau)
    blend = m * (1 - m) / tau * (math.exp(-z) - logistic(z))
    return blend - (1 - m) * gate(-z) - m * math.exp(-z)


def exo(z, epsilon=1e-3):
    q = gate(z)
    return q * math.log(q / (1 - epsilon)) + (1 - q) * math.log((1 - q) / epsilon)


def exo_slope(z, epsilon=1e-3):
    q = gate(z)
    return q * (1 - q) * (z - math.log((1 - epsilon) / epsilon))


def bent(x):
    """AlphaPO's (1 - exp(-x / 4)) / (1 / 4), whose slope is exp(-x / 4)."""
    return 4 * (1 - math.exp(-x / 4))


def odds(x):
    """log(p / (1 - p)) of p = exp(x), whose slope is 1 / (1 - p)."""
    return x - math.log(1 - math.exp(x))


# The log-odds of the mean probabilities, sqrt(0.2), 0.1, 0.3, sqrt(0.4).
O0, O1 = odds(A0) - odds(B0), odds(A1) - odds(B1)
# AlphaPO's 2.5 times the difference, less 0.1.
F0, F1 = 2.5 * (bent(A0) - bent(B0)) - 0.1, 2.5 * (bent(A1) - bent(B1)) - 0.1
# AOT: margins of the policy, log 2 and log 0.75; of the reference, log 1/2 and log 6. The larger
# one of each is compared with the larger one of the other, the smaller with the smaller.
T0, T1 = math.log(2) - math.log(6), math.log(0.75) - math.log(0.5)

HAND_COMPUTED = {
    # -log sigmoid(0.1 m), m the margin of the log-ratios.
    "dpo": of_margins(
        (logistic(0.1 * M0), logistic(0.1 * M1)),
        (-0.1 * gate(-0.1 * M0), -0.1 * gate(-0.1 * M1)),
    ),
    # -0.8 log sigmoid(z) - 0.2 log sigmoid(-z), z = 0.5 m.
    "dpo, smoothed labels": of_margins(
        (
            0.8 * logistic(0.5 * M0) + 0.2 * logistic(-0.5 * M0),
            0.8 * logistic(0.5 * M1) + 0.2 * logistic(-0.5 * M1),
        ),
        (
            0.5 * (-0.8 * gate(-0.5 * M0) + 0.2 * gate(0.5 * M0)),
            0.5 * (-0.8 * gate(-0.5 * M1) + 0.2 * gate(0.5 * M1)),
        ),
        settings={"beta": 0.5, "label_smoothing": 0.2},
    ),
    # DPO of the best and the worst sample: the margins of both pairs are log 6.
    "online_dpo": of_samples(
        (logistic(0.1 * math.log(6)), logistic(0.1 * math.log(6))),
        (-0.1 * gate(-0.1 * math.log(6)), -0.1 * gate(-0.1 * math.log(6))),
        (0.1 * gate(-0.1 * math.log(6)), 0.1 * gate(-0.1 * math.log(6))),
    ),
    # (m - 1 / (2 x 0.1))^2
    "ipo": of_margins(((M0 - 5) ** 2, (M1 - 5) ** 2), (2 * (M0 - 5), 2 * (M1 - 5))),
    # (h - 1 / (2 x 0.005))^2, h the margin to the reference, log 6, times a third, and that to the
    # sampler, log 1.5 and log(40/9), times two thirds.
    "inpo": of_samples(
        (
            (math.log(6) / 3 + 2 * math.log(1.5) / 3 - 100) ** 2,
            (math.log(6) / 3 + 2 * math.log(40 / 9) / 3 - 100) ** 2,
        ),
        (
            2 * (math.log(6) / 3 + 2 * math.log(1.5) / 3 - 100),
            2 * (math.log(6) / 3 + 2 * math.log(40 / 9) / 3 - 100),
        ),
        (
            -2 * (math.log(6) / 3 + 2 * math.log(1.5) / 3 - 100),
            -2 * (math.log(6) / 3 + 2 * math.log(40 / 9) / 3 - 100),
        ),
    ),
    # (x - 1000 / 2)^2 + (y + 1000 / 2)^2 of the log-ratios to the sampler, chosen and rejected.
    "sppo": of_samples(
        (
            (math.log(0.75) - 500) ** 2 + (math.log(0.5) + 500) ** 2,
            (math.log(6) - 500) ** 2 + (math.log(1.35) + 500) ** 2,
        ),
        (2 * (math.log(0.75) - 500), 2 * (math.log(6) - 500)),
        (2 * (math.log(0.5) + 500), 2 * (math.log(1.35) + 500)),
    ),
    # max(0, 1 - 0.05 m)
    "hinge": of_margins((1 - 0.05 * M0, 1 - 0.05 * M1), (-0.05, -0.05)),
    # A margin of 1 is enough: log 4 = 1.386.
    "hinge, a margin that is met": of_margins((0, 1 - M1), (0, -1), settings={"beta": 1.0}),
    # KL([q, 1 - q] || [0.999, 0.001]), q = sigmoid(0.1 m).
    "exo": of_margins(
        (exo(0.1 * M0), exo(0.1 * M1)), (0.1 * exo_slope(0.1 * M0), 0.1 * exo_slope(0.1 * M1))
    ),
    # -(1 - w) log sigmoid(z) + w exp(-z), w = sigmoid(z / 0.05), z = 0.05 m.
    "discopop": of_margins(
        (discopop(0.05 * M0), discopop(0.05 * M1)),
        (0.05 * discopop_slope(0.05 * M0), 0.05 * discopop_slope(0.05 * M1)),
    ),
    # exp(-0.1 m): powers of 4 and 1/8.
    "exponential_margin": of_margins((4**-0.1, 8**0.1), (-0.1 * 4**-0.1, -0.1 * 8**0.1)),
    # 1 - 0.1 m
    "linear_margin": of_margins((1 - 0.1 * M0, 1 - 0.1 * M1), (-0.1, -0.1)),
    # (0.9 l(z) - 0.1 l(-z)) / 0.8, l(z) = -log sigmoid(z), z = 0.1 m.
    "robust_dpo": of_margins(
        (
            (0.9 * logistic(0.1 * M0) - 0.1 * logistic(-0.1 * M0)) / 0.8,
            (0.9 * logistic(0.1 * M1) - 0.1 * logistic(-0.1 * M1)) / 0.8,
        ),
        (
            0.1 * (-0.9 * gate(-0.1 * M0) - 0.1 * gate(0.1 * M0)) / 0.8,
            0.1 * (-0.9 * gate(-0.1 * M1) - 0.1 * gate(0.1 * M1)) / 0.8,
        ),
    ),
    # The margin z = log 4 counts 1, without a slope.
    "robust_dpo, a margin above the limit": of_margins(
        (
            (0.9 * logistic(1) - 0.1 * logistic(-1)) / 0.8,
            (0.9 * logistic(M1) - 0.1 * logistic(-M1)) / 0.8,
        ),
        (0, (-0.9 * gate(-M1) - 0.1 * gate(M1)) / 0.8),
        settings={"beta": 1.0, "max_margin": 1.0},
    ),
    # l(c) + l(-c) / 2 + l(-r) / 2, l(x) = -log sigmoid(x), c and r 0.01 times the log-ratios.
    "nca": of_pairs(
        [
            logistic(0.01 * c) + logistic(-0.01 * c) / 2 + logistic(-0.01 * r) / 2
            for c, r in ((C0, R0), (C1, R1))
        ],
        [0.01 * (-gate(-0.01 * c) + gate(0.01 * c) / 2) for c in (C0, C1)],
        [0.01 * gate(0.01 * r) / 2 for r in (R0, R1)],
    ),
    # 1 - sigmoid(c) + sigmoid(r), c and r 0.1 times the log-ratios.
    "apo_zero": of_pairs(
        [1 - gate(0.1 * c) + gate(0.1 * r) for c, r in ((C0, R0), (C1, R1))],
        [-0.1 * gate(0.1 * c) * gate(-0.1 * c) for c in (C0, C1)],
        [0.1 * gate(0.1 * r) * gate(-0.1 * r) for r in (R0, R1)],
    ),
    # sigmoid(c) + 1 - sigmoid(c - r)
    "apo_down": of_pairs(
        [gate(0.1 * c) + 1 - gate(0.1 * m) for c, m in ((C0, M0), (C1, M1))],
        [
            0.1 * (gate(0.1 * c) * gate(-0.1 * c) - gate(0.1 * m) * gate(-0.1 * m))
            for c, m in ((C0, M0), (C1, M1))
        ],
        [0.1 * gate(0.1 * m) * gate(-0.1 * m) for m in (M0, M1)],
    ),
    # -log sigmoid(0.01 (margin of the policy - margin of the reference of the same rank))
    "aot": of_margins(
        (logistic(0.01 * T0), logistic(0.01 * T1)),
        (-0.01 * gate(-0.01 * T0), -0.01 * gate(-0.01 * T1)),
    ),
    # -log sigmoid(2 (a - b) - 1), a and b the mean log-probabilities.
    "simpo": of_means(
        (logistic(2 * (A0 - B0) - 1), logistic(2 * (A1 - B1) - 1)),
        (-2 * gate(1 - 2 * (A0 - B0)), -2 * gate(1 - 2 * (A1 - B1))),
        (2 * gate(1 - 2 * (A0 - B0)), 2 * gate(1 - 2 * (A1 - B1))),
    ),
    # -log sigmoid(2.5 (g(a) - g(b)) - 0.1), g(x) = (1 - exp(-x / 4)) / (1 / 4) of the means.
    "alphapo": of_means(
        (logistic(F0), logistic(F1)),
        (-2.5 * gate(-F0) * math.exp(-A0 / 4), -2.5 * gate(-F1) * math.exp(-A1 / 4)),
        (2.5 * gate(-F0) * math.exp(-B0 / 4), 2.5 * gate(-F1) * math.exp(-B1 / 4)),
    ),
    # -log sigmoid(0.1 (p - q)) - p of the log-probabilities; p - q is log 2 and log 3/4.
    "cpo": of_pairs(
        (logistic(0.1 * math.log(2)) - P0, logistic(0.1 * math.log(0.75)) - P1),
        (-0.1 * gate(-0.1 * math.log(2)) - 1, -0.1 * gate(-0.1 * math.log(0.75)) - 1),
        (0.1 * gate(-0.1 * math.log(2)), 0.1 * gate(-0.1 * math.log(0.75))),
    ),
    # -a - 0.1 log sigmoid(odds(a) - odds(b)), a and b the mean log-probabilities.
    "orpo": of_means(
        (-A0 + 0.1 * logistic(O0), -A1 + 0.1 * logistic(O1)),
        (
            -1 - 0.1 * gate(-O0) / (1 - math.sqrt(0.2)),
            -1 - 0.1 * gate(-O1) / (1 - 0.3),
        ),
        (0.1 * gate(-O0) / (1 - 0.1), 0.1 * gate(-O1) / (1 - math.sqrt(0.4))),
    ),
    # -log sigmoid(0.01 m) - 0.005 x 0.01 log p of the chosen answer.
    "rpo": of_pairs(
        (logistic(0.01 * M0) - 5e-5 * P0, logistic(0.01 * M1) - 5e-5 * P1),
        (-0.01 * gate(-0.01 * M0) - 5e-5, -0.01 * gate(-0.01 * M1) - 5e-5),
        (0.01 * gate(-0.01 * M0), 0.01 * gate(-0.01 * M1)),
    ),
    # The imitated answer is a third one, of the probabilities 0.25 and 0.7.
    "rpo, a third answer": of_pairs(
        (
            logistic(0.5 * M0) - 0.2 * 0.5 * math.log(0.25),
            logistic(0.5 * M1) - 0.2 * 0.5 * math.log(0.7),
        ),
        (-0.5 * gate(-0.5 * M0), -0.5 * gate(-0.5 * M1)),
        (0.5 * gate(-0.5 * M0), 0.5 * gate(-0.5 * M1)),
        third=(-0.2 * 0.5, -0.2 * 0.5),
        settings={"beta": 0.5, "adversary_weight": 0.2, "third": "data"},
    ),
    # max(0, 1 - p + q) - 0.1 p of the log-probabilities; p - q is log 2 and log 3/4.
    "slic": of_pairs(
        (1 - math.log(2) - 0.1 * P0, 1 - math.log(0.75) - 0.1 * P1),
        (-1 - 0.1, -1 - 0.1),
        (1, 1),
    ),
    # A margin of 0.5 is met by the first pair, whose log 2 is 0.693.
    "slic, a margin that is met": of_pairs(
        (-0.1 * P0, 0.5 - math.log(0.75) - 0.1 * P1),
        (-0.1, -1 - 0.1),
        (0, 1),
        settings={"delta": 0.5},
    ),
    # -log sigmoid(0.01 (p - q)) - log of the third answer's probability, 0.25 and 0.7.
    "tpo": of_pairs(
        (
            logistic(0.01 * math.log(2)) - math.log(0.25),
            logistic(0.01 * math.log(0.75)) - math.log(0.7),
        ),
        (-0.01 * gate(-0.01 * math.log(2)), -0.01 * gate(-0.01 * math.log(0.75))),
        (0.01 * gate(-0.01 * math.log(2)), 0.01 * gate(-0.01 * math.log(0.75))),
        third=(-1, -1),
    ),
    # Three samples a prompt: the best and the worst of rewards 1, 0, 3 are the samples 2 and 1,
    # whose log-ratios to the reference are the same. Equal rewards make no pair.
    "online_dpo, of three": Numbers(
        experience=samples([1.0, 0.0, 3.0, 2.0, 2.0, math.nan], group=3),
        group=3,
        prepared={"weights": [1, 0]},
        loss=math.log(2),
        gradient=[[-0.1 / 2, 0.1 / 2], [0, 0]],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


def test_inpo_with_tau_at_its_inverse_step_is_ipo_against_the_reference():
    both = algorithms.INPO(inverse_step=0.3, tau=0.3), algorithms.IPO(beta=0.3, pairs="samples")
    found = []
    for settings in both:
        algorithm = settings.build(OFF)
        _, batch, _ = algorithm.prepare((), stored_for(algorithm), None)
        logp = batch["behavior_logp"] + 0.2 * batch["mask"]
        found.append(jax.grad(lambda x, a=algorithm, b=batch: a.loss(Outputs(x), b)[0])(logp))
    assert np.abs(found[0]).max() > 1e-3
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_pairs_name_their_reference_and_only_losses_that_read_one_have_the_setting():
    for reference in (Initial(), Previous(every=3), Average(decay=0.9)):
        found = algorithms.DPO(reference=reference).build(OFF)
        assert found.policies == {"reference": reference}
    with pytest.raises(ValueError, match="'reference', which is the sampling policy"):
        algorithms.DPO(reference=Previous(every=1)).build(OFF).check()
    algorithms.OnlineDPO(reference=Previous(every=1)).build(OFF).check()
    for name in ("simpo", "alphapo", "orpo", "cpo", "slic", "tpo"):
        found = algorithms.find(name)
        assert "reference" not in {field.name for field in dataclasses.fields(found)}
        assert found().build(OFF).policies == {}


def test_a_third_answer_may_be_the_chosen_one():
    two, three = (
        algorithms.RPO(beta=0.2, adversary_weight=0.1, third=third).build(OFF)
        for third in ("chosen", "data")
    )
    assert (two.unit, three.unit) == (Pair(), Pair(("chosen", "rejected", "baseline")))
    given = stored_for(three)
    given = {name: x.at[:, 2].set(x[:, 0]) for name, x in given.items()}
    start = given["behavior_logp"] - 0.1 * given["mask"]

    def gradient(algorithm, given, start):
        _, batch, _ = algorithm.prepare((), given, None)
        return jax.grad(lambda x: algorithm.loss(Outputs(x), batch)[0])(start)

    of_two = gradient(two, {k: x[:, :2] for k, x in given.items()}, start[:, :2])
    of_three = gradient(three, given, start)
    np.testing.assert_allclose(of_two[:, 0], of_three[:, 0] + of_three[:, 2], atol=1e-6)
    np.testing.assert_allclose(of_two[:, 1], of_three[:, 1], atol=1e-6)


def reversed_roles(rejected_logp, chosen_logp):
    """A loss whose arguments begin with the rejected answer."""
    return -(chosen_logp - rejected_logp)


def lengths_first(chosen_lengths, chosen_logp, rejected_logp, *, beta: float = 1.0):
    """A loss that reads a length."""
    return -beta * chosen_logp / chosen_lengths + rejected_logp


def test_samples_take_their_roles_by_name():
    settings = algorithms.settings_of(reversed_roles, "Reversed", algorithms.PairLoss)
    algorithm = settings(pairs="samples").build(OFF)
    given = stored_for(algorithm)
    _, batch, _ = algorithm.prepare((), given, None)
    pairs, usable = algorithms.pairs.best_and_worst(given, GROUP)
    np.testing.assert_array_equal(batch["completions"][:, 1], pairs["completions"][:, 0])
    np.testing.assert_array_equal(batch["completions"][:, 0], pairs["completions"][:, 1])
    assert usable.any()
    loss, metrics = algorithm.loss(Outputs(batch["behavior_logp"]), batch)
    margin, count = metrics["margin"]
    np.testing.assert_allclose(margin / count, -loss, rtol=1e-5)


def test_a_loss_of_lengths_holds_no_reference_and_has_a_margin():
    settings = algorithms.settings_of(lengths_first, "Lengths", algorithms.PairLoss)
    algorithm = settings().build(OFF)
    assert not algorithm.policies and settings().beta == 1.0
    given = stored_for(algorithm)
    _, batch, _ = algorithm.prepare((), given, None)
    _, metrics = algorithm.loss(Outputs(batch["behavior_logp"]), batch)
    chosen, rejected = (batch["behavior_logp"] * batch["mask"]).sum(-1).T
    margin, count = metrics["margin"]
    np.testing.assert_allclose(margin / count, (chosen - rejected).mean(), rtol=1e-5)


def test_samples_make_no_other_roles():
    with pytest.raises(ValueError, match="make chosen and rejected; or set third to 'chosen'"):
        algorithms.TPO(pairs="samples").build(OFF)


def test_pairs_of_answers_that_begin_with_a_hole_count():
    experience = jax.tree.map(
        lambda x: jnp.asarray(x.reshape(-1, 2, *x.shape[1:])), stored_rollouts()
    )
    mask = experience["mask"].at[:, :, 0].set(0.0).at[0, 1].set(0.0)
    algorithm = algorithms.DPO().build(OFF)
    _, batch, _ = algorithm.prepare((), {**experience, "mask": mask}, None)
    both = (np.asarray(mask) > 0).any(-1).all(-1)
    assert not both[0] and both.any()
    np.testing.assert_allclose(batch["weights"], both / both.sum())
