"""Every public primitive under jit, vmap and bfloat16, and with the worst inputs.

Arguments are drawn from the annotations, so a new function is examined without being named here.
What is found is the table in docs/guarantees.md.
"""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from polgrad import advantages, losses, masking, ratios, reward_models, selection
from polgrad.conformance import edges, inputs
from polgrad.conformance.catalogue import Primitive
from polgrad.curricula import bandit

PRIMITIVES = {primitive.name: primitive for primitive in edges.examinable()}


def variant(function, *optional, **settings):
    """A function with other settings, and arguments that are drawn though they have a default."""
    (name,) = (p.name for p in PRIMITIVES.values() if p.function is function)
    return Primitive(name, functools.partial(function, **settings)), optional


CUT = ("truncated", "final_values")
VARIANTS = {
    "ppo_clip dual": variant(losses.ppo_clip, dual_clip=3.0),
    "sequence_score l_ratio": variant(losses.sequence_score, kind="l_ratio"),
    "disco_b logistic": variant(losses.disco_b, surrogate="logistic"),
    "behavior_kl k3": variant(losses.behavior_kl, kind="k3"),
    "kl_penalty k3": variant(losses.kl_penalty, gradient="k3"),
    "kl_penalty off-policy": variant(losses.kl_penalty, "behavior_logp"),
    "value_loss clipped": variant(losses.value_loss, "old_values", clip=0.25),
    "bradley_terry": variant(reward_models.bradley_terry, "margin", "label_smoothing", "weights"),
    "f_dpg off-policy": variant(losses.f_dpg, "behavior_logp"),
    "sequence weights": variant(ratios.truncated_importance_weights, level="sequence", mode="mask"),
    "rejection by sequence": variant(selection.rejection_mask, level="mean", kind="k3"),
    "discounted_returns cut": variant(advantages.discounted_returns, *CUT),
    "lambda_returns cut": variant(advantages.lambda_returns, *CUT),
    "gae cut": variant(advantages.gae, *CUT),
    "vtrace cut": variant(advantages.vtrace, *CUT),
    "group_relative batch": variant(advantages.group_relative, scale="batch"),
    "reinforce_plus_plus group": variant(advantages.reinforce_plus_plus, group_size=3),
    "weights sequence": variant(masking.weights, mode="sequence"),
    "bandit decay": variant(bandit.update, decay_unseen=True),
}

# Logarithms of 0, where the docstring says so.
INFINITE = {"selection.token_covariance"}
# Arithmetic on rewards: a NaN stays one, so that what comes after still knows it for invalid.
NAN_STAYS = {
    "advantages.discounted_returns",
    "advantages.gae",
    "advantages.lambda_returns",
    "advantages.missing_eos_reward",
    "advantages.regularized_rewards",
    "advantages.vtrace",
    "reward_models.aggregate_groups",
    "reward_models.standardize_groups",
}
# What is fixed once the samples are drawn.
FIXED = {
    "advantages",
    "behavior_logp",
    "discounts",
    "labels",
    "lengths",
    "mask",
    "next_values",
    "noise",
    "old_values",
    "preference",
    "reference_logp",
    "reference_logratio",
    "rewards",
    "success_rate",
    "targets",
    "teacher_logp",
    "valid",
    "weights",
    "win_rate",
}
FIXED_ENDINGS = ("_reference_logp", "_previous_logp", "_lengths", "_rewards")


def is_exact_table(name):
    """Games are tables in float32 or float64, and targets logarithms that may be of 0."""
    return name.startswith(("tabular.", "distributions."))


def check(primitive, found):
    leaves = jax.tree.leaves
    for x, y in zip(leaves(found.values[0]), leaves(found.alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg="vmap")
    for x, y in zip(leaves(found.low), leaves(found.alone), strict=True):
        assert x.dtype == y.dtype != jnp.bfloat16
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg="bfloat16")
    for situation, value, gradient in zip(found.situations, found.values, found.gradients):
        wrong = [n for n, g in gradient.items() if not np.all(np.isfinite(g))]
        if any(not np.all(np.isfinite(x)) for x in leaves(value)):
            wrong.append("the value")
        unknown = "NaN" in situation.name and primitive.name in NAN_STAYS
        exempt = unknown or is_exact_table(primitive.name) or primitive.name in INFINITE
        assert exempt or not wrong, f"{situation.name}: not finite: {', '.join(wrong)}"


