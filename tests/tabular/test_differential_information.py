"""Differential information: Bayes' rule by enumeration, DPO's exact optimum, projections, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import distributions, divergences, losses, tabular

A = 4
REFERENCE = np.log([0.4, 0.3, 0.2, 0.1])
seeds = st.integers(0, 2**16)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def policies(seed, *names):
    rng = np.random.default_rng(seed)
    return [np.log(rng.dirichlet(np.full(A, 3.0))) for _ in names]


def normalized(x):
    return x - np.log(np.exp(x).sum())


@given(seeds)
def test_reference_times_information_is_the_policy(seed):
    policy, reference = policies(seed, "policy", "reference")
    log_q = run(tabular.differential_information, policy, reference)
    q = np.exp(policy - reference)
    np.testing.assert_allclose(jnp.exp(log_q), q / q.sum(), rtol=1e-9)
    np.testing.assert_allclose(normalized(reference + np.asarray(log_q)), policy, atol=1e-9)
    entropy = run(tabular.information_entropy, policy, reference)
    np.testing.assert_allclose(entropy, -(np.exp(log_q) * log_q).sum(), rtol=1e-9)
    # Every answer drawn once, uniformly: the estimate is exact.
    uniform = np.full(A, -math.log(A))
    estimate = run(tabular.information_entropy_estimate, policy, reference, uniform)
    np.testing.assert_allclose(estimate, entropy, rtol=1e-9)


def test_reinforcing_and_smoothing_targets():
    square, root = normalized(2 * REFERENCE), normalized(0.5 * REFERENCE)
    np.testing.assert_allclose(np.exp(square), [0.5333, 0.3, 0.1333, 0.0333], atol=1e-4)
    sharp, flat = (float(run(tabular.information_entropy, x, REFERENCE)) for x in (square, root))
    assert sharp == pytest.approx(1.27985, abs=1e-5)
    assert sharp == pytest.approx(float(distributions.entropy(REFERENCE)), abs=1e-12)
    assert sharp < flat < math.log(A)
    entropies = [float(distributions.entropy(x)) for x in (square, REFERENCE, root)]
    assert entropies == sorted(entropies)
    same = run(tabular.differential_information, REFERENCE, REFERENCE)
    np.testing.assert_allclose(same, -math.log(A), rtol=1e-12)


def test_the_power_law():
    np.testing.assert_allclose(
        run(tabular.power_law_policy, REFERENCE, normalized(2 * REFERENCE), exponent=-0.5),
        normalized(0.5 * REFERENCE),
        atol=1e-12,
    )
    target = policies(3, "target")[0]
    for exponent, expected in ((0.0, REFERENCE), (1.0, target)):
        found = run(tabular.power_law_policy, REFERENCE, target, exponent=exponent)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    rejected = run(tabular.optimal_rejected, REFERENCE, target, beta=0.7)
    np.testing.assert_allclose(rejected, normalized(1.7 * REFERENCE - 0.7 * target), atol=1e-12)
    chosen = run(tabular.optimal_chosen, REFERENCE, target, beta=0.7)
    np.testing.assert_allclose(chosen, normalized(0.3 * REFERENCE + 0.7 * target), atol=1e-12)


@given(seeds)
def test_the_posterior_is_bayes_rule(seed):
    chosen, rejected = (np.exp(x) for x in policies(seed, "chosen", "rejected"))
    expected = np.zeros((A, A))
    for a, b in itertools.product(range(A), repeat=2):
        right, wrong = chosen[a] * rejected[b], chosen[b] * rejected[a]
        expected[a, b] = right / (right + wrong)
    found = run(tabular.posterior_preference, np.log(chosen), np.log(rejected))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


FIRST, SECOND = (x.ravel() for x in np.indices((A, A)))


def population(loss, target, reference, chosen, rejected):
    """Gradient at the target of a pair loss averaged over all pairs of the two samplers."""
    weights = np.outer(np.exp(chosen), np.exp(rejected)).ravel()

    def total(logits):
        return weights @ loss(jax.nn.log_softmax(logits), reference)

    return np.abs(grad(total)(jnp.asarray(target))).max()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_target_is_the_optimum_of_dpo_and_of_no_other_loss(beta):
    reference, target = policies(7, "reference", "target")
    rejected = tabular.optimal_rejected(reference, target, beta=beta)
    chosen = tabular.optimal_chosen(reference, target, beta=beta)

    def pair(function, **settings):
        def loss(logp, reference):
            ratio = logp - reference
            return function(ratio[FIRST], ratio[SECOND], **settings)

        return loss

    dpo = pair(losses.dpo, beta=beta)
    assert population(dpo, target, reference, reference, rejected) < 1e-9
    assert population(dpo, target, reference, chosen, reference) < 1e-9

    def hinge(logp, reference):
        gap = beta * (logp - reference)
        return jax.nn.relu(1.0 - gap[FIRST] + gap[SECOND])

    def without_reference(logp, reference):
        return losses.dpo(logp[FIRST], logp[SECOND], beta=beta)

    def supervised(logp, reference):
        return -logp[FIRST]

    others = {
        "wrong beta": pair(losses.dpo, beta=0.5 * beta),
        "ipo": pair(losses.ipo, beta=beta),
        "hinge": hinge,
        "without reference": without_reference,
        "supervised": supervised,
    }
    for name, loss in others.items():
        assert population(loss, target, reference, reference, rejected) > 1e-3, name


@given(seeds)
def test_margins_are_ordered_along_the_power_law(seed):
    reference, target = policies(seed, "reference", "target")
    beta = 0.5
    rejected = run(tabular.optimal_rejected, reference, target, beta=beta)
    residual = run(tabular.power_law_residual, reference, target, rejected, beta=beta)
    np.testing.assert_allclose(residual, 0.0, atol=1e-9)
    margins = [np.subtract.outer(x, x) for x in (target, reference, np.asarray(rejected))]
    np.testing.assert_allclose(run(tabular.log_margins, target), margins[0], atol=1e-12)
    up = margins[0] > margins[1] + 1e-9
    assert np.all(margins[1][up] > margins[2][up])
    other = run(tabular.power_law_residual, reference, target, reference, beta=beta)
    np.testing.assert_allclose(other, -beta * (margins[0] - margins[1]), atol=1e-9)
    # The chosen answers, samples of the reference, get less likely on average.
    change = (np.exp(reference) * (target - reference)).sum()
    kl = float(divergences.categorical_kl(jnp.asarray(reference), jnp.asarray(target)))
    assert change == pytest.approx(-kl, abs=1e-9) and change <= 0


def estimate_valid(logp, reference, behavior, valid):
    return tabular.information_entropy_estimate(logp, reference, behavior, valid=valid)


def test_the_estimate_by_formula():
    rng = np.random.default_rng(0)
    logp, reference, behavior = rng.normal(-40, 3, (3, 2, A))  # sequences: far below exp(-20)
    valid = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)

    def by_hand(logp, reference, behavior):
        rho, weight = np.exp(logp - reference), np.exp(logp - reference - behavior)
        share = weight / weight.sum()
        return np.log(weight.mean()) - (share * np.log(np.where(rho > 0, rho, 1.0))).sum()

    found = run(estimate_valid, logp, reference, behavior, valid)
    for b in range(2):
        kept = [x[b][valid[b]] for x in (logp, reference, behavior)]
        assert float(found[b]) == pytest.approx(by_hand(*kept), rel=1e-9)
    # A sample that the policy excludes counts, with weight 0; one of undefined ratio does not.
    logp[1, 0] = -np.inf
    reference[0, 1], behavior[0, 2] = -np.inf, -np.inf
    found = run(estimate_valid, logp, reference, behavior, np.ones((2, A), bool))
    kept = [x[0][[0, 3]] for x in (logp, reference, behavior)]
    assert float(found[0]) == pytest.approx(by_hand(*kept), rel=1e-9)
    assert float(found[1]) == pytest.approx(by_hand(logp[1], reference[1], behavior[1]), rel=1e-9)
    for nothing in (
        run(estimate_valid, logp, reference, behavior, np.zeros((2, A), bool)),
        run(estimate_valid, np.full_like(logp, -np.inf), reference, behavior, valid),
        run(estimate_valid, np.full_like(logp, np.nan), reference, behavior, valid),
        run(estimate_valid, np.full_like(logp, np.inf), reference, behavior, valid),
    ):
        np.testing.assert_array_equal(nothing, 0.0)
    slopes = grad(lambda *x: tabular.information_entropy_estimate(*x).sum(), argnums=(0, 1, 2))
    for slope in slopes(logp, reference, behavior):
        np.testing.assert_array_equal(slope, 0.0)


def test_edges():
    inf = np.inf
    policy = np.array([[-inf, -1.0, -1.0, -2.0], [-inf] * 4, [-1.0, -1.0, -1.0, -1.0]])
    reference = np.array([[-1.0, -1.0, -inf, -2.0], [-1.0] * 4, [-inf] * 4])
    log_q = run(tabular.differential_information, policy, reference)
    expected = np.array([0.0, 1.0, math.exp(20.0), 1.0])
    np.testing.assert_allclose(jnp.exp(log_q[0]), expected / expected.sum(), rtol=1e-6)
    assert log_q[0, 0] == -inf
    np.testing.assert_allclose(log_q[1:], -math.log(4), rtol=1e-9)
    entropy = run(tabular.information_entropy, policy, reference)
    assert np.all(np.isfinite(entropy))
    slope = grad(lambda x: tabular.information_entropy(x, reference).sum())(policy)
    assert np.all(np.isfinite(slope))
    to_reference = grad(lambda x: tabular.differential_information(policy[2], x)[0])(reference[0])
    np.testing.assert_array_equal(to_reference, 0.0)
    rejected = run(tabular.optimal_rejected, reference, policy, beta=0.5)
    assert rejected[0, 2] == -inf and np.all(np.isfinite(rejected[0, [0, 1, 3]]))
    np.testing.assert_allclose(rejected[2], -math.log(4), rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(rejected).sum(-1), 1.0, rtol=1e-9)
    assert np.all(np.isfinite(run(tabular.posterior_preference, policy, reference)))
    margins = run(tabular.log_margins, policy)
    np.testing.assert_array_equal(margins[1], 0.0)
    np.testing.assert_array_equal(margins[0, 0], [0, -20, -20, -20])
    for function in (tabular.log_margins, lambda x: tabular.power_law_residual(x, x, x, beta=1.0)):
        np.testing.assert_array_equal(grad(lambda x, f=function: f(x).sum())(policy[2]), 0.0)


def dot(a, b):
    return sum(float(np.sum(x * y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@given(seeds)
def test_the_projected_direction(seed):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=5)
    chosen, rejected = (
        {"w": s * x[:3], "v": s * x[3:]}
        for s, x in zip(rng.uniform(0.2, 2.0, 2), common + 0.3 * rng.normal(size=(2, 5)))
    )
    coefficient = float(rng.uniform(0.1, 1.0))
    found = run(tabular.dpo_pg_direction, chosen, rejected, coefficient)
    plain = jax.tree.map(lambda w, r: coefficient * (w - r), chosen, rejected)
    along_chosen, along_rejected = dot(found, chosen), dot(found, rejected)
    assert along_chosen >= -1e-9 and along_rejected <= 1e-9
    # The nearest one (Karush-Kuhn-Tucker): plain + a chosen - b rejected, a and b >= 0, and
    # where a (b) is positive the bound is met exactly.
    flat = lambda x: np.concatenate([np.ravel(y) for y in jax.tree.leaves(x)])  # noqa: E731
    basis = np.stack([flat(chosen), -flat(rejected)], 1)
    forces, *_ = np.linalg.lstsq(basis, flat(found) - flat(plain), rcond=None)
    np.testing.assert_allclose(basis @ forces, flat(found) - flat(plain), atol=1e-9)
    assert np.all(forces >= -1e-9) and np.prod(forces) == pytest.approx(0.0, abs=1e-9)
    assert forces @ [along_chosen, -along_rejected] == pytest.approx(0.0, abs=1e-9)


def test_directions_that_need_no_projection_and_those_that_do():
    first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
    np.testing.assert_allclose(tabular.dpo_pg_direction(first, second, 0.5), [0.5, -1.0])
    # The rejected gradient is longer along the chosen one: that part of the step is dropped.
    np.testing.assert_allclose(
        tabular.dpo_pg_direction(first, jnp.array([2.0, 1.0]), 1.0), [0.0, -1.0], atol=1e-12
    )
    np.testing.assert_allclose(
        tabular.dpo_pg_direction(jnp.array([2.0, 1.0]), first, 1.0), [0.0, 1.0], atol=1e-12
    )
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(tabular.dpo_pg_direction(zero, first, 1.0), -first)
    np.testing.assert_array_equal(tabular.dpo_pg_direction(first, zero, 1.0), first)
    low = jnp.asarray(first, jnp.bfloat16)
    assert tabular.dpo_pg_direction(low, low, 1.0).dtype == jnp.bfloat16


def test_bad_arguments():
    x, y = jnp.zeros(3), jnp.zeros(4)
    for call, message in (
        (lambda: tabular.differential_information(x, y), "log_reference has shape"),
        (lambda: tabular.information_entropy(x, y), "log_reference has shape"),
        (lambda: tabular.information_entropy_estimate(x, y, x), "reference_logp has shape"),
        (lambda: tabular.information_entropy_estimate(x, x, y), "behavior_logp has shape"),
        (
            lambda: tabular.information_entropy_estimate(x, x, x, valid=jnp.ones(4, bool)),
            "valid has shape",
        ),
        (lambda: tabular.posterior_preference(x, y), "log_rejected has shape"),
        (lambda: tabular.power_law_policy(x, y, exponent=1.0), "log_target has shape"),
        (lambda: tabular.power_law_policy(x, x, exponent=math.inf), "exponent is inf"),
        (lambda: tabular.power_law_policy(x, x, exponent=-math.inf), "exponent is -inf"),
        (lambda: tabular.optimal_rejected(x, x, beta=0.0), "beta is 0"),
        (lambda: tabular.optimal_chosen(x, x, beta=0.0), "beta is 0"),
        (lambda: tabular.power_law_residual(x, x, x, beta=0.0), "beta is 0"),
        (lambda: tabular.power_law_residual(x, y, x, beta=1.0), "log_target has shape"),
        (lambda: tabular.power_law_residual(x, x, y, beta=1.0), "log_rejected has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_simpo_and_orpo_do_not_have_the_target_as_their_optimum():
    rng = np.random.default_rng(7)
    reference, target = (np.log(rng.dirichlet(np.full(4, 3.0))) for _ in range(2))
    a, b = (x.ravel() for x in np.indices((4, 4)))
    rejected = tabular.optimal_rejected(reference, target, beta=1.0)
    weights = np.outer(np.exp(reference), np.exp(rejected)).ravel()
    for loss in (losses.simpo, losses.orpo):
        total = lambda z: weights @ loss(*(jax.nn.log_softmax(z)[k] for k in (a, b)))  # noqa: B023, E731
        assert np.abs(jax.grad(total)(jnp.asarray(target))).max() > 1e-3
