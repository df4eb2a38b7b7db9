"""Exact self-play: identities of a step, averages that converge and last policies that do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import distributions, losses, tabular

RPS, DICE = np.asarray(tabular.rps_game(), float), np.asarray(tabular.dice_game(), float)
START = np.array([0.6, 0.3, 0.1])
UNIFORM = np.full(3, 1 / 3)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def kl(p, q):
    p, q = np.asarray(p), np.asarray(q)
    return float((p * np.log(p / q)).sum())


@functools.partial(jax.jit, static_argnames=("eta", "iterations", "tau"))
def iterate(policy=START, preference=RPS, **settings):
    return tabular.soft_policy_iteration(policy, preference, **settings)


def test_a_step_by_hand_and_what_it_gains():
    found = iterate(eta=2.0, iterations=1)
    rates = RPS @ START
    expected = START * np.exp(rates / 0.5)
    expected /= expected.sum()
    np.testing.assert_allclose(found.last, expected, rtol=1e-12)
    np.testing.assert_allclose(found.last, (0.698086, 0.173330, 0.128584), atol=1e-6)
    np.testing.assert_allclose(found.average, START, rtol=1e-12)
    wins = float(found.last @ RPS @ START)
    assert wins == pytest.approx(0.545764, abs=1e-6)
    gained = 0.5 * (kl(found.last, START) + kl(START, found.last))
    assert wins == pytest.approx(0.5 + gained, abs=1e-12)
    assert wins >= 0.5 + 0.5 * kl(found.last, START)


def test_the_average_converges_where_the_last_policy_spirals():
    by_hand, policies = START, [START]
    for _ in range(10):
        weights = by_hand * np.exp(RPS @ by_hand / 2.0)
        moved = weights / weights.sum()
        change = kl(UNIFORM, moved) - kl(UNIFORM, by_hand)
        assert change == pytest.approx(np.log(weights.sum()) - 0.25, abs=1e-12)
        by_hand = moved
        policies.append(moved)
    assert kl(UNIFORM, START) == pytest.approx(0.2405, abs=1e-4)
    assert kl(UNIFORM, by_hand) == pytest.approx(0.2707, abs=1e-4)
    ten = iterate(eta=0.5, iterations=10)
    np.testing.assert_allclose(ten.last, by_hand, rtol=1e-10)
    np.testing.assert_allclose(ten.average, np.mean(policies[:-1], axis=0), rtol=1e-10)
    assert kl(UNIFORM, iterate(eta=0.5, iterations=100).last) == pytest.approx(0.6577, abs=1e-4)
    long = iterate(eta=0.5, iterations=2000)
    gaps = [float(tabular.duality_gap(x, UNIFORM, RPS, tau=0)) for x in long]
    assert gaps == pytest.approx([0.863, 0.0127], abs=1e-3)


def test_additive_preferences_are_a_reward():
    scores = np.array([0.0, 0.1, 0.2])
    found = iterate(preference=np.asarray(tabular.additive_game(scores)), eta=1.25, iterations=7)
    expected = START * np.exp(7 * scores / 0.8)
    np.testing.assert_allclose(found.last, expected / expected.sum(), rtol=1e-9)


def test_both_regularised_steps():
    """Against the policy it is mirror descent in self-play, against the mixture Nash-MD."""
    tau, eta = 0.1, 2.0
    found = iterate(eta=eta, iterations=1, reference=UNIFORM, tau=tau)
    expected = run(tabular.self_play_step, START, UNIFORM, RPS, eta=eta, tau=tau)
    np.testing.assert_allclose(found.last, expected, rtol=1e-12)
    mixture = run(tabular.smoothed_policy, START, UNIFORM, reference_weight=tau * eta)
    for opponent, step in ((START, tabular.self_play_step), (mixture, tabular.nash_md_step)):
        optimum = tabular.kl_regularized_optimum(jnp.log(mixture), RPS @ opponent, beta=1 / eta)
        expected = run(step, START, UNIFORM, RPS, eta=eta, tau=tau)
        np.testing.assert_allclose(jnp.exp(optimum), expected, rtol=1e-12)
    # Without a KL the reference has no say.
    plain = iterate(eta=eta, iterations=3, reference=np.array([0.1, 0.1, 0.8]))
    np.testing.assert_allclose(plain.last, iterate(eta=eta, iterations=3).last, rtol=1e-12)
    # Without a reference the KL is to the policy that the run starts from.
    own, start = (iterate(eta=eta, iterations=3, tau=tau, reference=r) for r in (None, START))
    np.testing.assert_array_equal(own.last, start.last)
    # The regularised last policy converges.
    long = iterate(eta=1.0, iterations=400, reference=START, tau=0.5)
    nash = run(tabular.regularized_nash, START, RPS, tau=0.5, iterations=2000)
    np.testing.assert_allclose(long.last, nash, atol=1e-9)
    np.testing.assert_allclose(nash, (0.643506, 0.193193, 0.163301), atol=1e-6)


def test_smoothed_policy():
    mixture = START**0.75 * UNIFORM**0.25
    found = run(tabular.smoothed_policy, START, UNIFORM, reference_weight=0.25)
    np.testing.assert_allclose(found, mixture / mixture.sum(), rtol=1e-12)
    logits = [jnp.log(x) for x in (START, UNIFORM)]
    theirs = distributions.geometric_mixture(*logits, reference_weight=0.25)
    np.testing.assert_allclose(found, jax.nn.softmax(theirs), rtol=1e-9)
    left, right = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    found = run(tabular.smoothed_policy, left, right, reference_weight=0.5)
    np.testing.assert_allclose(found, [0, 1, 0])
    for weight, policy in ((0.0, left), (1.0, right)):
        found = run(tabular.smoothed_policy, left, right, reference_weight=weight)
        np.testing.assert_allclose(found, policy)
    apart = run(tabular.smoothed_policy, np.eye(3)[0], np.eye(3)[2], reference_weight=0.5)
    np.testing.assert_allclose(apart, UNIFORM)


def test_fictitious_play():
    once = run(tabular.fictitious_play, START, RPS, tau=0.1, iterations=1)
    best = START * np.exp(RPS @ START / 0.1)
    best /= best.sum()
    np.testing.assert_allclose(once.last, best, rtol=1e-10)
    np.testing.assert_allclose(once.average, (START + best) / 2, rtol=1e-10)
    twice = run(tabular.fictitious_play, START, RPS, tau=0.1, iterations=2)
    np.testing.assert_allclose(
        twice.average, (START + best + np.asarray(twice.last)) / 3, rtol=1e-10
    )
    long = run(tabular.fictitious_play, START, RPS, tau=0.1, iterations=4000)
    np.testing.assert_allclose(long.average, (0.432065, 0.230329, 0.337605), atol=2e-3)


def test_judged_pairs():
    first, second = np.indices((3, 3))
    noise = np.full((3, 3), 0.55)
    found = run(tabular.judge_pairs, DICE, first, second, noise)
    np.testing.assert_array_equal(found, DICE > 0.55)
    at_the_edge = run(tabular.judge_pairs, np.full((3, 3), 0.55), first, second, noise)
    np.testing.assert_array_equal(at_the_edge, 0.0)
    assert found.dtype == jnp.float64


def test_bad_arguments():
    for settings, message in (
        ({"eta": 0.0, "iterations": 1}, "eta is 0"),
        ({"eta": 1.0, "iterations": 0}, "iterations is 0"),
        ({"eta": 1.0, "iterations": 1, "tau": 1.5, "reference": UNIFORM}, "tau is 1.5"),
        ({"eta": 1.0, "iterations": 1, "tau": -0.1, "reference": UNIFORM}, "tau is -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            tabular.soft_policy_iteration(START, RPS, **settings)
    with pytest.raises(ValueError, match="tau is 0"):
        tabular.fictitious_play(START, RPS, tau=0.0, iterations=1)
    with pytest.raises(ValueError, match="iterations is 0"):
        tabular.fictitious_play(START, RPS, tau=1.0, iterations=0)
    for weight in (-0.1, 1.1):
        with pytest.raises(ValueError, match="reference_weight"):
            tabular.smoothed_policy(START, UNIFORM, reference_weight=weight)
    with pytest.raises(ValueError, match="reference has shape"):
        tabular.smoothed_policy(START, UNIFORM[:2], reference_weight=0.5)
    with pytest.raises(ValueError, match="noise has shape"):
        tabular.judge_pairs(RPS, np.zeros(2, int), np.zeros(2, int), np.zeros(3))


DATA, MODEL = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])


def spin_loss(logits, policy, data, lambda_, loss=losses.dpo):
    ratio = jax.nn.log_softmax(logits) - jnp.log(policy)
    i, j = (x.ravel() for x in np.indices((3, 3)))
    return jnp.outer(data, policy).ravel() @ loss(ratio[i], ratio[j], beta=lambda_)


@pytest.mark.parametrize(
    "lambda_, expected",
    [
        (1.0, DATA),
        (2.0, [0.339134, 0.321731, 0.339134]),
        (0.5, [0.766871, 0.184049, 0.049080]),
    ],
)
def test_spin_step_is_the_minimiser(lambda_, expected):
    with jax.enable_x64(True):
        step = tabular.spin_step(MODEL, DATA, lambda_=lambda_)
        np.testing.assert_allclose(step, expected, atol=1e-6)
        value, slope = jax.value_and_grad(spin_loss)(jnp.log(step), MODEL, DATA, lambda_)
        np.testing.assert_allclose(slope, 0.0, atol=1e-12)
        np.testing.assert_allclose(value, 0.5686309696, atol=1e-10)


@pytest.mark.parametrize("loss, half", [(losses.dpo, 0.5), (losses.hinge, 1.0)])
def test_the_first_step_of_spin_is_maximum_likelihood(loss, half):
    with jax.enable_x64(True):
        logits = jnp.log(MODEL)
        slope = jax.grad(spin_loss)(logits, MODEL, DATA, 0.7, loss)
        np.testing.assert_allclose(slope, half * 0.7 * (MODEL - DATA), atol=1e-12)
        at_data = jax.grad(spin_loss)(jnp.log(DATA), DATA, DATA, 0.7, loss)
        np.testing.assert_allclose(at_data, 0.0, atol=1e-12)


def test_spin_converges_above_one_half_and_swings_at_it():
    def distances(lambda_, steps):
        policy, found = jnp.asarray(MODEL), []
        for _ in range(steps):
            found.append(float(DATA @ (np.log(DATA) - np.log(policy))))
            policy = tabular.spin_step(policy, DATA, lambda_=lambda_)
        return found

    with jax.enable_x64(True):
        damped = [0.274887, 0.067510, 0.016504, 0.004067, 0.001009]
        np.testing.assert_allclose(distances(2.0, 5), damped, atol=1e-6)
        np.testing.assert_allclose(distances(0.5, 3), [0.274887, 0.213693, 0.274887], atol=1e-6)
        np.testing.assert_allclose(distances(1.0, 2), [0.274887, 0.0], atol=1e-6)
        assert distances(0.1, 3)[2] > 90.0
    both = tabular.spin_step(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5]), lambda_=1.0)
    np.testing.assert_array_equal(both, [0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="lambda_"):
        tabular.spin_step(MODEL, DATA, lambda_=0.0)
    with pytest.raises(ValueError, match="data"):
        tabular.spin_step(MODEL, DATA[:2], lambda_=1.0)


@pytest.mark.parametrize("loss", [losses.exponential_margin, losses.linear_margin])
def test_first_step_of_the_other_kinds(loss):
    value, slope = jax.value_and_grad(spin_loss)(jnp.log(MODEL), MODEL, DATA, 0.7, loss)
    np.testing.assert_allclose(value, 1.0, atol=1e-12)
    np.testing.assert_allclose(slope, 0.7 * (MODEL - DATA), atol=1e-12)


@pytest.mark.parametrize("lambda_", [0.1, 1.0, 5.0])
def test_nothing_beats_the_data_at_the_data(lambda_):
    value, slope = jax.value_and_grad(spin_loss)(jnp.log(DATA), DATA, DATA, lambda_)
    np.testing.assert_allclose(value, np.log(2.0), rtol=1e-12)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    for z in np.random.default_rng(0).normal(size=(5, 3)):
        assert spin_loss(jnp.log(DATA) + z, DATA, DATA, lambda_) > value + 1e-6


@pytest.mark.parametrize("lambda_", [0.5, 1.0, 2.0])
def test_perturbing_a_spin_step_costs(lambda_):
    step = jnp.log(tabular.spin_step(MODEL, DATA, lambda_=lambda_))
    for z in np.random.default_rng(1).normal(size=(5, 3)):
        assert (
            spin_loss(step + z, MODEL, DATA, lambda_) > spin_loss(step, MODEL, DATA, lambda_) + 1e-6
        )


def test_diverging_distances_by_hand():
    policy, found = jnp.asarray(MODEL), []
    for _ in range(3):
        found.append(float(DATA @ (np.log(DATA) - np.log(policy))))
        policy = tabular.spin_step(policy, DATA, lambda_=0.1)
    np.testing.assert_allclose(found, [0.274887, 5.08, 94.9], rtol=2e-3)


def test_maximum_likelihood_is_a_fixed_point_of_spin_in_a_class_without_the_data():
    """Two independent bits against correlated data."""
    data = jnp.array([0.4, 0.1, 0.15, 0.35])  # 00 01 10 11
    first, second = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])

    def logp(z):
        return jax.nn.log_softmax(z[0])[first] + jax.nn.log_softmax(z[1])[second]

    best = jnp.log(jnp.array([[0.5, 0.5], [0.55, 0.45]]))
    frozen = logp(best)
    a, b = (x.ravel() for x in np.indices((4, 4)))

    def loss(z):
        ratio = logp(z) - frozen
        return jnp.outer(data, jnp.exp(frozen)).ravel() @ losses.dpo(ratio[a], ratio[b], beta=0.7)

    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-12)
    assert np.abs(jnp.exp(frozen) - data).max() > 0.1
