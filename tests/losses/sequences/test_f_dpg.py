"""f-DPG: expected gradients by enumeration, fixed points, reductions, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import divergences
from polgrad.losses.inputs import f_dpg_pseudo_reward
from polgrad.losses.sequences import f_dpg

TARGET = (0.4, 0.3, 0.15, 0.1, 0.05)
LOGITS = (0.3, -0.2, 0.5, 0.1, -0.4)
BEHAVIOR = (0.1, 0.1, 0.2, 0.25, 0.35)
DIVERGENCES = {
    d.name: d
    for d in (
        divergences.forward_kl,
        divergences.reverse_kl,
        divergences.total_variation,
        divergences.jensen_shannon,
        divergences.chi_squared,
        divergences.reverse_chi_squared,
        divergences.squared_hellinger,
        *(divergences.alpha(a) for a in (-1.0, 0.0, 0.5, 1.0, 2.0)),
    )
}
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=list(DIVERGENCES))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def expected_gradient(logits, log_target, divergence, behavior=None, **kwargs):
    """Gradient of the loss averaged over all outcomes with their sampling probabilities."""
    probabilities = jax.nn.softmax(logits) if behavior is None else behavior
    behavior_logp = None if behavior is None else jnp.log(behavior)

    def mean_loss(z):
        losses = f_dpg(
            jax.nn.log_softmax(z),
            log_target,
            divergence=divergence,
            behavior_logp=behavior_logp,
            **kwargs,
        )
        return jax.lax.stop_gradient(probabilities) @ losses

    return jax.grad(mean_loss)(logits)


def exact_gradient(logits, log_target, divergence):
    value = lambda z: divergences.f_divergence(divergence, jax.nn.log_softmax(z), log_target)  # noqa: E731
    return jax.grad(value)(logits)


@pytest.mark.sampled(12)
@each_divergence
@pytest.mark.parametrize("behavior", [None, BEHAVIOR], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_expected_gradient_is_that_of_the_divergence(divergence, behavior, baseline, x64):
    logits, log_target = jnp.array(LOGITS), jnp.log(jnp.array(TARGET))
    behavior = None if behavior is None else jnp.array(behavior)
    gradient = expected_gradient(logits, log_target, divergence, behavior, baseline=baseline)
    np.testing.assert_allclose(gradient, exact_gradient(logits, log_target, divergence), atol=1e-10)


@pytest.mark.parametrize(
    "name, rewards",
    [
        ("forward_kl", [1.6, 0.4]),
        ("reverse_kl", [-0.529996, -1.916291]),
        ("total_variation", [0.5, -0.5]),
        ("jensen_shannon", [0.262364, -0.356675]),
        ("chi_squared", [1.56, -0.84]),
        ("reverse_chi_squared", [0.75, -3.0]),
    ],
)
def test_pseudo_rewards_on_two_outcomes(name, rewards, x64):
    logp, log_target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.8, 0.2]))
    divergence = getattr(divergences, name)
    np.testing.assert_allclose(
        f_dpg_pseudo_reward(logp, log_target, divergence=divergence), rewards, atol=1e-6
    )
    # The loss is minus (reward - baseline) times logp.
    np.testing.assert_allclose(
        f_dpg(logp, log_target, divergence=divergence, baseline=0.25),
        -(np.array(rewards) - 0.25) * np.log(0.5),
        atol=1e-6,
    )


@each_divergence
def test_the_target_is_a_fixed_point(divergence, x64):
    logits = jnp.array(LOGITS)
    gradient = expected_gradient(logits, jax.nn.log_softmax(logits), divergence)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_reverse_kl_to_a_tilt_is_kl_regularised_policy_gradient(x64):
    reference, beta = jnp.array([0.3, 0.3, 0.2, 0.1, 0.1]), 0.5
    rewards, logits = jnp.array([1.0, 0.0, -1.0, 0.5, 2.0]), jnp.array(LOGITS)
    scores = jnp.log(reference) + rewards / beta
    log_z = jax.nn.logsumexp(scores)
    np.testing.assert_allclose(beta * log_z, 1.056645, atol=1e-6)

    def regularised(z):
        return jax.nn.softmax(z) @ rewards - beta * divergences.categorical_kl(
            z, jnp.log(reference)
        )

    gradient = expected_gradient(logits, scores - log_z, divergences.reverse_kl)
    np.testing.assert_allclose(-beta * gradient, jax.grad(regularised)(logits), atol=1e-10)
    gap = regularised(logits) + beta * divergences.categorical_kl(logits, scores)
    np.testing.assert_allclose(gap, beta * log_z, atol=1e-12)


def test_forward_kl_from_the_target_itself_is_maximum_likelihood(x64):
    # Samples of the target: weight policy / target times reward target / policy is 1.
    logits, target = jnp.array(LOGITS), jnp.array(TARGET)
    losses = f_dpg(
        jax.nn.log_softmax(logits),
        jnp.log(target),
        divergence=divergences.forward_kl,
        behavior_logp=jnp.log(target),
    )
    np.testing.assert_allclose(losses, -jax.nn.log_softmax(logits), rtol=1e-12)


def test_gradient_reaches_the_policy_alone():
    arguments = jnp.log(jnp.array([[0.5, 0.5], [0.8, 0.2], [0.3, 0.7]]))

    def loss(logp, log_target, behavior_logp, baseline):
        return f_dpg(
            logp,
            log_target,
            divergence=divergences.jensen_shannon,
            behavior_logp=behavior_logp,
            baseline=baseline,
        ).sum()

    policy, *others = jax.grad(loss, argnums=(0, 1, 2, 3))(*arguments, jnp.zeros(2))
    weight = np.exp(arguments[0] - arguments[2])
    reward = f_dpg_pseudo_reward(*arguments[:2], divergence=divergences.jensen_shannon)
    np.testing.assert_allclose(policy, -weight * reward, rtol=1e-6)
    for gradient in others:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.sampled(4)
@each_divergence
def test_edges_are_finite(divergence):
    inf = jnp.inf
    logp = jnp.array([-1.0, -1.0, -1.0, -inf, -inf, 0.0, -900.0, -1.0])
    log_target = jnp.array([-inf, inf, jnp.nan, -inf, -1.0, 0.0, 0.0, -900.0])
    behavior_logp = jnp.array([-1.0, -1.0, -1.0, -inf, -1.0, -inf, -1.0, -900.0])

    def losses(x):
        return f_dpg(x, log_target, divergence=divergence, behavior_logp=behavior_logp)

    assert np.all(np.isfinite(losses(logp)))
    gradient = jax.grad(lambda x: losses(x).sum())(logp)
    assert np.all(np.isfinite(gradient))
    # Unknown normalisers and impossible samples are skipped.
    np.testing.assert_array_equal(losses(logp)[jnp.array([1, 2, 3, 4])], 0.0)
    np.testing.assert_array_equal(gradient[jnp.array([1, 2, 3, 4])], 0.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="log_target"):
        f_dpg(jnp.zeros(3), jnp.zeros(2), divergence=divergences.reverse_kl)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_jit_vmap_and_dtype(dtype):
    logp = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (3, 5))).astype(dtype)
    log_target = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (3, 5))).astype(dtype)
    loss = lambda a, b: f_dpg(a, b, divergence=divergences.jensen_shannon, behavior_logp=a - 0.1)  # noqa: E731
    plain = jnp.stack([loss(a, b) for a, b in zip(logp, log_target)])
    mapped = jax.jit(jax.vmap(loss))(logp, log_target)
    np.testing.assert_allclose(mapped, plain, rtol=2e-2, atol=1e-3)
    reference = jnp.stack(
        [loss(a, b) for a, b in zip(logp.astype(jnp.float32), log_target.astype(jnp.float32))]
    )
    np.testing.assert_allclose(plain.astype(jnp.float32), reference, rtol=3e-2, atol=2e-2)


def test_the_log_ratio_is_bounded_at_twenty_nats_by_default(x64):
    logp, log_target = jnp.array([-1.0, -1.0, -1.0]), jnp.array([-101.0, 99.0, -2.0])
    kl = divergences.reverse_kl
    found = f_dpg_pseudo_reward(logp, log_target, divergence=kl)
    np.testing.assert_allclose(found, [-21.0, 19.0, -2.0], rtol=1e-12)
    loss = f_dpg(logp, log_target, divergence=kl)
    np.testing.assert_allclose(loss, found, rtol=1e-12)
    narrow = f_dpg_pseudo_reward(logp, log_target, divergence=kl, log_ratio_clip=0.5)
    np.testing.assert_allclose(narrow, [-1.5, -0.5, -1.5], rtol=1e-12)
    excluded = jnp.array([-jnp.inf])
    nothing = f_dpg_pseudo_reward(excluded, excluded, divergence=kl)
    np.testing.assert_array_equal(nothing, -1.0)


def test_a_sample_without_a_normaliser_is_skipped(x64):
    logp = jnp.array([-1.0, -2.0, -jnp.inf, -3.0])
    log_target = jnp.array([jnp.nan, jnp.inf, -1.0, -1.0])
    loss = lambda x: f_dpg(x, log_target, divergence=divergences.reverse_kl)  # noqa: E731
    np.testing.assert_array_equal(loss(logp)[:3], 0.0)
    slope = jax.grad(lambda x: loss(x).sum())(logp)
    np.testing.assert_array_equal(slope[:3], 0.0)
    assert slope[3] != 0.0
