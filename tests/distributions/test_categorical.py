"""Softmax, entropy and mixtures: numbers by hand, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import distributions

INF = np.inf


def test_log_prob_and_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 3.0
    logp = distributions.token_statistics(logits, jnp.array([1, 2]))[0]
    np.testing.assert_allclose(logp, np.log([0.25, 0.7]), rtol=1e-6)
    expected = [1.5 * np.log(2), -(0.1 * np.log(0.1) + 0.2 * np.log(0.2) + 0.7 * np.log(0.7))]
    np.testing.assert_allclose(distributions.entropy(logits), expected, rtol=1e-6)


def test_forbidden_tokens_have_no_mass_and_no_gradient():
    logits = jnp.array([1.0, -INF, 1.0, -INF])
    np.testing.assert_allclose(distributions.log_softmax(logits), [-np.log(2), -INF] * 2, rtol=1e-6)
    assert distributions.entropy(logits) == pytest.approx(np.log(2))
    for function in (
        distributions.entropy,
        lambda z: distributions.token_statistics(z, jnp.array(0))[0],
    ):
        gradient = jax.grad(function)(logits)
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[1::2] == 0)


def test_a_row_without_allowed_tokens_is_defined():
    logits = jnp.full((3,), -INF)
    assert np.all(distributions.log_softmax(logits) == -INF)
    assert distributions.entropy(logits) == 0
    assert np.all(jax.grad(distributions.entropy)(logits) == 0)


def test_an_excluded_token_has_log_probability_minus_infinity():
    logits = jnp.array([1.0, -INF, 0.0])
    logp, entropy = distributions.token_statistics(logits, jnp.array(1))
    assert logp == -INF and np.isfinite(entropy)


def test_a_row_with_a_nan_is_nan():
    logits = jnp.array([[0.0, np.nan, -INF], [0.0, 1.0, 2.0]])
    assert np.all(np.isnan(distributions.log_softmax(logits)) == [[True] * 3, [False] * 3])
    np.testing.assert_array_equal(np.isnan(distributions.entropy(logits)), [True, False])


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_it_is_the_log_softmax_of_jax_to_the_last_bit(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (4, 7))
    np.testing.assert_array_equal(distributions.log_softmax(logits), jax.nn.log_softmax(logits))


def test_bfloat16_is_reduced_in_float32_and_float64_stays():
    logits = jnp.linspace(-2, 2, 5, dtype=jnp.bfloat16)
    assert distributions.entropy(logits).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.linspace(-2.0, 2.0, 5, dtype=jnp.float64)
        gradient = jax.grad(lambda z: distributions.token_statistics(z, jnp.array(2))[0])(wide)
        np.testing.assert_allclose(gradient, np.eye(5)[2] - jax.nn.softmax(wide), atol=1e-15)


def _two_token_policies():
    """Logits after the empty prefix, after 0 and after 1; the reference is uniform."""
    return jnp.array([[0.4, -0.4], [0.3, -0.3], [-0.8, 0.8]])


def _sequences(logits):
    """Probabilities of 00, 01, 10, 11."""
    first, second = jax.nn.softmax(logits[0]), jax.nn.softmax(logits[1:])
    return (first[:, None] * second).reshape(-1)


def test_mixture_of_tokens_is_not_the_mixture_of_sequences():
    policy = _two_token_policies()
    reference = jnp.zeros_like(policy)
    mixed = distributions.geometric_mixture(policy, reference, reference_weight=0.5)
    expected = [0.343912, 0.254776, 0.124417, 0.276895]
    np.testing.assert_allclose(_sequences(mixed), expected, atol=1e-6)
    whole = distributions.geometric_mixture(
        jnp.log(_sequences(policy)), jnp.log(_sequences(reference)), reference_weight=0.5
    )
    expected = [0.351659, 0.260515, 0.120236, 0.267590]
    np.testing.assert_allclose(jax.nn.softmax(whole), expected, atol=1e-6)


def test_mixture_ends_and_constants():
    policy, reference = jax.random.normal(jax.random.key(0), (2, 3, 5))
    mix = distributions.geometric_mixture
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.0), policy)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=1.0), reference)
    shifted = mix(policy + 3.0, jax.nn.log_softmax(reference), reference_weight=0.25)
    plain = mix(policy, reference, reference_weight=0.25)
    np.testing.assert_allclose(jax.nn.softmax(shifted), jax.nn.softmax(plain), atol=1e-6)
    direct = jax.nn.softmax(policy) ** 0.75 * jax.nn.softmax(reference) ** 0.25
    direct = direct / direct.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(plain), direct, atol=1e-6)


def test_mixture_with_forbidden_tokens():
    policy, reference = jnp.array([0.0, -INF, 1.0]), jnp.array([0.5, 0.5, -INF])
    mix = distributions.geometric_mixture
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.0), policy)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=1.0), reference)
    np.testing.assert_array_equal(mix(policy, reference, reference_weight=0.5), [0.25, -INF, -INF])


def test_mixture_refuses_bad_input():
    with pytest.raises(ValueError, match="reference_weight"):
        distributions.geometric_mixture(jnp.zeros(3), jnp.zeros(3), reference_weight=1.5)
    with pytest.raises(ValueError, match="reference_logits"):
        distributions.geometric_mixture(jnp.zeros(3), jnp.zeros(4), reference_weight=0.5)
