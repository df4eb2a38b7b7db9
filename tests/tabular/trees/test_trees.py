"""Soft values on trees: the telescoping identity, closed forms, exact KL along prefixes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from polgrad import divergences
from polgrad.tabular.sequences import enumerate_sequences
from polgrad.tabular.trees import soft_tree_values

BETA = 0.5
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def world(length=3, end=None):
    """Completions, random rewards and reference logits; the solution as one program."""
    sequences = enumerate_sequences(3, length, end=end)
    shape = (2, sequences.prefixes, 3)
    solve = jax.jit(functools.partial(soft_tree_values, sequences, beta=BETA))
    return sequences, *RNG.normal(size=shape), solve


def along(sequences, table):
    """Sum over the tokens of every completion."""
    return np.sum(sequences.mask * np.asarray(table)[sequences.prefix, sequences.tokens], -1)


@pytest.mark.parametrize("end", [None, 1])
def test_log_ratios_telescope_to_the_reward_less_the_value(end):
    sequences, rewards, reference, solve = world(end=end)
    solved = solve(rewards, reference)
    ratio = along(sequences, solved.log_policy) - along(sequences, log_softmax(reference, -1))
    expected = along(sequences, rewards) - solved.values[0]
    np.testing.assert_allclose(BETA * ratio, expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(solved.log_policy).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("end", [None, 1])
def test_the_root_is_the_bandit_over_completions(end):
    sequences, rewards, reference, solve = world(end=end)
    log_reference = along(sequences, log_softmax(reference, -1))
    value = BETA * logsumexp(log_reference + along(sequences, rewards) / BETA)
    np.testing.assert_allclose(solve(rewards, reference).values[0], value, rtol=1e-12)


def test_action_values_look_one_step_ahead():
    sequences, rewards, reference, solve = world(length=2, end=0)
    solved = solve(rewards, reference)
    # The end token has no future; the others lead to the prefixes "1" and "2".
    ahead = {int(t[0]): int(p[1]) for t, p in zip(sequences.tokens, sequences.prefix) if t[0]}
    expected = [rewards[0, 0], *(rewards[0, a] + solved.values[ahead[a]] for a in (1, 2))]
    np.testing.assert_allclose(solved.q[0], expected, rtol=1e-12)
    np.testing.assert_allclose(solved.q[1:], rewards[1:], rtol=1e-12)
    one = BETA * logsumexp(log_softmax(reference[1:], -1) + rewards[1:] / BETA, axis=-1)
    np.testing.assert_allclose(solved.values[1:], one, rtol=1e-12)


def test_any_policy_is_optimal_for_its_own_log_ratio():
    _, policy, reference, solve = world(end=1)
    rewards = BETA * (log_softmax(policy, -1) - log_softmax(reference, -1))
    solved = solve(rewards, reference)
    np.testing.assert_allclose(solved.log_policy, log_softmax(policy, -1), atol=1e-12)
    np.testing.assert_allclose(solved.values, 0.0, atol=1e-12)


def test_the_slope_of_the_value_is_how_often_the_optimal_policy_comes_by():
    sequences, rewards, reference, solve = world(length=2, end=0)
    slope = jax.jit(jax.grad(lambda r: solve(r, reference).values[0]))(rewards)
    probability = np.exp(along(sequences, solve(rewards, reference).log_policy))
    visits = np.zeros(rewards.shape)
    where = sequences.prefix, sequences.tokens
    np.add.at(visits, where, probability[:, None] * sequences.mask)
    np.testing.assert_allclose(slope, visits, atol=1e-12)


def test_exact_kl_along_sampled_prefixes_is_the_kl_of_completions():
    sequences, logits, reference, _ = world(end=1)
    per_prefix = jax.jit(divergences.categorical_kl)(logits, reference)
    estimate = np.sum(sequences.mask * np.asarray(per_prefix)[sequences.prefix], -1)
    logp = along(sequences, log_softmax(logits, -1))
    ratio = logp - along(sequences, log_softmax(reference, -1))
    np.testing.assert_allclose(np.exp(logp) @ estimate, np.exp(logp) @ ratio, rtol=1e-12)
    assert np.all(estimate >= 0.0) and np.any(ratio < 0.0)


def test_bad_arguments_are_named():
    sequences, rewards, reference, _ = world(length=2, end=0)
    with pytest.raises(ValueError, match="beta is 0"):
        soft_tree_values(sequences, rewards, reference, beta=0.0)
    with pytest.raises(ValueError, match="rewards has shape"):
        soft_tree_values(sequences, rewards[:, :2], reference, beta=1.0)
    with pytest.raises(ValueError, match="reference_logits has shape"):
        soft_tree_values(sequences, rewards, jnp.zeros(3), beta=1.0)
