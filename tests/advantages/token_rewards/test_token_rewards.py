"""Rewards of tokens: hand numbers, sums that are kept, exact policy gradients, edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from polgrad import advantages, losses
from polgrad.advantages import token_rewards
from polgrad.tabular.sequences import enumerate_sequences, token_logp
from polgrad.tabular.trees import soft_tree_values

INF, NAN = np.inf, np.nan
MASK = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], float)
SEQUENCES = enumerate_sequences(3, 3, end=2)
RNG = np.random.default_rng(3)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def log_table(scale=1.0):
    """A random tabular policy."""
    table = scale * RNG.normal(size=(SEQUENCES.prefixes, SEQUENCES.vocabulary))
    return log_softmax(table, -1)


def tokens_of(table):
    """Log-probabilities of the tokens of every completion."""
    return SEQUENCES.mask * np.asarray(table)[SEQUENCES.prefix, SEQUENCES.tokens]


@jax.jit
def policy_gradient(logits, rewards):
    """Exact gradient of REINFORCE with the rewards-to-go of every completion."""
    discounts = jnp.ones_like(rewards)
    returns = advantages.discounted_returns(rewards, discounts, mask=SEQUENCES.mask)

    def loss(z):
        logp = token_logp(SEQUENCES, z)
        weight = jax.lax.stop_gradient(jnp.exp(logp.sum(-1)))
        return weight @ losses.reinforce(logp, returns).sum(-1)

    return jax.grad(loss)(logits)


solve = jax.jit(functools.partial(soft_tree_values, SEQUENCES, beta=0.5))


def test_a_score_goes_to_the_last_valid_token():
    placed = run(token_rewards.place_at_last, jnp.array([1.0, -2.0, 3.0, 4.0]), MASK)
    expected = [[0, 0, 0, 1], [0, 0, 0, -2], [0, 3, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(placed, expected)
    bad = run(token_rewards.place_at_last, jnp.array([NAN, INF, -INF, 1.0]), MASK)
    np.testing.assert_array_equal(bad, 0.0)


def test_a_completion_without_an_end_gets_its_own_reward():
    rewards, stopped = jnp.array([0.5, 2.0, NAN]), jnp.array([True, False, False])
    replaced = run(token_rewards.missing_eos_reward, rewards, stopped)
    np.testing.assert_array_equal(replaced, [0.5, -10.0, -10.0])
    replaced = run(token_rewards.missing_eos_reward, rewards, stopped.astype(float), value=-1.0)
    np.testing.assert_array_equal(replaced, [0.5, -1.0, -1.0])


def test_dpo_rewards_by_hand():
    ratio = jnp.array([[2.0, -3.0, 0.4, 9.0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    rewards = run(token_rewards.dpo_token_rewards, ratio, jnp.zeros((1, 4)), mask)
    np.testing.assert_allclose(rewards, [[0.05, -0.05, 0.02, 0.0]], rtol=1e-6)
    whole = run(token_rewards.dpo_token_rewards, ratio, jnp.zeros((1, 4)), mask, clip=None)
    np.testing.assert_allclose(whole, [[0.1, -0.15, 0.02, 0.0]], rtol=1e-6)


def test_kl_shaped_rewards_by_hand():
    behavior, reference = jnp.array([[-1.0, -2.0, -3.0, -4.0]]), jnp.array([[-1.5, -1.0, -3.0, 0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    score = jnp.array([2.0])
    rewards = run(token_rewards.kl_shaped_rewards, score, behavior, reference, mask)
    np.testing.assert_allclose(rewards, [[-0.025, 0.05, 2.0, 0.0]], atol=1e-7)
    price = run(token_rewards.kl_token_rewards, behavior, reference, mask, beta=0.5)
    np.testing.assert_allclose(price, [[-0.25, 0.5, 0.0, 0.0]], atol=1e-7)


def reference_rto(scores, teacher, behavior, reference, mask, start, clip):
    """The sum of the three terms, token by token."""
    rewards = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        places = np.flatnonzero(row)
        for t in places:
            dense = 0.05 * (teacher[b, t] - start[b, t])
            rewards[b, t] = min(max(dense, -clip), clip)
            rewards[b, t] -= 0.01 * (behavior[b, t] - reference[b, t])
        if len(places):
            rewards[b, places[-1]] += scores[b]
    return rewards


@given(st.integers(0, 10_000))
def test_rto_is_the_sum_of_its_terms(seed):
    rng = np.random.default_rng(seed)
    scores, logs = rng.normal(size=3), -3.0 * rng.random((4, 3, 5))
    mask = (rng.random((3, 5)) < 0.6).astype(float)
    with jax.enable_x64(True):
        rewards = run(token_rewards.rto_rewards, scores, *logs[:3], mask)
        own = run(with_own_reference, scores, *logs, mask)
    expected = reference_rto(scores, *logs[:3], mask, logs[2], 0.05)
    np.testing.assert_allclose(rewards, expected, rtol=1e-12, atol=1e-15)
    expected = reference_rto(scores, *logs[:3], mask, logs[3], 0.02)
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-15)


def with_own_reference(scores, teacher, behavior, reference, start, mask):
    return token_rewards.rto_rewards(
        scores, teacher, behavior, reference, mask, teacher_reference_logp=start, clip=0.02
    )


def test_a_teacher_that_learned_nothing_leaves_ppo(x64):
    scores, behavior, reference = jnp.array([1.0, 2.0, -1.0, 0.5]), -RNG.random((4, 4)), -MASK
    args = scores, reference, behavior, reference, MASK
    ours = run(token_rewards.rto_rewards, *args, kl_weight=0.3)
    ppo = run(token_rewards.kl_shaped_rewards, scores, behavior, reference, MASK, beta=0.3)
    np.testing.assert_array_equal(ours, ppo)
    double = run(token_rewards.rto_rewards, *args, kl_weight=0.3, reward_weight=2.0)
    np.testing.assert_allclose(
        double - ppo, run(token_rewards.place_at_last, scores, MASK), atol=1e-12
    )


def test_dense_rewards_sum_to_the_implicit_reward(x64):
    teacher, reference = -RNG.random((2, 4, 4))
    dense = run(token_rewards.dpo_token_rewards, teacher, reference, MASK, beta=0.2, clip=None)
    sums = [np.sum(MASK * x, -1) for x in (teacher, reference)]
    implicit = run(losses.implicit_reward, *sums, beta=0.2)
    np.testing.assert_allclose(dense.sum(-1), implicit, atol=1e-12)


def test_token_rewards_sum_to_the_priced_score(x64):
    behavior, reference = -RNG.random((2, 4, 4))
    scores = jnp.array([1.0, 2.0, 3.0, 4.0])
    args = scores, behavior, reference, MASK
    total = run(token_rewards.kl_shaped_rewards, *args, beta=0.2).sum(-1)
    ratio = np.sum(MASK * (behavior - reference), -1)
    priced = run(advantages.regularized_rewards, scores, ratio, beta=0.2)
    np.testing.assert_allclose(total, priced * MASK.any(-1), atol=1e-12)


def test_at_the_optimum_every_completion_has_the_same_reward(x64):
    teacher, reference, scores = log_table(), log_table(), RNG.normal(size=len(SEQUENCES.tokens))
    weights = {"dpo_weight": 0.2, "kl_weight": 0.5, "reward_weight": 0.7}
    # The tree: dense rewards on the way, the score at the token that ends a completion.
    rewards = 0.2 * (teacher - reference)
    last = SEQUENCES.mask.sum(-1).astype(int) - 1
    rows = np.arange(len(last))
    rewards[SEQUENCES.prefix[rows, last], SEQUENCES.tokens[rows, last]] += 0.7 * scores
    solved = solve(rewards, reference)
    behavior, good, base = (tokens_of(x) for x in (solved.log_policy, teacher, reference))
    tilted = 0.6 * base.sum(-1) + 0.4 * good.sum(-1) + 1.4 * scores
    np.testing.assert_allclose(behavior.sum(-1), log_softmax(tilted), atol=1e-12)
    args = scores, good, behavior, base, SEQUENCES.mask
    paid = run(token_rewards.rto_rewards, *args, clip=None, **weights)
    np.testing.assert_allclose(paid.sum(-1), solved.values[0], atol=1e-12)
    np.testing.assert_allclose(policy_gradient(solved.log_policy, paid), 0.0, atol=1e-12)


def test_without_a_score_the_optimum_is_the_teacher(x64):
    teacher, reference = log_table(), log_table()
    solved = solve(0.5 * (teacher - reference), reference)
    np.testing.assert_allclose(solved.log_policy, teacher, atol=1e-12)
    # There the dense reward pays back the price of the KL, token by token.
    good, base = tokens_of(teacher), tokens_of(reference)
    args = np.zeros(len(base)), good, good, base, SEQUENCES.mask
    weights = {"dpo_weight": 0.5, "kl_weight": 0.5, "reward_weight": 0.7}
    paid = run(token_rewards.rto_rewards, *args, clip=None, **weights)
    np.testing.assert_allclose(paid, 0.0, atol=1e-12)


def test_shaping_and_delay_change_no_expected_gradient(x64):
    logits, teacher, reference = log_table(), log_table(2.0), log_table()
    scores = RNG.normal(size=len(SEQUENCES.tokens))
    logp, good, base = (tokens_of(z) for z in (logits, teacher, reference))
    dense = run(token_rewards.dpo_token_rewards, good, base, SEQUENCES.mask)
    sparse = run(token_rewards.kl_shaped_rewards, scores, logp, base, SEQUENCES.mask)
    shaping = run(token_rewards.shape_to_zero, dense, SEQUENCES.mask)
    np.testing.assert_allclose(shaping.sum(-1), 0.0, atol=1e-12)
    assert np.abs(shaping).max() > 0.05
    np.testing.assert_allclose(
        policy_gradient(logits, sparse + shaping), policy_gradient(logits, sparse), atol=1e-12
    )
    late = run(token_rewards.delay_to_last, dense, SEQUENCES.mask)
    np.testing.assert_allclose(
        policy_gradient(logits, sparse + late), policy_gradient(logits, sparse + dense), atol=1e-12
    )
    assert np.abs(late - dense).max() > 0.05


def test_where_rewards_are_paid():
    rewards = jnp.array([[1.0, 2, 4, 8], [1, 2, 4, 8], [1, 2, 4, 8], [1, 2, 4, 8]])
    late = run(token_rewards.delay_to_last, rewards, MASK)
    np.testing.assert_array_equal(late, [[0, 0, 0, 15], [0, 0, 0, 10], [0, 3, 0, 0], [0] * 4])
    stops = jnp.array([[0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    sentences = run(token_rewards.delay_to_delimiters, rewards, MASK, stops)
    np.testing.assert_array_equal(sentences, [[0, 3, 0, 12], [0, 0, 0, 10], [1, 2, 0, 0], [0] * 4])
    shaped = run(token_rewards.shape_to_zero, rewards, MASK)
    np.testing.assert_array_equal(shaped, [[1, 2, 4, -7], [0, 2, 0, -2], [1, -1, 0, 0], [0] * 4])


@given(st.integers(0, 10_000))
def test_every_place_of_payment_keeps_the_sum(seed):
    rng = np.random.default_rng(seed)
    rewards = rng.integers(-8, 8, (4, 4)).astype(float)
    mask, stops = (rng.random((2, 4, 4)) < 0.5).astype(float)
    total = (rewards * mask).sum(-1)
    sentences = run(token_rewards.delay_to_delimiters, rewards, mask, stops)
    np.testing.assert_array_equal(sentences.sum(-1), total)
    every = run(token_rewards.delay_to_delimiters, rewards, mask, np.ones((4, 4)))
    np.testing.assert_array_equal(every, rewards * mask)
    late = run(token_rewards.delay_to_last, rewards, mask)
    np.testing.assert_array_equal(late.sum(-1), total)
    none = run(token_rewards.delay_to_delimiters, rewards, mask, np.zeros((4, 4)))
    np.testing.assert_array_equal(none, late)


def test_the_path_from_scores_to_advantages(x64):
    rewards, values = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.5, 0.5, 0.0]])
    mask = jnp.ones((1, 3))
    placed = run(token_rewards.place_at_last, jnp.ones(1), mask)
    np.testing.assert_array_equal(placed, rewards)
    estimated = run(advantages.gae, placed, values, mask)
    np.testing.assert_allclose(estimated, [[0.45125, 0.475, 0.5]], atol=1e-12)
    np.testing.assert_allclose(estimated + values[:, :3], [[0.95125, 0.975, 1.0]], atol=1e-12)
    whitened = run(advantages.whiten, estimated, mask, epsilon=1e-6)
    np.testing.assert_allclose(whitened, [[-0.990511, -0.017078, 1.007589]], atol=1e-6)
    # Old log-probabilities that are recomputed: the clip never acts, whatever its width.
    logp = jnp.array([[-1.0, -0.5, -2.0]])
    slope = grad(lambda x: losses.ppo_clip(x, logp, whitened, clip_low=1e-9, clip_high=1e-9).sum())
    np.testing.assert_allclose(slope(logp), -whitened, atol=1e-12)


EDGES = np.array([[-INF, -INF, -1.0, -900.0]]), np.array([[-1.0, -INF, -INF, 0.0]])


@pytest.mark.parametrize("mask", [np.ones((1, 4)), np.zeros((1, 4))], ids=["all", "none"])
def test_edges_are_finite(mask):
    score = jnp.array([NAN])
    rto = run(token_rewards.rto_rewards, score, *EDGES, EDGES[0], mask)
    assert np.all(np.isfinite(rto))
    price = run(token_rewards.kl_token_rewards, *EDGES, mask, beta=0.5)
    np.testing.assert_array_equal(price, mask * [[10.0, 0.0, -10.0, 10.0]])
    rewards = jnp.array([[NAN, 1.0, INF, 2.0]])
    np.testing.assert_array_equal(
        run(token_rewards.delay_to_last, rewards, mask), mask * [[0, 0, 0, 3.0]]
    )
    np.testing.assert_array_equal(
        run(token_rewards.shape_to_zero, rewards, mask), mask * [[0, 1.0, 0, -1.0]]
    )
    np.testing.assert_array_equal(
        run(token_rewards.delay_to_delimiters, rewards, mask, np.ones((1, 4))),
        mask * [[0, 1.0, 0, 2.0]],
    )


def test_nothing_carries_a_gradient():
    x, score, mask = jnp.full((1, 3), -0.5), jnp.ones(1), jnp.ones((1, 3))

    def total(score, a, b, c):
        return (
            token_rewards.rto_rewards(score, a, b, c, mask, clip=None).sum()
            + token_rewards.place_at_last(score, mask).sum()
            + token_rewards.missing_eos_reward(score, mask[:, 0]).sum()
            + (token_rewards.shape_to_zero(a, mask) * jnp.arange(3.0)).sum()
            + token_rewards.delay_to_delimiters(a, mask, mask).sum()
            + token_rewards.delay_to_last(a, mask).sum()
        )

    for slope in grad(total, argnums=(0, 1, 2, 3))(score, x, x - 1, x - 2):
        np.testing.assert_array_equal(slope, 0.0)


def test_low_precision_is_accumulated_in_float32():
    low = jnp.full((1, 3), -0.5, jnp.bfloat16)
    mask = jnp.ones((1, 3), bool)
    for result in (
        jax.eval_shape(token_rewards.rto_rewards, low[:, 0], low, low, low, mask),
        jax.eval_shape(token_rewards.missing_eos_reward, low[0], mask[0]),
        jax.eval_shape(token_rewards.shape_to_zero, low, mask),
    ):
        assert result.dtype == jnp.float32


def test_bad_arguments_are_named():
    x, row = jnp.zeros((2, 3)), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"rewards has shape \[3\]"):
        token_rewards.place_at_last(jnp.zeros(3), x)
    with pytest.raises(ValueError, match=r"mask has shape \[2\]"):
        token_rewards.place_at_last(row, row)
    with pytest.raises(ValueError, match="stopped has shape"):
        token_rewards.missing_eos_reward(row, x)
    with pytest.raises(ValueError, match="behavior_logp has shape"):
        token_rewards.kl_token_rewards(x[:1], x, x, beta=1.0)
    with pytest.raises(ValueError, match="teacher_logp has shape"):
        token_rewards.dpo_token_rewards(x[:1], x, x)
    with pytest.raises(ValueError, match="mask has shape"):
        token_rewards.dpo_token_rewards(row, row, row)
    with pytest.raises(ValueError, match="beta is -1"):
        token_rewards.dpo_token_rewards(x, x, x, beta=-1.0)
    with pytest.raises(ValueError, match="beta is -1"):
        token_rewards.kl_token_rewards(x, x, x, beta=-1.0)
    with pytest.raises(ValueError, match="clip is 0"):
        token_rewards.dpo_token_rewards(x, x, x, clip=0.0)
    with pytest.raises(ValueError, match="token_rewards has shape"):
        token_rewards.delay_to_last(row, row)
    with pytest.raises(ValueError, match="mask has shape"):
        token_rewards.shape_to_zero(x, x[:1])
    with pytest.raises(ValueError, match="delimiter has shape"):
        token_rewards.delay_to_delimiters(x, x, x[:1])
    # A weight of 0 switches a term off.
    settings = {"dpo_weight": 0.0, "kl_weight": 0.0}
    off = run(token_rewards.rto_rewards, np.zeros(2), *np.ones((4, 2, 3)), **settings)
    np.testing.assert_array_equal(off, 0.0)
