"""INPO and its relatives: four equal losses, mirror descent as their minimiser, edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses, tabular
from tests.support.compiled import grad, run

inpo = jax.jit(losses.inpo)  # inverse_step is traced, as under a schedule
contrast_of = jax.jit(losses.inpo_contrast)

TAU, INVERSE_STEP = 0.2, 0.7
RNG = np.random.default_rng(3)
SHOWN = RNG.uniform(size=(4, 4))
GAME = 0.5 * (SHOWN + 1.0 - SHOWN.T)
REFERENCE, PREVIOUS = RNG.dirichlet(np.ones(4), size=2)
FIRST, SECOND = (x.ravel() for x in np.indices((4, 4)))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def contrasts(logits, reference, previous, inverse_step, tau):
    """Of all pairs of answers, in the order of (FIRST, SECOND)."""
    n = logits.shape[0]
    i, j = (x.ravel() for x in np.indices((n, n)))
    logs = jax.nn.log_softmax(logits), jnp.log(reference), jnp.log(previous)
    return losses.inpo_contrast(
        *(x[k] for x in logs for k in (i, j)), inverse_step=inverse_step, tau=tau
    )


def population_loss(logits, form, reference, previous, preference, inverse_step, tau, data=None):
    """The loss averaged over pairs of the data policy and over labels; previous by default."""
    data = previous if data is None else data
    pairs = jnp.outer(data, data).ravel()
    h = contrasts(logits, reference, previous, inverse_step, tau)
    p, n = preference.ravel(), preference.shape[0]
    if form == "label":
        swapped = h.reshape(n, n).T.ravel()
        return pairs @ (
            p * losses.inpo(h, inverse_step=inverse_step)
            + (1 - p) * losses.inpo(swapped, inverse_step=inverse_step)
        )
    if form == "indicator":
        return pairs @ (p * (h - 1 / inverse_step) ** 2 + (1 - p) * h**2)
    if form == "soft":
        return pairs @ losses.inpo(h, p, inverse_step=inverse_step)
    rates = preference @ previous
    return pairs @ (h - (rates[:, None] - rates[None, :]).ravel() / inverse_step) ** 2


@functools.partial(jax.jit, static_argnames="form")
def value_and_gradient(logits, form, *rest, data=None):
    return jax.value_and_grad(population_loss)(logits, form, *rest, data=data)


def at(
    logits,
    form,
    inverse_step=INVERSE_STEP,
    tau=TAU,
    reference=REFERENCE,
    previous=PREVIOUS,
    game=GAME,
    **data,
):
    arrays = (jnp.asarray(x) for x in (reference, previous, game))
    return value_and_gradient(jnp.asarray(logits), form, *arrays, inverse_step, tau, **data)


@pytest.mark.parametrize("form", ["label", "indicator", "soft"])
def test_every_form_is_the_exact_one_up_to_a_constant(form, x64):
    offsets = []
    for logits in RNG.normal(size=(3, 4)):
        value, gradient = at(logits, form)
        exact_value, exact_gradient = at(logits, "win")
        np.testing.assert_allclose(gradient, exact_gradient, atol=1e-12)
        offsets.append(value - exact_value)
    np.testing.assert_allclose(offsets, offsets[0], atol=1e-12)
    assert offsets[0] > 0.01  # the variance of the labels


def test_the_minimiser_is_a_step_of_mirror_descent(x64):
    step = run(tabular.self_play_step, PREVIOUS, REFERENCE, GAME, eta=1 / INVERSE_STEP, tau=TAU)
    assert at(jnp.log(step), "win")[0] < 1e-20
    for form in ("label", "soft"):
        np.testing.assert_allclose(at(jnp.log(step), form)[1], 0.0, atol=1e-12)
    assert np.abs(at(jnp.log(PREVIOUS), "label")[1]).max() > 0.05


@pytest.mark.parametrize("tau, inverse_step", [(0.1, 0.1), (0.1, 0.3), (0.5, 2.0)])
def test_the_equilibrium_is_a_fixed_point_for_every_step(tau, inverse_step, x64):
    reference, game = jnp.array([0.6, 0.3, 0.1]), tabular.rps_game()
    nash = run(tabular.regularized_nash, reference, game, tau=tau, iterations=2000)
    gradient = at(jnp.log(nash), "label", inverse_step, tau, reference, nash, game)[1]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-10)


def test_values_by_hand(x64):
    # Margins 1.2 of the policy, .5 of the reference, .8 of the previous policy.
    logs = [jnp.array([x]) for x in (-1.0, -2.2, -3.0, -3.5, -0.2, -1.0)]
    h = contrast_of(*logs, inverse_step=0.5, tau=0.1)
    np.testing.assert_allclose(h, 0.46, rtol=1e-12)
    np.testing.assert_allclose(inpo(h, inverse_step=0.5), 0.2916, rtol=1e-12)
    np.testing.assert_allclose(
        inpo(h, jnp.array([0.8]), inverse_step=0.5), (0.46 - 0.6) ** 2, rtol=1e-12
    )
    np.testing.assert_allclose(losses.ipo(jnp.array([0.3]), jnp.zeros(1), beta=0.1), 22.09)
    # -0.2 against a target of 2 (0.9 - 0.5).
    loss = losses.sppo(jnp.array([-0.2]), jnp.array([0.9]), eta=2.0)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-12)


def test_ipo_is_the_case_of_one_anchor(x64):
    logs = list(jnp.asarray(RNG.normal(size=(6, 5))))
    chosen, rejected = logs[0] - logs[2], logs[1] - logs[3]
    online = inpo(contrast_of(*logs, inverse_step=0.3, tau=0.3), inverse_step=0.3)
    np.testing.assert_allclose(online, losses.ipo(chosen, rejected, beta=0.3), rtol=1e-10)
    # First iteration: the previous policy is the reference, whatever tau.
    first = inpo(contrast_of(*logs[:4], *logs[2:4], inverse_step=0.3, tau=0.1), inverse_step=0.3)
    np.testing.assert_allclose(first, losses.ipo(chosen, rejected, beta=0.3), rtol=1e-10)


def test_without_tau_the_reference_has_no_say(x64):
    logs = list(jnp.asarray(RNG.normal(size=(6, 5))))
    h = contrast_of(*logs, inverse_step=0.3, tau=0.0)
    margin = losses.preference_margin(*logs[:2], *logs[4:])
    np.testing.assert_allclose(h, margin, rtol=1e-12)


def test_pairs_from_elsewhere_play_against_whoever_drew_them(x64):
    uniform = jnp.full(4, 0.25)
    anchor = REFERENCE ** (TAU / INVERSE_STEP) * PREVIOUS ** (1 - TAU / INVERSE_STEP)
    trap = anchor * jnp.exp(GAME @ uniform / INVERSE_STEP)
    gradient = at(jnp.log(trap), "label", data=uniform)[1]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    step = run(tabular.self_play_step, PREVIOUS, REFERENCE, GAME, eta=1 / INVERSE_STEP, tau=TAU)
    assert np.abs(at(jnp.log(step), "label", data=uniform)[1]).max() > 1e-3


def test_offline_ipo_depends_on_the_data_and_online_inpo_does_not(x64):
    uniform, data, game, tau = (
        jnp.full(3, 1 / 3),
        jnp.array([0.6, 0.3, 0.1]),
        tabular.dice_game(),
        0.1,
    )
    np.testing.assert_allclose(game @ data, [0.511111, 0.472222, 0.516667], atol=1e-6)
    optimum = run(tabular.regularized_best_response, data, uniform, game, tau=tau)
    np.testing.assert_allclose(optimum, [0.365639, 0.247834, 0.386527], atol=1e-6)
    pairs = jnp.outer(data, data).ravel() * game.ravel()
    i, j = (x.ravel() for x in np.indices((3, 3)))

    def offline(z):
        ratio = jax.nn.log_softmax(z) - jnp.log(uniform)
        return pairs @ losses.ipo(ratio[i], ratio[j], beta=tau)

    np.testing.assert_allclose(grad(offline)(jnp.log(optimum)), 0.0, atol=1e-12)
    iterate = lambda _, p: tabular.self_play_step(p, uniform, game, eta=5.0, tau=tau)  # noqa: E731
    online = jax.jit(lambda: jax.lax.fori_loop(0, 200, iterate, data))()
    np.testing.assert_allclose(online, uniform, atol=1e-8)
    # With two answers preferences are a reward, and the data does not matter.
    two, reference = jnp.array([[0.5, 0.7], [0.3, 0.5]]), jnp.array([0.25, 0.75])
    best = run(tabular.regularized_best_response, reference, reference, two, tau=tau)
    nash = run(tabular.regularized_nash, reference, two, tau=tau, iterations=500)
    np.testing.assert_allclose(best, nash, atol=1e-8)


def test_sppo_with_many_answers_is_a_step_of_multiplicative_weights(x64):
    # With the normaliser that the step has, the regression is exact; SPPO takes eta / 2.
    eta = 0.2
    step = run(tabular.self_play_step, PREVIOUS, REFERENCE, GAME, eta=eta, tau=0.0)
    rates = GAME @ PREVIOUS
    losses_there = losses.sppo(jnp.log(step / PREVIOUS), rates, eta=eta)
    normaliser = jnp.log(PREVIOUS @ jnp.exp(eta * (rates - 0.5)))
    np.testing.assert_allclose(losses_there, normaliser**2, atol=1e-12)
    assert normaliser**2 < 1e-4


def test_sppo_has_the_gradient_of_its_paper_at_the_step_of_its_paper():
    """Wu et al. write (log ratio - eta (P - 1/2))^2 with eta = 1e3."""
    slope = grad(lambda x: losses.sppo(x, jnp.array([1.0, 0.5, 0.0]), eta=1e3).sum())
    np.testing.assert_allclose(slope(jnp.zeros(3)), [-1000.0, 0.0, 1000.0])


finite = st.floats(-30.0, 30.0, width=32)


@given(st.lists(finite, min_size=6, max_size=6), finite)
def test_contrast_is_antisymmetric_and_blind_to_constants(values, shift):
    logs = [jnp.array([x]) for x in values]
    h = contrast_of(*logs, inverse_step=0.5, tau=0.2)
    swapped = [logs[k] for k in (1, 0, 3, 2, 5, 4)]
    np.testing.assert_allclose(contrast_of(*swapped, inverse_step=0.5, tau=0.2), -h, atol=1e-4)
    for model in range(3):
        moved = [x + shift * (k // 2 == model) for k, x in enumerate(logs)]
        np.testing.assert_allclose(contrast_of(*moved, inverse_step=0.5, tau=0.2), h, atol=1e-4)


def test_edges_are_finite():
    inf = jnp.inf
    cases = [-1.0, -inf, -5000.0]
    logs = [x.ravel() for x in jnp.meshgrid(*[jnp.array(cases)] * 6)]

    def total(*x):
        h = losses.inpo_contrast(*x, inverse_step=0.005, tau=0.001)
        values = losses.inpo(h, inverse_step=0.005), losses.ipo(*x[:2], beta=0.005)
        return sum(v.sum() for v in values), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*logs)
    assert np.all(np.isfinite(gradients)) and np.all(np.isfinite(values))
    bad = jnp.array([jnp.nan, inf, -inf])
    single = lambda x: losses.sppo(x, jnp.full(3, 0.5), eta=1.0) + losses.inpo(x, inverse_step=1.0)  # noqa: E731
    np.testing.assert_allclose(single(bad), [0.25, 400 + 19.5**2, 400 + 20.5**2], rtol=1e-6)
    np.testing.assert_array_equal(grad(lambda x: single(x).sum())(bad), 0.0)


def test_equal_answers_have_no_gradient_and_an_empty_batch_is_empty():
    equal = grad(lambda x: losses.inpo(x - x, inverse_step=0.5).sum())(jnp.ones(2))
    np.testing.assert_array_equal(equal, 0.0)
    assert losses.inpo(jnp.zeros(0), inverse_step=0.5).shape == (0,)
    assert losses.inpo_contrast(*[jnp.zeros(0)] * 6, inverse_step=0.5, tau=0.1).shape == (0,)


def test_bad_arguments():
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"tau is 0.2, expected at most inverse_step = 0.1"):
        losses.inpo_contrast(*[zero] * 6, inverse_step=0.1, tau=0.2)
    with pytest.raises(ValueError, match="inverse_step is 0"):
        losses.inpo_contrast(*[zero] * 6, inverse_step=0.0, tau=0.0)
    with pytest.raises(ValueError, match="tau"):
        losses.inpo_contrast(*[zero] * 6, inverse_step=0.1, tau=-0.1)
    with pytest.raises(ValueError, match="chosen_previous_logp"):
        losses.inpo_contrast(*[zero] * 4, jnp.zeros(3), zero, inverse_step=0.1, tau=0.1)
    with pytest.raises(ValueError, match="preference"):
        losses.inpo(zero, jnp.zeros(3), inverse_step=0.1)
    with pytest.raises(ValueError, match="inverse_step is -1"):
        losses.inpo(zero, inverse_step=-1.0)
    with pytest.raises(ValueError, match="win_rate"):
        losses.sppo(zero, jnp.zeros(3), eta=0.1)
    with pytest.raises(ValueError, match="logratio"):
        losses.sppo(jnp.zeros((2, 2)), zero, eta=0.1)


def test_steps_are_positive():
    with pytest.raises(ValueError, match="inverse_step is 0"):
        losses.inpo(jnp.zeros(2), jnp.ones(2), inverse_step=0.0)
    with pytest.raises(ValueError, match="eta is 0"):
        losses.sppo(jnp.zeros(2), jnp.ones(2), eta=0.0)
