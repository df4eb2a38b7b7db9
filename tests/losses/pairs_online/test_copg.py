"""CoPG of two answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad

from polgrad import advantages
from polgrad.losses.pairs_online import copg

REWARDS = np.array([2.5, 2.0, 1.0])
BETA = 0.5
FIRST, SECOND = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])
UNIFORM = np.full(3, -math.log(3.0))
# Log ratios and rewards of five samples of one prompt.
RATIOS, SCORES = np.array([0.3, -1.2, 0.8, 0.1, -0.4]), np.array([1.0, 0.2, -0.5, 0.7, 0.7])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_the_three_forms_have_one_gradient(x64):
    def regression(a, b, first, second):
        gap = first - second
        return jnp.sum((BETA * (a - b) - gap) ** 2 - gap**2) / (2 * BETA)

    def policy_gradient(a, b, first, second):
        gap = advantages.regularized_rewards(first, a, beta=BETA)
        gap -= advantages.regularized_rewards(second, b, beta=BETA)
        return -jnp.sum(gap * (a - b))

    arguments = RATIOS[:3], RATIOS[2:], SCORES[:3], SCORES[2:]
    loss = lambda *x: jnp.sum(copg(*x, beta=BETA))  # noqa: E731
    slopes = {
        form: grad(form, argnums=(0, 1))(*arguments) for form in (loss, regression, policy_gradient)
    }
    np.testing.assert_allclose(jax.jit(loss)(*arguments), regression(*arguments), atol=1e-12)
    for form in (regression, policy_gradient):
        np.testing.assert_allclose(slopes[form], slopes[loss], atol=1e-12)


def policy_gradient(baseline):
    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        weight = advantages.regularized_rewards(REWARDS, logp - UNIFORM, beta=BETA)
        return -(FIRST + SECOND) @ (jax.lax.stop_gradient(weight - baseline(logp)) * logp)

    return loss


def test_gradient_reaches_the_log_ratios_alone(x64):
    gradients = grad(lambda *x: jnp.sum(copg(*x, beta=BETA)), argnums=(0, 1, 2, 3))(
        RATIOS[:3], RATIOS[2:], SCORES[:3], SCORES[2:]
    )
    assert np.all(gradients[0] != 0) and np.all(gradients[1] == -gradients[0])
    for gradient in gradients[2:]:
        np.testing.assert_array_equal(gradient, 0.0)
