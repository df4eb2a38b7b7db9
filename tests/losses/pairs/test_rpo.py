"""RPO: DPO beside imitation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


PAIR = np.array([1.0]), np.array([-0.5])


def test_rpo_by_hand_and_its_slope():
    logp = jnp.array([-10.0])
    np.testing.assert_allclose(losses.rpo(*PAIR, logp, beta=0.1), 0.625957, atol=1e-6)
    np.testing.assert_array_equal(
        losses.rpo(*PAIR, logp, adversary_weight=0.0), losses.dpo(*PAIR, beta=0.01)
    )
    loss = lambda x: losses.rpo(x + 11.0, PAIR[1], x, beta=0.1, adversary_weight=0.3).sum()  # noqa: E731
    sigma = 1 / (1 + math.exp(0.15))
    np.testing.assert_allclose(jax.grad(loss)(logp), -0.1 * (sigma + 0.3), rtol=1e-12)
    np.testing.assert_array_equal(
        losses.rpo(*PAIR, logp), losses.rpo(*PAIR, logp, beta=0.01, adversary_weight=0.005)
    )


def test_rpo_average_is_rpo_with_alpha_over_the_length():
    logp, lengths = jnp.array([-10.0]), jnp.array([5.0])
    average = losses.rpo_average(*PAIR, logp, lengths, beta=0.1, alpha=0.3 * 0.1 * 5)
    np.testing.assert_allclose(
        average, losses.rpo(*PAIR, logp, beta=0.1, adversary_weight=0.3), rtol=1e-12
    )
    np.testing.assert_allclose(
        losses.rpo_average(*PAIR, logp, lengths), math.log1p(math.exp(-0.75)) + 0.4, rtol=1e-9
    )
    empty = losses.rpo_average(*PAIR, 0 * logp, 0 * lengths)
    np.testing.assert_allclose(empty, losses.dpo(*PAIR, beta=0.5), rtol=1e-12)
