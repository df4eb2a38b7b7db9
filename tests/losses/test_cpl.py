"""CPL: by hand, the shift that the bias rewards, DPO as its one-step case, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses

MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
LOGP = np.array([[-1.0, -2.0, -5.0], [-1.0, -99.0, -5.0], [-1.0, -1.0, -1.0]])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_scores_by_hand():
    np.testing.assert_allclose(losses.segment_score(LOGP, MASK), [-0.8, -0.6, 0.0], rtol=1e-12)
    score = losses.segment_score(LOGP, MASK, alpha=1.0, discount=0.5)
    np.testing.assert_allclose(score, [-3.25, -2.25, 0.0], rtol=1e-12)


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
