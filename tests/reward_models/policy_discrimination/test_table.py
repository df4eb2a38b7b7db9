"""Telling policies apart: the enumerated optimum of the pre-training loss, and what it rewards."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import advantages, losses, reward_models, tabular


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def triples_of(policies):
    """P(reference, positive, negative), policy by policy."""
    count, answers = policies.shape
    joint = np.zeros((answers,) * 3)
    for i, j in itertools.permutations(range(count), 2):
        for r, a, b in itertools.product(range(answers), repeat=3):
            joint[r, a, b] += policies[i, r] * policies[i, a] * policies[j, b]
    return joint / (count * (count - 1))


def test_the_preference_is_that_of_enumerated_triples():
    policies = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    policies[0] = [0.0, 0.0, 1.0]
    joint = triples_of(policies)
    expected = joint / (joint + joint.swapaxes(1, 2))
    np.testing.assert_allclose(
        run(reward_models.policy_discrimination, policies), expected, rtol=1e-9
    )


TWO = np.array([[0.9, 0.1], [0.2, 0.8]])


def pre_training_loss(scores, joint):
    """-E log sigmoid(r(reference, positive) - r(reference, negative)) over all triples."""
    r, a, b = (x.ravel() for x in np.indices(joint.shape))
    return joint.ravel() @ reward_models.bradley_terry(scores[r, a], scores[r, b])


def test_the_exact_optimum_of_pre_training():
    joint = triples_of(TWO)
    step = jax.jit(jax.value_and_grad(pre_training_loss))
    scores = jnp.zeros((2, 2))
    assert float(step(scores, joint)[0]) == pytest.approx(math.log(2.0), abs=1e-9)
    for _ in range(400):
        scores -= 4.0 * step(scores, joint)[1]
    loss, slope = step(scores, joint)
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)
    assert float(loss) == pytest.approx(0.513336, abs=1e-6)
    gaps = [float(scores[0, 0] - scores[0, 1]), float(scores[1, 1] - scores[1, 0])]
    assert gaps == pytest.approx([1.392448, 1.882237], abs=1e-5)
    # The log-odds of the enumerated triples, not those of marginals.
    odds = run(reward_models.policy_discrimination, TWO)
    logits = [math.log(odds[0, 0, 1] / odds[0, 1, 0]), math.log(odds[1, 1, 0] / odds[1, 0, 1])]
    assert logits == pytest.approx(gaps, abs=1e-6)
    positive, negative = joint.sum(2), joint.sum(1)
    marginal = positive[0, 0] * negative[0, 1] / (positive[0, 1] * negative[0, 0])
    assert math.log(marginal) == pytest.approx(1.944322, abs=1e-5)
    # A function of the reference alone changes nothing.
    moved = run(pre_training_loss, scores + jnp.array([[3.0], [-5.0]]), joint)
    assert float(moved) == pytest.approx(float(loss), abs=1e-9)


def test_policies_that_cannot_be_told_apart():
    same = np.repeat(TWO[:1], 3, axis=0)
    np.testing.assert_allclose(run(reward_models.policy_discrimination, same), 0.5)
    apart = run(reward_models.policy_discrimination, np.eye(2))
    # Token 0 against token 1: the reference decides; token 0 twice never occurs as a pair.
    np.testing.assert_allclose(apart[0], [[0.5, 1.0], [0.0, 0.5]])
    np.testing.assert_allclose(apart[1], [[0.5, 0.0], [1.0, 0.5]])


def test_a_reward_is_a_difference_of_two_policies():
    """The optimum for beta log(target / initial) is the target, its reward a KL divergence."""
    initial, target = np.random.default_rng(1).dirichlet(np.ones(4), size=2)
    reward = losses.implicit_reward(np.log(target), np.log(initial), beta=0.3)
    optimum = tabular.kl_regularized_optimum(np.log(initial), reward, beta=0.3)
    np.testing.assert_allclose(jnp.exp(optimum), target, rtol=1e-9)
    kl = (target * np.log(target / initial)).sum()
    assert float(target @ reward) == pytest.approx(0.3 * kl, abs=1e-12)


def test_scores_are_relative_to_the_group_of_a_reference():
    """Whatever depends on prompt and reference alone leaves the advantages."""
    scores = np.array([[1.0, 2.0, 6.0], [0.0, -1.0, 1.0]])
    plain = run(advantages.group_relative, scores, scale="none")
    moved = run(advantages.group_relative, scores + np.array([[7.0], [-9.0]]), scale="none")
    np.testing.assert_allclose(plain, [[-2, -1, 3], [0, -1, 1]])
    np.testing.assert_allclose(moved, plain, atol=1e-9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="policies has shape"):
        reward_models.policy_discrimination(jnp.ones(3))
    with pytest.raises(ValueError, match="P of at least 2"):
        reward_models.policy_discrimination(jnp.ones((1, 3)))
