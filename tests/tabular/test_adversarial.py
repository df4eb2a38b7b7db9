"""The adversary of RPO: its identity, and that its policy is the one that RPO finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from polgrad import losses, tabular

RNG = np.random.default_rng(0)
REFERENCE, BASE = RNG.dirichlet(np.ones(6), size=2)
# Every pair in both orders, so that the minima exist.
PREFERRED = RNG.uniform(0.1, 1.0, (6, 6)) * (1 - np.eye(6))
BETA, ETA = 0.7, 0.3


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def gain(rewards, log_reference, base, beta=1.0):
    zero = jnp.zeros((len(rewards), len(rewards)))
    return tabular.adversarial_reward_objective(
        rewards, log_reference, base, zero, beta=beta, adversary_weight=1.0
    )


def test_the_gain_is_the_imitation_term():
    """beta log Z - E_base[r] = -beta E_base[log(optimum / reference)], whatever is added to r."""
    by_hand = gain(jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(by_hand, -0.379885, atol=1e-6)
    rewards, log_reference = jnp.asarray(RNG.normal(size=6)), jnp.log(REFERENCE)
    optimum = tabular.kl_regularized_optimum(log_reference, rewards, beta=BETA)
    imitation = -BETA * BASE @ (optimum - log_reference)
    for shift in (0.0, 3.0):
        found = gain(rewards + shift, log_reference, BASE, beta=BETA)
        np.testing.assert_allclose(found, imitation, rtol=1e-9)


def test_the_worst_reward_has_the_policy_that_rpo_finds():
    log_reference = jnp.log(REFERENCE)
    adversary = jax.jit(
        jax.value_and_grad(
            functools.partial(
                tabular.adversarial_reward_objective,
                log_reference=log_reference,
                baseline=BASE,
                preferred=PREFERRED,
                beta=BETA,
                adversary_weight=ETA,
            )
        )
    )
    i, j = (x.ravel() for x in np.indices((6, 6)))

    @jax.jit
    @jax.value_and_grad
    def rpo(logits):
        log_policy = jax.nn.log_softmax(logits)
        ratio = log_policy - log_reference
        pairs = losses.rpo(ratio[i], ratio[j], log_policy[i], beta=BETA, adversary_weight=0.0)
        imitation = ETA * BETA * BASE @ losses.imitation(log_policy)
        return PREFERRED.ravel() @ pairs + imitation

    rewards = minimize(adversary, np.zeros(6), jac=True, tol=1e-12).x
    logits = minimize(rpo, np.zeros(6), jac=True, tol=1e-12).x
    policy = jnp.exp(tabular.kl_regularized_optimum(log_reference, rewards, beta=BETA))
    np.testing.assert_allclose(policy, jax.nn.softmax(logits), atol=1e-5)


def test_misfit_by_hand_and_batches():
    preferred = np.zeros((2, 3, 3))
    preferred[0, 0, 2] = 2.0
    rewards = np.array([[1.0, 5.0, 0.5], [0.0, 0.0, 0.0]])
    uniform = np.full((2, 3), 1 / 3)
    found = tabular.adversarial_reward_objective(
        rewards, np.log(uniform), uniform, preferred, beta=1.0, adversary_weight=0.0
    )
    np.testing.assert_allclose(found, [2 * np.log1p(np.exp(-0.5)), 0.0], rtol=1e-12)


def test_uncovered_mass():
    log_policy = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    covered = np.array([[1, 0, 1], [0, 0, 0]], bool)
    np.testing.assert_allclose(tabular.uncovered_mass(log_policy, covered), [0.3, 1.0])
    np.testing.assert_allclose(
        tabular.uncovered_mass(np.array([-np.inf, 0.0]), covered[0, :2]), 1.0
    )


def test_bad_arguments():
    one, pairs = np.zeros(3), np.zeros((3, 3))
    objective = tabular.adversarial_reward_objective
    with pytest.raises(ValueError, match="beta"):
        objective(one, one, one, pairs, beta=0.0, adversary_weight=1.0)
    with pytest.raises(ValueError, match="adversary_weight"):
        objective(one, one, one, pairs, beta=1.0, adversary_weight=-1.0)
    with pytest.raises(ValueError, match="baseline"):
        objective(one, one, one[:2], pairs, beta=1.0, adversary_weight=1.0)
    with pytest.raises(ValueError, match="preferred"):
        objective(one, one, one, pairs[:2], beta=1.0, adversary_weight=1.0)
    with pytest.raises(ValueError, match="covered"):
        tabular.uncovered_mass(one, one[:2])


def rpo_loss(z, base, eta, beta=0.5):
    log_policy, reference = jax.nn.log_softmax(z), jnp.log(jnp.full(4, 0.25))
    ratio = log_policy - reference
    chosen, rejected = np.array([0, 1, 2]), np.array([1, 2, 0])  # action 3 is in no pair
    pairs = losses.dpo(ratio[chosen], ratio[rejected], beta=beta).sum()
    return pairs + eta * beta * base @ losses.imitation(log_policy)


def test_an_action_in_no_pair_is_pushed_down_by_imitation_alone():
    z, base = jnp.array([0.3, -0.2, 0.5, 0.1]), jnp.array([0.5, 0.3, 0.2, 0.0])
    for eta in (0.0, 0.7):
        expected = eta * 0.5 * jax.nn.softmax(z)[3]
        np.testing.assert_allclose(jax.grad(rpo_loss)(z, base, eta)[3], expected, atol=1e-12)


def test_a_strong_imitation_term_finds_the_baseline():
    base = np.array([0.4, 0.3, 0.2, 0.1])
    scaled = jax.jit(jax.value_and_grad(lambda z: rpo_loss(z, base, 1e4) / 1e4))
    z = minimize(scaled, np.zeros(4), jac=True, tol=1e-12).x
    np.testing.assert_allclose(jax.nn.softmax(z), base, atol=1e-3)
