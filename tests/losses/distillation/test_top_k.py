"""The KL to a teacher on its likeliest tokens: values, gradients, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import divergences, losses

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, TEACHING = RNG.normal(-2, 0.5, (3, 3, 4)).astype(np.float32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- the most likely tokens ----------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_top_k_kl_follows_the_formula(of, renormalize, k, x64):
    logits, other = np.random.default_rng(3).normal(size=(2, 3, 4))
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (logits, other))
    expected = np.zeros(3)
    for row in range(3):
        kept = np.argsort(-(p if of == "student" else q)[row])[:k]
        a, b = p[row, kept], q[row, kept]
        if renormalize:
            a, b = a / a.sum(), b / b.sum()
        expected[row] = (a * np.log(a / b)).sum()
    settings = {"k": k, "of": of, "renormalize": renormalize}
    found = run(losses.top_k_kl, jnp.asarray(logits), jnp.asarray(other), **settings)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if k == 4:
        whole = divergences.categorical_kl(jnp.asarray(logits), jnp.asarray(other))
        np.testing.assert_allclose(found, whole, atol=1e-12)
        slope = lambda f: grad(lambda z: f(z, jnp.asarray(other)).sum())(jnp.asarray(logits))  # noqa: E731
        np.testing.assert_allclose(
            slope(lambda z, t: losses.top_k_kl(z, t, **settings)),
            slope(divergences.categorical_kl),
            atol=1e-12,
        )
    if settings == {"k": 2, "of": "student", "renormalize": False}:
        default = run(losses.top_k_kl, jnp.asarray(logits), jnp.asarray(other))
        np.testing.assert_array_equal(default, found)


@pytest.mark.parametrize("renormalize", [False, True])
def test_top_k_kl_stops_the_teacher_and_bears_exclusions(renormalize):
    logits = jnp.array([[1.0, 0.5, -np.inf, -0.3], [2.0, 1.0, 0.0, -np.inf]])
    other = jnp.array([[0.0, -np.inf, 1.0, 0.2], [0.1, 0.2, 0.3, -np.inf]])
    for of in ("student", "teacher"):
        total = lambda z, t, of=of: losses.top_k_kl(  # noqa: E731
            z, t, k=3, of=of, renormalize=renormalize
        ).sum()
        both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        value, (to_student, to_teacher) = both(logits, other)
        assert np.isfinite(value)
        assert np.all(np.isfinite(to_student))
        np.testing.assert_array_equal(to_teacher, 0.0)


# --- mistakes ------------------------------------------------------------------------------------


def test_the_one_most_likely_token():
    logits, teacher = jnp.array([2.0, 0.0, -1.0]), jnp.array([0.5, 1.0, 0.0])
    p, q = jax.nn.softmax(logits), jax.nn.softmax(teacher)
    found = losses.top_k_kl(logits, teacher, k=1)
    np.testing.assert_allclose(found, p[0] * jnp.log(p[0] / q[0]), rtol=1e-5)
