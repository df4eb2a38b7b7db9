"""KL to the policy that drew the samples, and the hinge on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run, value_and_grad
from one_group import one_group

from polgrad import advantages, losses

# Arrays of rank 1 are one group.
one_disco_b = one_group(losses.disco_b)
one_disco = one_group(losses.disco)

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
