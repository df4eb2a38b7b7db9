"""DisCO: what GRPO weighs, the robust gap and its limits, the bounded divergence, edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from one_group import one_group

from polgrad import advantages, losses, masking

# Arrays of rank 1 are one group.
one_disco_b = one_group(losses.disco_b)
one_disco = one_group(losses.disco)
one_group_relative = one_group(advantages.group_relative)
one_success_rate = one_group(advantages.success_rate)
one_dynamic_sampling_filter = one_group(advantages.dynamic_sampling_filter)

RNG = np.random.default_rng(5)
LOGP = RNG.normal(-2, 0.5, (4, 3)).astype(np.float32)
BEHAVIOR = LOGP + RNG.normal(0, 0.3, (4, 3)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], np.float32)
SCORES = RNG.normal(-1, 1, (2, 6)).astype(np.float32)
REWARDS = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]], np.float32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("scale", "weight"), [("group", 3**0.5 / 4), ("none", 3 / 16)])
def test_what_a_group_relative_advantage_weighs(scale, weight, x64):
    rewards, scores = jnp.array([1.0, 1, 0, 0, 0, 0, 0, 0]), jnp.array(RNG.normal(size=8))
    gap = -run(one_disco_b, scores, rewards)
    advantage = one_group_relative(rewards, scale=scale, ddof=0, epsilon=0.0)
    assert float(jnp.mean(advantage * scores)) == pytest.approx(weight * float(gap), abs=1e-9)
    rate = one_success_rate(rewards)
    assert float(advantages.difficulty_weight(rate, scale=scale)) == pytest.approx(weight, abs=1e-9)
    if scale == "group":
        bessel = one_group_relative(rewards, ddof=1, epsilon=0.0)
        expected = np.sqrt(7 / 8) * weight * float(gap)
        assert float(jnp.mean(bessel * scores)) == pytest.approx(expected, abs=1e-9)


def test_scores_by_hand():
    by_hand = [LOGP[0].mean(), LOGP[1, 0], LOGP[2, 1:].mean(), 0.0]
    np.testing.assert_allclose(run(losses.sequence_score, LOGP, BEHAVIOR, MASK), by_hand, rtol=1e-6)
    ratio = np.exp(LOGP - BEHAVIOR)
    by_hand = [ratio[0].mean(), ratio[1, 0], ratio[2, 1:].mean(), 0.0]
    found = run(losses.sequence_score, LOGP, BEHAVIOR, MASK, kind="l_ratio")
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    ("tau", "value", "weights"),
    [
        (10.0, -1.2219, (0.537, 0.463)),
        (1.0, -0.9917, (0.818, 0.182)),
        (0.1, -0.5693, (1.0, 0.0)),
    ],
)
def test_the_robust_gap_by_hand(tau, value, weights):
    scores, rewards = jnp.array([-1.0, -0.5, -2.0]), jnp.array([1.0, 0.0, 0.0])
    loss, gradient = value_and_grad(lambda s: one_disco(s, rewards, tau=tau))(scores)
    assert float(loss) - 1.0 == pytest.approx(value, abs=1e-4)
    np.testing.assert_allclose(gradient, [-1.0, *weights], atol=5e-4)


@pytest.mark.parametrize("surrogate", ["identity", "logistic", "hinge", "squared_hinge"])
def test_the_pairwise_gap_is_the_mean_over_pairs(surrogate):
    l = {  # noqa: E741
        "identity": lambda x: x,
        "logistic": lambda x: -np.log1p(np.exp(-x)),
        "hinge": lambda x: -max(1 - x, 0.0),
        "squared_hinge": lambda x: -(max(1 - x, 0.0) ** 2),
    }[surrogate]
    expected = []
    for scores, rewards in zip(SCORES.astype(float), REWARDS):
        pairs = itertools.product(scores[rewards == 1], scores[rewards == 0])
        expected.append(-np.mean([l(a - b) for a, b in pairs]))
    loss = run(one_disco_b, SCORES, REWARDS, surrogate=surrogate)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_limits_of_the_temperature(x64):
    scores = jnp.asarray(SCORES, jnp.float64)
    plain = run(one_disco_b, scores, REWARDS)
    np.testing.assert_allclose(run(one_disco, scores, REWARDS, tau=1e6), plain, atol=1e-5)
    # The gradients agree too, and in float32, where the log of a sum of exps would not.
    single = run(one_disco, SCORES, REWARDS, tau=1e6)
    np.testing.assert_allclose(single, plain, atol=1e-5)
    slopes = [
        grad(lambda s: one_disco(s, REWARDS, tau=1e6).sum())(scores),
        grad(lambda s: one_disco_b(s, REWARDS).sum())(scores),
    ]
    np.testing.assert_allclose(*slopes, atol=1e-5)
    hardest = [max(s[r == 0]) - s[r == 1].mean() for s, r in zip(SCORES, REWARDS)]
    np.testing.assert_allclose(run(one_disco, scores, REWARDS, tau=1e-3), hardest, atol=5e-3)


@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0])
def test_one_wrong_answer_leaves_the_temperature_no_say(tau):
    rewards = np.array([1, 1, 0, 1, 1, 1], np.float32)
    np.testing.assert_allclose(
        run(one_disco, SCORES[0], rewards, tau=tau),
        run(one_disco_b, SCORES[0], rewards),
        rtol=1e-5,
    )


def test_on_policy_both_scores_have_the_same_gradient():
    rewards = jnp.array([1.0, 0.0, 0.0, 1.0])

    def loss(logp, kind):
        score = losses.sequence_score(logp, jax.lax.stop_gradient(logp), MASK, kind=kind)
        return one_disco_b(score, rewards, valid=MASK.any(1))

    slopes = [grad(lambda x: loss(x, kind))(LOGP) for kind in ("log_l", "l_ratio")]  # noqa: B023
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    assert np.any(slopes[0] != 0)


def test_a_common_shift_of_the_scores_changes_nothing():
    for function in (one_disco, one_disco_b):
        both = run(function, SCORES, REWARDS), run(function, SCORES + 3.0, REWARDS)
        np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_the_hinge_has_no_slope_below_the_bound(exact):
    # kl = 3 delta in the code's convention: a slope of 2 beta delta.
    penalty = lambda kl: losses.kl_hinge(kl, beta=1e3, delta=1e-4, exact_square=exact)  # noqa: E731
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(penalty)))(jnp.array([-1.0, 1e-4, 3e-4]))
    np.testing.assert_array_equal(value[:2], 0.0)
    np.testing.assert_array_equal(slope[:2], 0.0)
    assert float(slope[2]) == pytest.approx((2 if exact else 1) * 2 * 1e3 * 1e-4, rel=1e-4)
    assert float(value[2]) == pytest.approx((1 if exact else 0.5) * 1e3 * 4e-8, rel=1e-3)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_divergence_is_unbiased_in_value_and_gradient(kind, x64):
    behavior, logits = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.3, -0.2, 0.5])

    def sampled(z):
        estimate = losses.behavior_kl(jax.nn.log_softmax(z), jnp.log(behavior), kind=kind)
        return behavior @ estimate

    def exact(z):
        return behavior @ (jnp.log(behavior) - jax.nn.log_softmax(z))

    for x, y in zip(value_and_grad(sampled)(logits), value_and_grad(exact)(logits)):
        np.testing.assert_allclose(x, y, atol=1e-12)
    if kind == "k3":
        assert np.all(np.asarray(run(losses.behavior_kl, LOGP, BEHAVIOR, kind="k3")) >= 0)


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        (np.ones(6), None),
        (np.zeros(6), None),
        (np.full(6, np.nan), None),
        (np.array([1, 0.5, 0.5, -1, 2, np.nan]), None),  # neither 0 nor 1: in no class
        (np.array([1, 0, 0, 0, 0, 0]), np.array([0, 1, 1, 1, 1, 1])),
    ],
)
def test_a_question_without_both_classes_contributes_nothing(rewards, valid):
    for function in (one_disco, one_disco_b):
        value, slope = value_and_grad(lambda s: function(s, rewards, valid=valid))(SCORES[0])  # noqa: B023
        assert value == 0.0
        np.testing.assert_array_equal(slope, 0.0)


def test_other_answers_change_nothing():
    scores = np.append(SCORES[0], [np.inf, -np.inf, 7.0]).astype(np.float32)
    rewards = np.append(REWARDS[0], [0.0, 1.0, 0.5]).astype(np.float32)
    for function in (one_disco, one_disco_b):
        value, slope = value_and_grad(lambda s: function(s, rewards))(scores)  # noqa: B023
        assert float(value) == pytest.approx(float(run(function, SCORES[0], REWARDS[0])), rel=1e-6)
        assert np.all(np.isfinite(slope)) and np.all(slope[6:] == 0)


def test_the_mean_over_questions_is_chosen_by_the_mask():
    rewards = np.concatenate([REWARDS, np.ones((2, 6), np.float32)])
    loss = run(one_disco, np.concatenate([SCORES, SCORES]), rewards)
    everything = masking.reduce(loss, np.ones(4), mode="sequence")
    mixed = masking.reduce(loss, one_dynamic_sampling_filter(rewards), mode="sequence")
    assert float(mixed) == pytest.approx(2 * float(everything), rel=1e-6)


def test_bad_arguments_are_named():
    for call, message in [
        (lambda: one_disco(SCORES, REWARDS, tau=0.0), "tau is 0.0"),
        (lambda: one_disco(SCORES, REWARDS[0]), r"rewards has shape \[6\]"),
        (lambda: one_disco_b(SCORES, REWARDS, surrogate="linear"), "surrogate is 'linear'"),
        (lambda: losses.sequence_score(LOGP, BEHAVIOR, MASK, kind="l"), "kind is 'l'"),
        (lambda: losses.behavior_kl(LOGP, BEHAVIOR, kind="k2"), "kind is 'k2'"),
        (lambda: losses.kl_hinge(jnp.zeros(()), beta=-1.0), "beta is -1"),
        (lambda: one_disco(jnp.zeros(()), jnp.zeros(())), "scores has shape"),
        (lambda: advantages.difficulty_weight(0.5, scale="batch"), "scale is 'batch'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_defaults(x64):
    scores = jnp.asarray(SCORES)
    np.testing.assert_array_equal(one_disco(scores, REWARDS), one_disco(scores, REWARDS, tau=10.0))
    kl = jnp.array([0.5, 5e-5, 1e-4, 2e-4])
    np.testing.assert_allclose(
        losses.kl_hinge(kl), [500 * 0.4999**2, 0.0, 0.0, 500 * 1e-8], rtol=1e-9
    )
    np.testing.assert_allclose(losses.kl_hinge(kl, beta=0.5, delta=0.0), 0.25 * kl**2, rtol=1e-12)
    slope = jax.grad(lambda x: losses.kl_hinge(x).sum())(kl)
    np.testing.assert_allclose(slope, [1000 * 0.4999, 0.0, 0.0, 0.1], rtol=1e-9)


def test_a_token_that_the_policy_excludes_counts_zero():
    logp = np.array([[-np.inf, -2.0]])
    found = losses.sequence_score(logp, logp, np.ones((1, 2)))
    np.testing.assert_allclose(found, -1.0)
    slope = jax.grad(lambda x: losses.sequence_score(x, logp, jnp.ones((1, 2))).sum())(
        jnp.asarray(logp)
    )
    np.testing.assert_allclose(slope, [[0.0, 0.5]])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("right", [True, False])
def test_an_answer_left_out_is_not_there(right):
    scores, rewards = jnp.asarray(SCORES), jnp.asarray(REWARDS)
    out = int(np.flatnonzero(REWARDS[0] == right)[0])
    valid = jnp.ones_like(rewards, bool).at[0, out].set(False)
    kept = np.arange(6) != out
    for loss in (one_disco, one_disco_b):
        found = loss(scores, rewards, valid=valid)
        np.testing.assert_allclose(found[0], loss(scores[0, kept], rewards[0, kept]), rtol=1e-5)
        np.testing.assert_allclose(found[1], loss(scores[1], rewards[1]), rtol=1e-6)


def test_the_hinge_of_disco_b_is_flat_at_its_end(x64):
    rewards = jnp.array([1.0, 0.0])
    slope = jax.grad(lambda s: one_disco_b(s, rewards, surrogate="hinge"))
    np.testing.assert_array_equal(slope(jnp.array([1.0, 0.0])), 0.0)
    np.testing.assert_array_equal(slope(jnp.array([0.9, 0.0])), [-1.0, 1.0])
