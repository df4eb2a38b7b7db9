"""CPL: by hand, the shift that the bias rewards, DPO as its one-step case, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses, tabular

MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
LOGP = np.array([[-1.0, -2.0, -5.0], [-1.0, -99.0, -5.0], [-1.0, -1.0, -1.0]])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_values_by_hand():
    pair = np.array([-0.8]), np.array([-0.6])
    np.testing.assert_allclose(losses.cpl(*pair, lambda_=1.0), 0.798139, atol=1e-6)
    np.testing.assert_allclose(losses.cpl(*pair), 0.974077, atol=1e-6)


def test_one_step_with_a_reference_is_dpo():
    w, r = np.array([[0.7], [-2.0]]), np.array([[0.1], [1.0]])
    scores = [losses.segment_score(x, np.ones_like(x), alpha=0.3) for x in (w, r)]
    dpo = losses.dpo(w[:, 0], r[:, 0], beta=0.3)
    np.testing.assert_allclose(losses.cpl(*scores, lambda_=1.0), dpo, rtol=1e-12)


def test_edges():
    ends = jnp.array([-jnp.inf, jnp.nan])
    slope = jax.grad(lambda x: losses.cpl(x, jnp.zeros(2)).sum())(ends)
    np.testing.assert_array_equal(slope, 0.0)
    np.testing.assert_allclose(losses.segment_score(ends[None], jnp.ones((1, 2))), -2.0)


def test_bad_arguments():
    zero = jnp.zeros(2)
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="lambda_"):
            losses.cpl(zero, zero, lambda_=value)
        with pytest.raises(ValueError, match="discount"):
            losses.segment_score(LOGP, MASK, discount=value)
    with pytest.raises(ValueError, match="rejected_score"):
        losses.cpl(zero, jnp.zeros(3))
    with pytest.raises(ValueError, match="chosen_score"):
        losses.cpl(zero[None], zero[None])
    with pytest.raises(ValueError, match="alpha"):
        losses.segment_score(LOGP, MASK, alpha=0.0)
    with pytest.raises(ValueError, match="mask"):
        losses.segment_score(LOGP, MASK[:, :2])
    with pytest.raises(ValueError, match="logp"):
        losses.segment_score(zero, zero)


def test_soft_labels():
    w, r = jnp.array([-0.8, 0.3]), jnp.array([-0.6, 1.0])
    both = losses.cpl(w, r), losses.cpl(r, w)
    for share in (0.0, 0.25, 0.5, 1.0):
        found = losses.cpl(w, r, label_smoothing=share)
        np.testing.assert_allclose(found, (1 - share) * both[0] + share * both[1], rtol=1e-6)
    each = losses.cpl(w, r, label_smoothing=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(each, [both[0][0], both[1][1]], rtol=1e-6)
    slope = jax.grad(lambda s: losses.cpl(w, r, label_smoothing=s).sum())(jnp.array([0.2, 0.3]))
    np.testing.assert_array_equal(slope, 0.0)


def test_ranked_segments_by_hand():
    scores, labels = jnp.array([0.1, -0.2, 0.3]), jnp.array([2.0, 1.0, 3.0])
    found = losses.cpl_ranked(scores, labels, lambda_=1.0)
    np.testing.assert_allclose(found, 0.542190, atol=1e-6)
    np.testing.assert_allclose(losses.cpl_ranked(scores, labels), 0.562365, atol=1e-6)
    pair = losses.cpl_ranked(scores[:2], labels[:2])
    np.testing.assert_allclose(pair, losses.cpl(scores[:1], scores[1:2])[0], rtol=1e-6)


def test_bad_arguments_of_labels_and_ranks():
    zero = jnp.zeros(3)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="label_smoothing"):
            losses.cpl(zero, zero, label_smoothing=share)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.cpl(zero, zero, label_smoothing=jnp.zeros(2))
    for bias in (-0.1, 1.1):
        with pytest.raises(ValueError, match="lambda_"):
            losses.cpl_ranked(zero, zero, lambda_=bias)
    with pytest.raises(ValueError, match="labels"):
        losses.cpl_ranked(zero, zero[:2])
    with pytest.raises(ValueError, match="valid"):
        losses.cpl_ranked(zero, zero, valid=jnp.ones(2, bool))


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_bias_rewards_a_shift_of_both_segments(lambda_):
    logp, mask = np.random.default_rng(0).normal(size=(2, 1, 5)), np.ones((1, 5))

    def logit(c):
        pair = (losses.segment_score(x + c, mask, alpha=0.3) for x in logp)
        return -np.log(np.expm1(losses.cpl(*pair, lambda_=lambda_)))

    np.testing.assert_allclose(logit(0.7) - logit(0.0), (1 - lambda_) * 0.3 * 0.7 * 5, atol=1e-9)


def test_the_optimal_policy_is_stationary_for_exact_preferences():
    """All pairs of two-step segments, weighted by the regret model of soft values."""
    rng, alpha = np.random.default_rng(0), 0.5
    values = tabular.soft_value_iteration(
        rng.dirichlet(np.ones(3), size=(3, 2)), rng.normal(size=(3, 2)), discount=0.9, alpha=alpha
    )
    steps = np.array(np.meshgrid(*[range(6)] * 2)).reshape(2, -1).T  # (s, a) as one index
    a, b = (x.ravel() for x in np.indices((len(steps),) * 2))
    ones = np.ones((len(a), 2))
    flat = values.advantages.ravel()
    p = tabular.segment_preference(flat[steps[a]], flat[steps[b]], ones, ones)

    @jax.jit
    @jax.grad
    def slope(z):
        logp = jax.nn.log_softmax(z).ravel()
        score = losses.segment_score(logp[steps], np.ones((len(steps), 2)), alpha=alpha)
        return p @ losses.cpl(score[a], score[b], lambda_=1.0)

    np.testing.assert_allclose(slope(values.advantages / alpha), 0.0, atol=1e-9)
    assert np.abs(slope(values.advantages)).max() > 1e-2


def test_without_the_other_segment_it_is_weighted_imitation():
    logp, mask = jnp.array([[-1.0, -2.0, -0.5]]), np.ones((1, 3))
    other = jnp.array([0.3])

    def total(x):
        score = losses.segment_score(x, mask, alpha=0.2)
        return losses.cpl(score, other, lambda_=0.0).sum()

    slope = jax.grad(total)(logp)
    np.testing.assert_allclose(slope, -0.2 * jax.nn.sigmoid(0.2 * 3.5) * mask, rtol=1e-12)
