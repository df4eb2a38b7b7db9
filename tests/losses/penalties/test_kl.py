import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from enumeration import TabularPolicy, expected_gradient

from polgrad import divergences, losses
from polgrad.ratios import importance_ratio

POLICY = TabularPolicy(vocabulary=4, length=1)
LOGITS = np.array([[[0.5, -0.3, 0.1, 0.9]]])
REFERENCE = np.log([[0.1], [0.2], [0.3], [0.4]])  # of each of the four completions
TOWARDS_POLICY = [0.24127, -0.07736, -0.11643, -0.04748]  # gradient of KL(policy || reference)
TOWARDS_REFERENCE = [0.17690, -0.07558, -0.11439, 0.01308]  # gradient of KL(reference || policy)


def follows(penalty):
    """Expected gradient over samples of the policy, as a vector over the four actions."""
    with jax.enable_x64(True):
        loss = lambda logp, index: penalty(logp, jnp.asarray(REFERENCE)[index]).sum()  # noqa: E731
        return np.asarray(expected_gradient(POLICY, jnp.asarray(LOGITS), loss))[0, 0]


def exact(divergence):
    with jax.enable_x64(True):
        log_reference = jnp.asarray(REFERENCE[:, 0])
        return np.asarray(grad(lambda z: divergence(z, log_reference))(jnp.asarray(LOGITS[0, 0])))


@pytest.mark.parametrize("value", ["k1", "k2", "k3"])
def test_k2_follows_the_kl_to_the_reference_whatever_value_is_shown(value):
    gradient = follows(lambda x, r: losses.kl_penalty(x, r, value=value, gradient="k2"))
    np.testing.assert_allclose(gradient, exact(divergences.categorical_kl), atol=1e-12)
    np.testing.assert_allclose(gradient, TOWARDS_POLICY, atol=1e-5)


def test_k3_follows_the_kl_in_the_other_direction():
    gradient = follows(lambda x, r: losses.kl_penalty(x, r, gradient="k3"))
    other = exact(lambda z, r: divergences.categorical_kl(r, z))
    np.testing.assert_allclose(gradient, other, atol=1e-12)
    np.testing.assert_allclose(gradient, TOWARDS_REFERENCE, atol=1e-5)


def test_k3_times_the_live_ratio_follows_the_kl_to_the_reference():
    gradient = follows(lambda x, r: importance_ratio(x, x) * losses.kl_penalty(x, r, gradient="k3"))
    np.testing.assert_allclose(gradient, exact(divergences.categorical_kl), atol=1e-12)


def test_k1_in_the_reward_follows_the_kl_to_the_reference():
    def in_reward(x, r):
        return -losses.reinforce(x, divergences.kl_estimate(x, r, kind="k1"))

    # reinforce descends -A log pi, so minus it climbs: the gradient is that of +KL.
    np.testing.assert_allclose(follows(in_reward), exact(divergences.categorical_kl), atol=1e-12)


@pytest.mark.parametrize("value", ["k1", "k2", "k3"])
def test_the_value_shown_is_the_estimator_asked_for(value):
    logp = jnp.array([[-1.0, -2.0, -0.5]])
    reference = jnp.array([[-1.5, -2.0, -0.1]])
    expected = divergences.kl_estimate(logp, reference, kind=value)
    for gradient in ("k2", "k3"):
        shown = run(losses.kl_penalty, logp, reference, value=value, gradient=gradient)
        np.testing.assert_allclose(shown, expected, rtol=1e-6)


def test_excluded_tokens_and_stopped_reference():
    logp = jnp.array([-np.inf, -1.0, -np.inf, -1.0])
    reference = jnp.array([-1.0, -np.inf, -np.inf, -1.0])
    total = lambda x, r: losses.kl_penalty(x, r).sum()  # noqa: E731
    for gradient in grad(total, argnums=(0, 1))(logp, reference):
        np.testing.assert_array_equal(gradient, 0.0)
    assert np.all(np.isfinite(run(losses.kl_penalty, logp, reference)))


def test_bad_arguments_are_named():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="gradient is 'k1', whose expectation is 0"):
        losses.kl_penalty(x, x, gradient="k1")
    with pytest.raises(ValueError, match="gradient is 'k4', expected one of 'k2', 'k3'"):
        losses.kl_penalty(x, x, gradient="k4")
    with pytest.raises(ValueError, match="value is 'kl'"):
        losses.kl_penalty(x, x, value="kl")
    with pytest.raises(ValueError, match=r"reference_logp has shape \[2\]"):
        losses.kl_penalty(x, jnp.zeros(2))


# --- samples of an older policy ------------------------------------------------------------------

OLDER = np.array([[[-0.4, 0.6, 0.0, 0.3]]])


def follows_off_policy(penalty):
    """Expected gradient over samples of an older policy."""
    with jax.enable_x64(True):
        older = POLICY.token_logp(jnp.asarray(OLDER))
        loss = lambda logp, index: penalty(  # noqa: E731
            logp, jnp.asarray(REFERENCE)[index], older[index]
        ).sum()
        logits = jnp.asarray(LOGITS)
        found = expected_gradient(POLICY, logits, loss, behavior_logits=jnp.asarray(OLDER))
        return np.asarray(found)[0, 0]


@pytest.mark.parametrize(
    ("gradient", "expected"), [("k2", TOWARDS_POLICY), ("k3", TOWARDS_REFERENCE)]
)
def test_with_the_behaviour_the_gradient_is_right_off_policy(gradient, expected):
    found = follows_off_policy(
        lambda x, r, b: losses.kl_penalty(x, r, gradient=gradient, behavior_logp=b)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    without = follows_off_policy(lambda x, r, b: losses.kl_penalty(x, r, gradient=gradient))
    assert np.abs(without - expected).max() > 0.02


def test_the_ratio_times_k2_gradient_is_that_of_ratio_times_k3():
    """Sample by sample, not only in expectation: what is called the bias-corrected k3."""
    logp, reference = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.5, -1.0, -0.5])
    behavior = jnp.array([-1.2, -1.0, -0.1])

    def unbiased(x):
        ratio, difference = jnp.exp(x - behavior), reference - x
        return (ratio * (jnp.expm1(difference) - difference)).sum()

    ours = lambda x: losses.kl_penalty(x, reference, behavior_logp=behavior).sum()  # noqa: E731
    np.testing.assert_allclose(ours(logp), unbiased(logp), rtol=1e-6)
    np.testing.assert_allclose(grad(ours)(logp), grad(unbiased)(logp), atol=1e-6)


def test_the_behaviour_is_stopped_and_checked():
    total = lambda x, r, b: losses.kl_penalty(x, r, behavior_logp=b).sum()  # noqa: E731
    x = jnp.array([-1.0, -np.inf, -1.0])
    gradients = grad(total, argnums=(0, 1, 2))(x, x - 0.5, jnp.array([-0.5, -1.0, -np.inf]))
    assert np.all(np.isfinite(gradients[0]))
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, 0.0)
    with pytest.raises(ValueError, match="behavior_logp"):
        losses.kl_penalty(x, x, behavior_logp=x[:2])


@pytest.mark.parametrize("gradient", ["k2", "k3"])
def test_the_gradient_of_every_sample(gradient):
    """An error of a multiple of grad logp would not show in an expectation."""
    logp, reference = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.5, -1.0, -0.5])
    x = np.asarray(reference - logp)
    expected = -x if gradient == "k2" else 1 - np.exp(x)
    slope = grad(lambda z: losses.kl_penalty(z, reference, gradient=gradient).sum())(logp)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