@pytest.mark.sampled(60)
@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_primitive_keeps_what_the_table_says(name):
    found = edges.examine(PRIMITIVES[name])
    check(PRIMITIVES[name], found)
    assert pages.generate.guarantee(PRIMITIVES[name], found) in pages.lines("guarantees"), (
        pages.HINT
    )
    if name.startswith("losses.") and name != "tabular.implicit_negative_policy":
        leaks = [n for n in found.reached if n in FIXED or n.endswith(FIXED_ENDINGS)]
        assert is_exact_table(name) or not leaks, f"a gradient reaches {leaks}"


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", VARIANTS)
def test_settings_keep_it_too(name):
    primitive, optional = VARIANTS[name]
    check(primitive, edges.examine(primitive, optional=optional))


# --- Every number can be swept ------------------------------------------------------------------

PAIR = tuple[float, float]
# Numbers whose default is None.
UNSET = {
    "clip": 0.5,
    "clip_logits": 0.25,
    "dual_clip": 2.0,
    "fraction": 0.5,
    "length": 3.0,
    "max_margin": 1.0,
    "student_margin": 0.5,
}
# What else a number needs: optional arrays, and settings.
CONSTANT = (), {"mode": "constant"}
NEEDS = {
    ("selection.threshold_filter", "share"): (("noise",), {}),
    ("data.preferences.large_margin_pairs", "student_margin"): (("teacher",), {}),
    ("losses.value_loss", "clip"): (("old_values",), {}),
    ("masking.reduce", "length"): CONSTANT,
    ("masking.weights", "length"): CONSTANT,
}
# Numbers that fix how many rows a result has.
SHAPES = {("data.preferences.mix_replay", "fraction"), ("data.preferences.mix_replay", "decay")}


def numbers(primitive):
    """Keywords that take a float. Integers are static: they fix a shape or the length of a loop."""
    for name, parameter in inspect.signature(primitive.function).parameters.items():
        kinds = {parameter.annotation, *typing.get_args(parameter.annotation)}
        if kinds & {float, PAIR} and (primitive.name, name) not in SHAPES:
            yield name, parameter.default, PAIR in kinds


def two_values(default, pair, unset):
    """A value of a number and another one."""
    if pair:
        low, high = (0.5, 1.5) if default is None else default
        return (low, high), (0.25 * low, high + 0.5)
    value = unset if default is None else default
    other = {0.0: 0.25, np.inf: 2.0, -np.inf: -2.0}.get(value, 0.75 * value)
    return value, other


SWEPT = sorted(name for name, primitive in PRIMITIVES.items() if any(numbers(primitive)))


# `make test-slow` has the rooms that no loss of a run calls.
QUICK = ("losses", "advantages", "masking", "selection")


@pytest.mark.sampled(24)
@pytest.mark.parametrize(
    "name",
    [
        name if name.split(".")[0] in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in SWEPT
    ],
)
def test_every_number_can_be_swept(name):
    """Each number, traced and under `vmap`, gives what its values give one by one."""
    primitive = PRIMITIVES[name]
    for keyword, default, pair in numbers(primitive):
        optional, more = NEEDS.get((name, keyword), ((), {}))
        example = inputs.draw(primitive, np.random.default_rng(0), optional=optional)
        settings = example.settings | more
        if keyword in example.arrays:  # an array of numbers, which is vmapped above
            continue
        if default is inspect.Parameter.empty:
            default = settings[keyword]
        values = two_values(default, pair, UNSET.get(keyword))
        settings.pop(keyword, None)
        call = functools.partial(primitive.function, **example.arrays, **settings)

        def at(value, call=call, keyword=keyword):
            return call(**{keyword: value})

        stacked = jax.tree.map(lambda *x: jnp.stack([*map(jnp.asarray, x)]), *values)
        together = jax.tree.leaves(jax.jit(jax.vmap(at))(stacked))
        for place, value in enumerate(values):
            for x, y in zip(jax.tree.leaves(at(value)), together, strict=True):
                np.testing.assert_allclose(x, y[place], rtol=1e-4, atol=1e-5, err_msg=keyword)


# --- Lists ----------------------------------------------------------------------------------------

LISTED = [n for n in PRIMITIVES if n.split(".")[0] in ("ratios", "masking", "advantages", "losses")]


@pytest.mark.sampled(60)
@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("name", LISTED)
def test_nested_lists_are_arrays(name):
    primitive = PRIMITIVES[name]
    example = inputs.draw(primitive, np.random.default_rng(0))
    lists = {argument: x.tolist() for argument, x in example.arrays.items()}
    found = primitive.function(**lists, **example.settings)
    wanted = primitive.function(**example.arrays, **example.settings)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
