"""The contrast that INPO regresses."""

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import losses
from tests.support.compiled import grad

inpo = jax.jit(losses.inpo)  # inverse_step is traced, as under a schedule
contrast_of = jax.jit(losses.inpo_contrast)

TAU, INVERSE_STEP = 0.2, 0.7
RNG = np.random.default_rng(3)
REFERENCE, PREVIOUS = RNG.dirichlet(np.ones(4), size=2)
FIRST, SECOND = (x.ravel() for x in np.indices((4, 4)))


def test_gradient_reaches_the_policy_alone():
    logs = list(jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32))

    def total(*x):
        contrast = losses.inpo_contrast(*x, inverse_step=0.5, tau=0.2)
        return losses.inpo(contrast, inverse_step=0.5).sum()

    chosen, rejected, *others = grad(total, argnums=range(6))(*logs)
    h = contrast_of(*logs, inverse_step=0.5, tau=0.2)
    np.testing.assert_allclose(chosen, 2.0 * (h - 1.0), rtol=1e-5)
    np.testing.assert_allclose(rejected, -2.0 * (h - 1.0), rtol=1e-5)
    for gradient in others:
        np.testing.assert_array_equal(gradient, 0.0)
    third, one = jnp.full(3, 0.3), jnp.ones(3)
    to_label = grad(lambda p: losses.inpo(one, p, inverse_step=0.5).sum())(third)
    np.testing.assert_array_equal(to_label, 0.0)
    to_label = grad(lambda p: losses.sppo(one, p, eta=0.5).sum())(third)
    np.testing.assert_array_equal(to_label, 0.0)
