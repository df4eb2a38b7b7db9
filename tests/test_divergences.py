"""Exact values, sample estimates and generators against closed forms and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import distributions, divergences

TARGET = (0.4, 0.3, 0.15, 0.1, 0.05)
LOGITS = (0.3, -0.2, 0.5, 0.1, -0.4)

# Values on TARGET and softmax(LOGITS), to six places.
VALUES = {
    "forward_kl": 0.204159,
    "reverse_kl": 0.211580,
    "total_variation": 0.312253,
    "jensen_shannon": 0.101911,
    "chi_squared": 0.425505,
    "reverse_chi_squared": 0.474201,
    "squared_hellinger": 0.102910,
}
NAMED = {name: getattr(divergences, name) for name in VALUES}
ALL = {
    **NAMED,
    **{f"alpha({a:g})": divergences.alpha(a) for a in (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)},
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", NAMED)
def test_value_on_five_outcomes(name, x64):
    value = divergences.f_divergence(
        NAMED[name], jax.nn.log_softmax(jnp.array(LOGITS)), jnp.log(jnp.array(TARGET))
    )
    np.testing.assert_allclose(value, VALUES[name], atol=5e-7)


@pytest.mark.parametrize("name", NAMED)
def test_value_equals_the_definition_on_both_arguments(name, x64):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    m = (p + q) / 2
    kl = lambda a, b: np.sum(a * np.log(a / b))  # noqa: E731
    by_hand = {
        "forward_kl": kl(q, p),
        "reverse_kl": kl(p, q),
        "total_variation": np.abs(p - q).sum() / 2,
        "jensen_shannon": kl(p, m) + kl(q, m),
        "chi_squared": np.sum((p - q) ** 2 / p),
        "reverse_chi_squared": np.sum((p - q) ** 2 / q),
        "squared_hellinger": np.sum((np.sqrt(p) - np.sqrt(q)) ** 2),
    }[name]
    value = divergences.f_divergence(NAMED[name], jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(value, by_hand, rtol=1e-12)


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def gradient_theorem(divergence, logits, log_target):
    policy = jax.nn.softmax(logits)
    log_t = jax.nn.log_softmax(logits) - log_target
    weight = policy * divergence.f_prime_log(log_t)
    return weight - policy * weight.sum()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ALL)
def test_gradient_of_the_value_is_f_prime_times_the_score(name, x64):
    divergence, logits, log_target = ALL[name], jnp.array(LOGITS), jnp.log(jnp.array(TARGET))
    value = lambda z: divergences.f_divergence(divergence, jax.nn.log_softmax(z), log_target)  # noqa: E731
    np.testing.assert_allclose(
        jax.grad(value)(logits), gradient_theorem(divergence, logits, log_target), atol=1e-10
    )


@pytest.mark.parametrize("name", ALL)
def test_f_prime_log_is_the_derivative_of_f(name, x64):
    t = jnp.array([1e-6, 0.03, 0.7, 0.999, 1.2, 3.0, 50.0])
    expected = jax.vmap(jax.grad(ALL[name].f))(t)
    offset = expected[0] - ALL[name].f_prime_log(jnp.log(t))[0]
    # alpha(0) and alpha(1) carry f' up to no constant: the generators are the matching ones.
    np.testing.assert_allclose(offset, 0.0, atol=1e-8 * abs(float(expected[0])) + 1e-10)
    np.testing.assert_allclose(ALL[name].f_prime_log(jnp.log(t)), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_generator_is_convex_and_vanishes_at_one_with_its_limits(name, x64):
    divergence = ALL[name]
    np.testing.assert_allclose(divergence.f(jnp.array(1.0)), 0.0, atol=1e-15)
    prime = divergence.f_prime_log(jnp.linspace(-5.0, 5.0, 41))
    assert np.all(np.diff(prime) >= -1e-12)
    near_zero = float(divergence.f(jnp.array(1e-14)))
    if math.isinf(divergence.f_zero):
        assert near_zero > 10.0
    else:
        np.testing.assert_allclose(near_zero, divergence.f_zero, atol=1e-6)
    slope = float(divergence.f(jnp.array(1e14)) / 1e14)
    if math.isinf(divergence.f_prime_infinity):
        assert slope > 10.0
    else:
        np.testing.assert_allclose(slope, divergence.f_prime_infinity, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_f_plus_c_times_t_minus_one_changes_nothing(name, x64):
    base = ALL[name]
    moved = base._replace(
        f=lambda t: base.f(t) + 3.0 * (t - 1.0), f_prime_log=lambda u: base.f_prime_log(u) + 3.0
    )
    logits, log_target = jnp.array(LOGITS), jnp.log(jnp.array(TARGET))
    values = [
        divergences.f_divergence(d, jax.nn.log_softmax(logits), log_target) for d in (base, moved)
    ]
    np.testing.assert_allclose(values[0], values[1], atol=1e-12)
    gradients = [gradient_theorem(d, logits, log_target) for d in (base, moved)]
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-12)


@pytest.mark.parametrize(
    "a, name, factor",
    [
        (0.0, "forward_kl", 1.0),
        (1.0, "reverse_kl", 1.0),
        (2.0, "reverse_chi_squared", 0.5),
        (-1.0, "chi_squared", 0.5),
        (0.5, "squared_hellinger", 2.0),
    ],
)
def test_alpha_contains_the_named_divergences(a, name, factor, x64):
    arguments = jax.nn.log_softmax(jnp.array(LOGITS)), jnp.log(jnp.array(TARGET))
    np.testing.assert_allclose(
        divergences.f_divergence(divergences.alpha(a), *arguments), factor * VALUES[name], atol=1e-6
    )
    limits = divergences.alpha(a)
    np.testing.assert_allclose(limits.f_zero, factor * NAMED[name].f_zero + (a == 1.0))
    assert divergences.alpha(a) is divergences.alpha(float(a))


def test_alpha_is_continuous_at_its_two_limits(x64):
    arguments = jax.nn.log_softmax(jnp.array(LOGITS)), jnp.log(jnp.array(TARGET))
    for a in (0.0, 1.0):
        beside = divergences.f_divergence(divergences.alpha(a + 1e-5), *arguments)
        at = divergences.f_divergence(divergences.alpha(a), *arguments)
        np.testing.assert_allclose(beside, at, rtol=1e-4)


def test_alpha_rejects_an_order_that_is_not_finite():
    with pytest.raises(ValueError, match="a is nan, expected a finite order"):
        divergences.alpha(math.nan)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ALL)
def test_missing_support_costs_the_limits(name, x64):
    policy, target = jnp.log(jnp.array([0.6, 0.4, 0.0])), jnp.log(jnp.array([0.3, 0.0, 0.7]))
    divergence = ALL[name]
    value = divergences.f_divergence(divergence, policy, target)
    expected = (
        0.3 * divergence.f(jnp.array(2.0))
        + 0.4 * divergence.f_prime_infinity
        + 0.7 * divergence.f_zero
    )
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    gradient = jax.grad(lambda z: divergences.f_divergence(divergence, z, target))(policy)
    assert np.all(np.isfinite(gradient))


def test_outcomes_that_both_exclude_cost_nothing():
    logp = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    for divergence in ALL.values():
        np.testing.assert_allclose(divergences.f_divergence(divergence, logp, logp), 0.0, atol=1e-6)


def test_total_variation_has_zero_gradient_at_equality():
    logp = jax.nn.log_softmax(jnp.array(LOGITS))
    value = lambda z: divergences.f_divergence(divergences.total_variation, z, logp)  # noqa: E731
    np.testing.assert_array_equal(jax.grad(value)(logp), 0.0)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ALL)
def test_extreme_log_ratios_stay_finite_in_float32(name):
    policy = jax.nn.log_softmax(jnp.array([0.0, -70.0, -3.0]))
    target = jax.nn.log_softmax(jnp.array([-75.0, 0.0, -2.0]))
    value = lambda z: divergences.f_divergence(ALL[name], z, target)  # noqa: E731
    assert not np.isnan(value(policy))
    assert np.all(np.isfinite(jax.grad(value)(policy)))


# --- categorical_kl, and the entropy beside it -----------------------------------------------


def test_categorical_kl_and_entropy_by_hand(x64):
    p, q = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
    # Logits are known up to a constant, however large: its exponential may be none.
    np.testing.assert_allclose(
        divergences.categorical_kl(jnp.log(p) + 2000.0, jnp.log(q) - 2000.0),
        0.25 * math.log(2),
        rtol=1e-11,
    )
    np.testing.assert_allclose(
        distributions.entropy(jnp.log(p) - 2000.0), 1.5 * math.log(2), rtol=1e-11
    )


def test_categorical_kl_equals_both_generators_and_carries_both_gradients(x64):
    a, b = jnp.array(LOGITS), jnp.log(jnp.array(TARGET))
    for first, second, divergence in (
        (a, b, divergences.reverse_kl),
        (b, a, divergences.forward_kl),
    ):
        exact = lambda z: divergences.f_divergence(divergence, jax.nn.log_softmax(z), b)  # noqa: B023, E731
        np.testing.assert_allclose(divergences.categorical_kl(first, second), exact(a), rtol=1e-10)
    np.testing.assert_allclose(
        grad(lambda z: divergences.categorical_kl(z, b))(a),
        grad(lambda z: divergences.f_divergence(divergences.reverse_kl, jax.nn.log_softmax(z), b))(
            a
        ),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        grad(lambda z: divergences.categorical_kl(b, z))(a),
        jax.nn.softmax(a) - jnp.array(TARGET),
        atol=1e-12,
    )


def test_second_derivative_of_the_kl_is_the_fisher_matrix(x64):
    logits, policy = jnp.array(LOGITS), jax.nn.softmax(jnp.array(LOGITS))
    fisher = jnp.diag(policy) - jnp.outer(policy, policy)
    for function in (
        lambda z: divergences.categorical_kl(z, logits),
        lambda z: divergences.categorical_kl(logits, z),
    ):
        np.testing.assert_allclose(jax.jit(jax.hessian(function))(logits), fisher, atol=1e-12)


def test_entropy_and_kl_with_excluded_outcomes():
    logits = jnp.array([[0.0, 0.0, -jnp.inf], [1.0, -jnp.inf, -jnp.inf]])
    np.testing.assert_allclose(distributions.entropy(logits), [math.log(2), 0.0], atol=1e-6)
    np.testing.assert_allclose(divergences.categorical_kl(logits, logits), 0.0, atol=1e-6)
    # Half of the mass lies where the reference has none: 20 nats of it, by convention.
    reference = jnp.array([0.0, -jnp.inf, -jnp.inf])
    np.testing.assert_allclose(
        divergences.categorical_kl(logits[0], reference), 0.5 * math.log(0.5) + 10.0, rtol=1e-5
    )
    for function in (
        lambda z: distributions.entropy(z).sum(),
        lambda z: divergences.categorical_kl(z, z[::-1]).sum(),
    ):
        assert np.all(np.isfinite(jax.jit(jax.grad(function))(logits)))


def test_a_row_that_excludes_everything_is_finite():
    logits = jnp.full((2, 3), -jnp.inf)
    np.testing.assert_allclose(distributions.entropy(logits), 0.0)
    np.testing.assert_allclose(divergences.categorical_kl(logits, logits), 0.0, atol=1e-6)


# --- f_divergence_estimate --------------------------------------------------------------------

BEHAVIOR = (0.1, 0.1, 0.2, 0.25, 0.35)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("behavior", [BEHAVIOR, TARGET], ids=["elsewhere", "target"])
def test_expected_estimate_is_the_divergence(name, behavior, x64):
    logp, log_target = jax.nn.log_softmax(jnp.array(LOGITS)), jnp.log(jnp.array(TARGET))
    estimates = divergences.f_divergence_estimate(
        ALL[name], logp, log_target, jnp.log(jnp.array(behavior))
    )
    exact = divergences.f_divergence(ALL[name], logp, log_target)
    np.testing.assert_allclose(jnp.array(behavior) @ estimates, exact, rtol=1e-12)


def test_expected_estimates_against_a_hard_target_by_hand(x64):
    # The target excludes the last outcome; the behaviour policy covers everything.
    policy, target = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.75, 0.0])
    behavior = np.array([0.2, 0.3, 0.5])
    middle = (policy + target) / 2
    with np.errstate(divide="ignore"):
        logs = [jnp.log(jnp.array(x)) for x in (policy, target, behavior)]
    kl = lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)  # noqa: E731
    expected = {
        "forward_kl": kl(target, policy),
        "total_variation": 0.5 * np.abs(policy - target).sum(),
        "jensen_shannon": kl(policy, middle) + kl(target, middle),
        "squared_hellinger": np.square(np.sqrt(policy) - np.sqrt(target)).sum(),
    }
    for name, value in expected.items():
        estimates = divergences.f_divergence_estimate(NAMED[name], *logs)
        # The excluded outcome counts as t = exp(20), not as infinity.
        np.testing.assert_allclose(behavior @ estimates, value, atol=1e-4, err_msg=name)
    # What total variation says of single samples: |policy - target| / (2 behavior).
    np.testing.assert_allclose(
        divergences.f_divergence_estimate(NAMED["total_variation"], *logs),
        np.abs(policy - target) / (2 * behavior),
        atol=1e-8,
    )


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ALL)
def test_estimates_of_a_divergence_are_stopped_and_total(name):
    cases = jnp.array([0.0, -1.0, -900.0, -jnp.inf])
    logp, log_target, behavior = (x.ravel() for x in jnp.meshgrid(*[cases] * 3))
    unknown = jnp.where(jnp.arange(logp.size) % 2 == 0, jnp.inf, jnp.nan)

    def total(*x):
        estimates = divergences.f_divergence_estimate(ALL[name], *x)
        skipped = divergences.f_divergence_estimate(ALL[name], x[0], unknown, x[2])
        return estimates.sum(), (estimates, skipped)

    gradients, (estimates, skipped) = grad(total, argnums=(0, 1, 2), has_aux=True)(
        logp, log_target, behavior
    )
    assert np.all(np.isfinite(estimates))
    np.testing.assert_array_equal(estimates[logp == log_target], 0.0)
    np.testing.assert_array_equal(skipped, 0.0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)
    with pytest.raises(ValueError, match="behavior_logp"):
        divergences.f_divergence_estimate(ALL[name], logp, logp, logp[:2])


# --- kl_estimate -----------------------------------------------------------------------------

FOUR_LOGITS, FOUR_TEACHER = (0.5, -0.3, 0.1, 0.9), (0.1, 0.2, 0.3, 0.4)


def test_expected_estimates_on_four_arms(x64):
    logp = jax.nn.log_softmax(jnp.array(FOUR_LOGITS))
    reference = jnp.log(jnp.array(FOUR_TEACHER))
    mean = lambda kind: jnp.exp(logp) @ divergences.kl_estimate(logp, reference, kind=kind)  # noqa: E731
    exact = divergences.categorical_kl(logp, reference)
    np.testing.assert_allclose(exact, 0.1471234, atol=1e-7)
    np.testing.assert_allclose(mean("k1"), exact, rtol=1e-12)
    np.testing.assert_allclose(mean("k3"), exact, rtol=1e-12)
    np.testing.assert_allclose(mean("k2"), 0.1792343, atol=1e-7)


def test_gradient_identities_behind_the_three_estimators(x64):
    # The estimate itself is stopped; these are the formulas it stands for, differentiated on
    # samples of the policy: k2 follows KL(policy || teacher), k3 the other KL, k1 nothing.
    logits, reference = jnp.array(FOUR_LOGITS), jnp.log(jnp.array(FOUR_TEACHER))
    policy = jax.nn.softmax(logits)
    value = {
        "k1": lambda x: -x,
        "k2": lambda x: 0.5 * x**2,
        "k3": lambda x: jnp.expm1(x) - x,
    }
    expected = {
        "k1": jnp.zeros(4),
        "k2": jax.grad(lambda z: divergences.categorical_kl(z, reference))(logits),
        "k3": jax.grad(lambda z: divergences.categorical_kl(reference, z))(logits),
    }
    for kind, form in value.items():
        x = reference - jax.nn.log_softmax(logits)
        np.testing.assert_allclose(
            divergences.kl_estimate(jax.nn.log_softmax(logits), reference, kind=kind),
            form(x),
            rtol=1e-10,
        )
        gradient = grad(lambda z: policy @ form(reference - jax.nn.log_softmax(z)))(logits)  # noqa: B023
        np.testing.assert_allclose(gradient, expected[kind], atol=1e-8)
    np.testing.assert_allclose(expected["k2"], [0.24127, -0.07736, -0.11643, -0.04748], atol=1e-5)
    np.testing.assert_allclose(expected["k3"], [0.17690, -0.07558, -0.11439, 0.01308], atol=1e-5)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_estimates_are_stopped_and_total(kind):
    logp = jnp.array([0.0, -1.0, -jnp.inf, -jnp.inf, -1.0, -1000.0])
    reference = jnp.array([0.0, -1.5, -jnp.inf, -1.0, -jnp.inf, 0.0])
    estimate = lambda a, b: divergences.kl_estimate(a, b, kind=kind).sum()  # noqa: E731
    assert np.all(np.isfinite(divergences.kl_estimate(logp, reference, kind=kind)))
    assert divergences.kl_estimate(logp, reference, kind=kind)[2] == 0.0
    for gradient in jax.grad(estimate, argnums=(0, 1))(logp, reference):
        np.testing.assert_array_equal(gradient, 0.0)


def test_k3_is_never_negative_and_kind_is_checked():
    a, b = jax.random.normal(jax.random.key(0), (2, 50)) * 4.0
    assert np.all(divergences.kl_estimate(a, b) >= 0.0)
    with pytest.raises(ValueError, match="kind is .k4."):
        divergences.kl_estimate(a, b, kind="k4")


# --- dtypes and transformations --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_jit_vmap_and_dtype(dtype):
    a = jax.random.normal(jax.random.key(0), (3, 4)).astype(dtype)
    b = jax.random.normal(jax.random.key(1), (3, 4)).astype(dtype)
    for function in (
        divergences.kl_estimate,
        divergences.categorical_kl,
        lambda x, y: distributions.entropy(x + y),
        lambda x, y: divergences.f_divergence(
            divergences.jensen_shannon, jax.nn.log_softmax(x), jax.nn.log_softmax(y)
        ),
        lambda x, y: divergences.f_divergence_estimate(divergences.jensen_shannon, x, y, x - 0.5),
    ):
        plain = jax.jit(function)(a, b)
        assert plain.dtype == jnp.float32
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(a, b), plain, rtol=1e-2, atol=1e-3)


WITH_CONJUGATE = {
    # name: places s = f'(t) where the supremum of t s - f(t) is attained at t
    "forward_kl": (divergences.forward_kl, [0.25, 0.5, 1.0, 4.0]),
    "reverse_kl": (divergences.reverse_kl, [0.1, 0.5, 1.0, 4.0]),
    "jensen_shannon": (divergences.jensen_shannon, [0.1, 0.5, 1.0, 4.0]),
    "reverse_chi_squared": (divergences.reverse_chi_squared, [0.1, 0.5, 1.0, 4.0]),
    "squared_hellinger": (divergences.squared_hellinger, [0.1, 0.5, 1.0, 4.0]),
}


@pytest.mark.parametrize("name", WITH_CONJUGATE)
def test_a_conjugate_is_the_supremum(name, x64):
    """f*(f'(t)) = t f'(t) - f(t), and no other t does better."""
    divergence, places = WITH_CONJUGATE[name]
    t = jnp.array(places)
    s = divergence.f_prime_log(jnp.log(t))
    np.testing.assert_allclose(divergence.conjugate(s), t * s - divergence.f(t), atol=1e-12)
    others = jnp.linspace(0.01, 30.0, 500)[:, None]
    assert np.all(others * s - divergence.f(others) <= divergence.conjugate(s) + 1e-12)


def test_conjugate_of_total_variation_is_a_line():
    s = jnp.array([-0.4, 0.0, 0.4])
    np.testing.assert_array_equal(divergences.total_variation.conjugate(s), s)
    assert divergences.chi_squared.conjugate is None and divergences.alpha(0.5).conjugate is None


def test_divergence_of_masses_that_float32_can_hardly_hold():
    """target f(t) and policy f(t) / t are one number, but one of its factors may be 0."""
    policy, target = jnp.array([-60.0, 0.0]), jnp.array([-100.0, 0.0])
    far = divergences.f_divergence(divergences.reverse_chi_squared, policy, target)
    np.testing.assert_allclose(far, np.exp(-20.0), rtol=1e-4)
    near = divergences.f_divergence(divergences.chi_squared, target, policy)
    np.testing.assert_allclose(near, np.exp(-20.0), rtol=1e-4)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "chi_squared"])
def test_the_estimate_is_unbiased_whoever_sampled(name, x64):
    divergence = getattr(divergences, name)
    policy, target, behavior = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
    logs = jnp.log(policy), jnp.log(target)
    exact = divergences.f_divergence(divergence, *logs)
    each = divergences.f_divergence_estimate(divergence, *logs, jnp.log(behavior))
    np.testing.assert_allclose(behavior @ each, exact, rtol=1e-9)
    on_policy = divergences.f_divergence_estimate(divergence, *logs, logs[0])
    np.testing.assert_allclose(policy @ on_policy, exact, rtol=1e-9)
    unknown = jnp.array([jnp.nan, jnp.inf])
    skipped = divergences.f_divergence_estimate(divergence, logs[0][:2], unknown, logs[0][:2])
    np.testing.assert_array_equal(skipped, 0.0)


def test_log_ratios_saturate_at_40_nats_in_float32():
    policy, target = jnp.array([-59.0, 0.0], jnp.float32), jnp.array([-100.0, 0.0], jnp.float32)
    far = divergences.f_divergence(divergences.reverse_chi_squared, policy, target)
    np.testing.assert_allclose(far, np.exp(-19.0), rtol=1e-4)
