"""A teacher as a reward of tokens: hand numbers, gradients, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import advantages, divergences

STUDENT = np.array([[[0.5, -0.3, 0.1, 0.9]]])
TEACHER = np.log([[0.1], [0.2], [0.3], [0.4]])  # of each of the four completions

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, TEACHING = RNG.normal(-2, 0.5, (3, 3, 4)).astype(np.float32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- the numbers of the four arms ----------------------------------------------------------------


def test_values_of_the_estimators(x64):
    logp = jax.nn.log_softmax(jnp.asarray(STUDENT)[0, 0])
    kinds = {k: divergences.kl_estimate(logp, TEACHER[:, 0], kind=k) for k in ("k1", "k2", "k3")}
    mean = {k: float(jnp.exp(logp) @ v) for k, v in kinds.items()}
    assert mean == pytest.approx({"k1": 0.1471234, "k2": 0.1792343, "k3": 0.1471234}, abs=1e-7)
    ratio = advantages.teacher_log_ratio(logp, TEACHER[:, 0])
    np.testing.assert_allclose(jnp.exp(logp) @ ratio, -mean["k1"], rtol=1e-12)
    np.testing.assert_allclose(ratio, TEACHER[:, 0] - logp, rtol=1e-12)


# --- the loss ----------------------------------------------------------------------------------


def test_distillation_advantages_by_hand():
    x, teacher = jnp.full((1, 2), -1.0), jnp.array([[-0.5, -3.0]])
    found = run(advantages.distillation_advantages, jnp.array([[2.0]]), x, teacher)
    np.testing.assert_allclose(found, [[2.5, 0.0]])
    half = run(advantages.distillation_advantages, jnp.array([[2.0, 1.0]]), x, teacher, beta=0.5)
    np.testing.assert_allclose(half, [[2.25, 0.0]])
