"""Every array primitive under jit, vmap and bfloat16, and with the worst inputs.

One table: a name, a function of the arrays it differentiates and those it does not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import advantages, diagnostics, losses, masking, selection
from polgrad.curricula import bandit

INF = np.inf
RNG = np.random.default_rng(7)


def arrays(*shapes):
    # Multiples of 1/8 are exact in bfloat16, so both precisions see the same numbers.
    return [np.round(RNG.normal(-1, 1, shape) * 8) / 8 for shape in shapes]


LOGP, BEHAVIOR, REFERENCE = arrays((3, 4), (3, 4), (3, 4))
TOKEN_ADVANTAGES, REWARDS, NOISE = arrays((3, 4), (3, 4), (3, 4))
(VALUES,) = arrays((3, 5))
SIGNS = np.array([1.5, -0.5, 0.0])
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], float)
CHOSEN = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], float)
DISCOUNTS = np.full((3, 4), 0.875)

TOKEN = (LOGP, BEHAVIOR, TOKEN_ADVANTAGES)
RETURNS = (REWARDS, VALUES, DISCOUNTS)


def cut(function, **settings):
    """With a truncation in the middle."""
    return lambda *x: function(*x[:-1], truncated=MASK, final_values=x[-1], **settings)


# name: (function, arguments)
TABLE = {
    "reinforce": (losses.reinforce, (LOGP, TOKEN_ADVANTAGES)),
    "ppo_clip": (lambda *x: losses.ppo_clip(*x, dual_clip=3.0), TOKEN),
    "gspo": (losses.gspo, (LOGP, BEHAVIOR, SIGNS, MASK)),
    "gspo_token": (losses.gspo_token, (*TOKEN, MASK)),
    "cispo": (losses.cispo, TOKEN),
    "sapo": (losses.sapo, TOKEN),
    "clip_cov": (losses.clip_cov, (*TOKEN, CHOSEN)),
    "kl_cov": (losses.kl_cov, (*TOKEN, CHOSEN)),
    "sequence_score": (
        lambda *x: losses.sequence_score(*x, kind="l_ratio"),
        (LOGP, BEHAVIOR, MASK),
    ),
    "disco": (losses.disco, (LOGP, CHOSEN)),
    "disco_b": (lambda *x: losses.disco_b(*x, surrogate="logistic"), (LOGP, CHOSEN)),
    "behavior_kl": (lambda *x: losses.behavior_kl(*x, kind="k3"), (LOGP, BEHAVIOR)),
    "kl_hinge": (losses.kl_hinge, (np.abs(LOGP),)),
    "nft": (losses.nft, (LOGP, BEHAVIOR, CHOSEN[:, 0], np.array([0.5, 0.25, 1.0]))),
    "kl_penalty": (losses.kl_penalty, (LOGP, REFERENCE)),
    "kl_penalty_k3": (lambda *x: losses.kl_penalty(*x, gradient="k3"), (LOGP, REFERENCE)),
    "unlikelihood": (losses.unlikelihood, (-np.abs(LOGP) - 0.125,)),
    "value_loss": (
        lambda v, t, o: losses.value_loss(v, t, old_values=o, clip=0.25),
        (LOGP, BEHAVIOR, REFERENCE),
    ),
    "td_loss": (losses.td_loss, (VALUES[:, :4], REWARDS, DISCOUNTS, VALUES[:, 1:])),
    "ipo": (losses.ipo, (SIGNS, VALUES[:, 0])),
    "inpo_contrast": (
        lambda *x: losses.inpo_contrast(*x, eta=0.5, tau=0.25),
        (*LOGP[:, :2].T, *BEHAVIOR[:, :2].T, *REFERENCE[:, :2].T),
    ),
    "inpo": (lambda *x: losses.inpo(*x, eta=0.5), (SIGNS, CHOSEN[:, 0])),
    "sppo": (lambda *x: losses.sppo(*x, eta=0.5), (SIGNS, CHOSEN[:, 0])),
    "importance_weights": (losses.truncated_importance_weights, (LOGP, BEHAVIOR, MASK)),
    "sequence_weights": (
        lambda *x: losses.truncated_importance_weights(*x, level="sequence", mode="mask"),
        (LOGP, BEHAVIOR, MASK),
    ),
    "sequence_mask": (losses.off_policy_sequence_mask, (LOGP, BEHAVIOR, SIGNS, MASK)),
    "copg": (lambda *x: losses.copg(*x, beta=0.5), (LOGP, REFERENCE, REWARDS, TOKEN_ADVANTAGES)),
    "copg_group": (
        lambda x, r, v: losses.copg_group(x, r, beta=0.5, valid=v),
        (LOGP, REWARDS, MASK),
    ),
    "discounted_returns": (cut(advantages.discounted_returns), (REWARDS, DISCOUNTS, REFERENCE)),
    "lambda_returns": (cut(advantages.lambda_returns), (*RETURNS, REFERENCE)),
    "gae": (cut(advantages.gae), (*RETURNS, REFERENCE)),
    "vtrace": (cut(advantages.vtrace), (*RETURNS, LOGP, REFERENCE)),
    "success_rate": (lambda r, v: advantages.success_rate(r, valid=v), (REWARDS, MASK)),
    "difficulty_weight": (advantages.difficulty_weight, (CHOSEN / 2,)),
    "group": (advantages.group_relative, (REWARDS,)),
    "batch": (lambda r: advantages.group_relative(r, scale="batch"), (REWARDS,)),
    "leave_one_out": (lambda r, v: advantages.leave_one_out(r, valid=v), (REWARDS, MASK)),
    "remax": (advantages.remax, (REWARDS, SIGNS)),
    "whiten": (advantages.whiten, (REWARDS, MASK)),
    "reinforce_plus_plus": (advantages.reinforce_plus_plus, (REWARDS, MASK)),
    "reinforce_plus_plus_group": (
        lambda r, m: advantages.reinforce_plus_plus(r, m, group_size=3),
        (REWARDS, MASK),
    ),
    "overlong": (lambda n: advantages.overlong_penalty(n, max_length=2, buffer=1), (REWARDS,)),
    "regularized_rewards": (
        lambda r, x: advantages.regularized_rewards(r, x, beta=0.5),
        (REWARDS, LOGP),
    ),
    "dynamic_sampling": (advantages.dynamic_sampling_filter, (REWARDS,)),
    "weights": (lambda m: masking.weights(m, mode="sequence"), (MASK,)),
    "reduce": (lambda x, m: masking.reduce(x, m, mode="token"), (LOGP, MASK)),
    "sequence_sum": (masking.sequence_sum, (LOGP, MASK)),
    "covariance_top": (
        lambda *x: selection.covariance_top(*x, fraction=0.25),
        (LOGP, TOKEN_ADVANTAGES, MASK),
    ),
    "covariance_band": (
        lambda *x: selection.covariance_band(*x, fraction=0.25, low=-1.0),
        (LOGP, TOKEN_ADVANTAGES, MASK, NOISE),
    ),
    "absolute_advantage": (bandit.absolute_advantage, (TOKEN_ADVANTAGES, MASK)),
    "bandit": (
        lambda v, c: bandit.update(bandit.BanditState(v, c), c, v, decay_unseen=True),
        (REWARDS[0], REWARDS[1]),
    ),
    "boltzmann": (lambda v, m: bandit.boltzmann(v, tau=0.5, mask=m), (REWARDS, MASK)),
    "category_mean": (
        lambda v: bandit.category_mean(v, jnp.arange(4) % 3, categories=3),
        (REWARDS[0],),
    ),
    "diagnostics": (
        lambda x, b, a, m: (
            diagnostics.ratio(x, b, m),
            diagnostics.clip_fraction(x, b, a, m),
            diagnostics.kl(x, b, m),
            diagnostics.mean_entropy(x, m),
            diagnostics.effective_sample_size(x, m),
            diagnostics.explained_variance(x, b, m),
            diagnostics.entropy_change(x, b),
        ),
        (LOGP, BEHAVIOR, TOKEN_ADVANTAGES, MASK),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_vmap_equals_the_loop_and_bfloat16_accumulates_in_float32(name):
    function, args = TABLE[name]
    args = [np.asarray(x, np.float32) for x in args]
    mirrored = [np.ascontiguousarray(x[::-1]) for x in args]
    stacked = [np.stack(x) for x in zip(args, mirrored, strict=True)]

    @jax.jit  # one program: the compilations are the cost of this test
    def everything(args, mirrored, stacked):
        low = [jnp.asarray(x, jnp.bfloat16) for x in args]
        alone = function(*args), function(*mirrored)
        return alone, jax.vmap(function)(*stacked), function(*low)

    alone, batched, low = everything(args, mirrored, stacked)

    leaves = jax.tree.leaves
    for i in range(2):
        for x, y in zip(leaves(batched), leaves(alone[i]), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-6)
    for x, y in zip(leaves(low), leaves(alone[0]), strict=True):
        assert x.dtype == y.dtype in (jnp.float32, jnp.bool)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# Rows: everything excluded in some way | ordinary, with holes | all masked.
EDGE_LOGP = np.array([[-INF, -INF, -1.0, -900.0], [-1.0, -1.0, 0.0, -1.0], [-INF, 0.0, 0.0, -1.0]])
EDGE_BEHAVIOR = np.array(
    [[-1.0, -INF, -INF, 0.0], [-1.0, 0.0, -90.0, -1.0], [0.0, -INF, 0.0, -INF]]
)
EDGE_ADVANTAGES = np.array([[1.0, 0.0, -1.0, 2.0], [0.0, 0.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
EDGE_REWARDS = np.array([[0.1, 0.1, 0.1, 0.1], [np.nan, 1.0, np.nan, INF], [np.nan] * 4])
EDGES = (EDGE_LOGP, EDGE_BEHAVIOR, EDGE_ADVANTAGES)
EDGE_TABLE = {
    "reinforce": (EDGE_LOGP, EDGE_ADVANTAGES),
    "ppo_clip": EDGES,
    "gspo": (EDGE_LOGP, EDGE_BEHAVIOR, SIGNS, MASK),
    "gspo_token": (*EDGES, MASK),
    "cispo": EDGES,
    "sapo": EDGES,
    "clip_cov": (*EDGES, CHOSEN),
    "kl_cov": (*EDGES, CHOSEN),
    "sequence_score": (*EDGES[:2], MASK),
    "disco": (EDGE_LOGP, CHOSEN),
    "disco_b": (EDGE_LOGP, CHOSEN),
    "behavior_kl": EDGES[:2],
    "nft": (*EDGES[:2], CHOSEN[:, 0], np.array([0.0, 0.5, 1.0])),
    "kl_penalty": EDGES[:2],
    "kl_penalty_k3": EDGES[:2],
    "copg": (EDGE_LOGP, EDGE_BEHAVIOR, EDGE_REWARDS, EDGE_ADVANTAGES),
    "copg_group": (EDGE_LOGP, EDGE_REWARDS, MASK),
    "unlikelihood": (EDGE_LOGP,),
    "importance_weights": (*EDGES[:2], MASK),
    "sequence_weights": (*EDGES[:2], MASK),
    "group": (EDGE_REWARDS,),
    "batch": (EDGE_REWARDS,),
    "leave_one_out": (EDGE_REWARDS, MASK),
    "remax": (EDGE_REWARDS, np.array([np.nan, 0.0, 1.0])),
    "whiten": (np.where(MASK > 0, 0.1, np.nan), MASK),
    "reinforce_plus_plus": (np.where(MASK > 0, 0.1, np.nan), MASK),
    "reinforce_plus_plus_group": (np.where(MASK > 0, 0.1, np.nan), MASK),
    "vtrace": (*RETURNS, np.where(EDGE_LOGP < -1, EDGE_LOGP, INF), REFERENCE),
}


@functools.cache
def differentiated(name):
    """Gradients of a weighted sum of the results with respect to every argument; the results."""
    function, args = TABLE[name]

    def total(*x):
        result = function(*x)
        weighted = [
            jnp.sum(leaf * (1.0 + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape)))
            for leaf in jax.tree.leaves(result)
        ]
        return sum(weighted), result

    return jax.jit(jax.grad(total, argnums=tuple(range(len(args))), has_aux=True))


@pytest.mark.parametrize("name", EDGE_TABLE)
@pytest.mark.parametrize("empty", [False, True], ids=["edges", "nothing_valid"])
def test_values_and_gradients_are_finite_at_the_edges(name, empty):
    args = [jnp.asarray(x, jnp.float32) for x in EDGE_TABLE[name]]
    if empty:
        args = [jnp.zeros_like(x) if y is MASK else x for x, y in zip(args, EDGE_TABLE[name])]

    gradients, values = differentiated(name)(*args)
    for leaf in jax.tree.leaves((values, gradients)):
        assert np.all(np.isfinite(leaf)), leaf


@pytest.mark.parametrize(
    "name",
    [
        "reinforce",
        "ppo_clip",
        "gspo",
        "gspo_token",
        "cispo",
        "sapo",
        "clip_cov",
        "kl_cov",
        "disco",
        "disco_b",
        "behavior_kl",
        "nft",
        "kl_penalty",
    ],
)
def test_losses_differentiate_the_current_policy_alone(name):
    args = [jnp.asarray(x, jnp.float32) for x in TABLE[name][1]]
    gradients, _ = differentiated(name)(*args)
    assert np.any(gradients[0] != 0)
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, 0.0)
