"""The entropy bonus: value, gradient, the coefficient is fixed."""

import jax
import jax.numpy as jnp
import numpy as np
from compiled import grad, run

from polgrad import distributions, losses

# --- in a loss ---------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, REFERENCE = RNG.normal(-2, 0.3, (3, 4, 3)).astype(np.float32)


def test_entropy_bonus_follows_the_entropy():
    logits = jnp.array([[0.5, -0.3, 0.1, 0.9]])
    bonus = lambda z, c: losses.entropy_bonus(  # noqa: E731
        distributions.entropy(z), coefficient=c
    ).sum()
    p = jax.nn.softmax(logits)
    entropy = -(p * jnp.log(p)).sum()
    np.testing.assert_allclose(bonus(logits, 0.3), -0.3 * entropy, rtol=1e-6)
    slope, to_coefficient = grad(bonus, argnums=(0, 1))(logits, 0.3)
    np.testing.assert_allclose(slope, 0.3 * p * (jnp.log(p) + entropy), atol=1e-6)
    assert to_coefficient == 0.0
    default = run(losses.entropy_bonus, jnp.ones(2, jnp.bfloat16))
    assert default.dtype == jnp.float32
    np.testing.assert_allclose(default, -0.001, rtol=1e-6)
    np.testing.assert_array_equal(run(losses.entropy_bonus, jnp.ones(2), coefficient=0.0), 0.0)
