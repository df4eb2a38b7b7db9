"""Every setting of every algorithm does something: it changes a batch, a gradient or a sample."""

import dataclasses
import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import _parts, algorithms
from polgrad.contract import Average, Context, Initial, Outputs, Pair, Previous

KEY = jax.random.key(3)

# Terms that a paper leaves out by default are switched on, so that what shapes them has an effect.
ON = {
    "kl": algorithms.KL(0.3),
    "entropy": algorithms.Entropy(0.1),
    "overlong": algorithms.OverlongPenalty(2),
    "sampler_correction": algorithms.TruncatedWeights(1.1),
    "label_smoothing": 0.1,
    "fraction": 0.3,
    "low": -0.5,
    "high": 0.5,
    "max_margin": 0.5,
    "clip_logits": 0.1,
    "clip": 0.1,
}
CHOSEN = {
    "hinge": {"beta": 0.3},  # the margins of some pairs are beyond the kink
    "ppo_clip_sequence": {"clip_high": 5.0},
    "best_of_n": {"negative": "sum"},
    "reward_weighted": {"clip": (0.01, 50.0)},
    "tpo": {"third": "chosen"},
}
OTHER = {
    "clip_low": lambda value: 0.01 if value > 0.1 else 0.9,
    "clip_high": lambda value: 0.01 if value > 0.1 else 0.9,
    "dual_clip": 1.05,
    "buffer": 3,
    "cap": 0.9,
    "cap_low": 0.97,
    "cap_high": 1.03,
    "fraction": 0.8,
    "low": 0.2,
    "high": 0.2,
    "value_clip": 0.01,
    "log_ratio_clip": 0.1,
    "baseline_window": 5,
    "positive": (0.9, 1.05),
    "negative": lambda value: "worst" if isinstance(value, str) else (0.5, 1.0),
    "clip": lambda value: (0.9, 1.1) if isinstance(value, tuple) else 0.01,
    "epsilon": 0.3,
    "delta": lambda value: 0.05 if value < 0.5 else 100.0,
    "clip_logits": 5.0,
}


# Parts whose numbers have no default.
PARTS = {Average: Average(0.6), Previous: Previous(every=4)}
FEW = 3
"""Of a choice among more parts, the numbers of the others are tested with their own algorithms."""


def variants(settings, put=lambda x: x):
    """Pairs of settings whose outcomes must differ, by what is changed: a number, a part, none."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), field.name
        here = functools.partial(_put, settings, name, put)
        choice = _parts.choices(type(settings)).get(name)
        if choice is None:
            yield name, here(value), here(other(field, value))
            continue
        others = [PARTS.get(x) or x() for x in choice.kinds.values() if x is not type(value)]
        for part in [*others, *([None] if choice.optional else [])]:
            yield f"{name} {type(part).__name__}", here(value), here(part)
        for part in [value, *(others if len(choice.kinds) <= FEW else [])]:
            for what, a, b in variants(part, here):
                yield f"{name}.{what}", a, b


def _put(settings, name, put, value):
    return put(dataclasses.replace(settings, **{name: value}))


def other(field, value):
    """Another value of a setting that is no part."""
    if field.name in OTHER:
        found = OTHER[field.name]
        return found(value) if callable(found) else found
    if isinstance(value, str):
        return next(x for x in typing.get_args(field.type) if x != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 0.5 * value


def inputs(kind):
    """A rollout with rewards that are equal in one group, its algorithm's sizes, and a policy."""
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    experience["rewards"] = jnp.round(experience["rewards"]).at[8:12].set(1.0)
    if kind == "holes":
        holes = np.random.default_rng(5).random((PROMPTS * GROUP, T)) < 0.3
        experience["mask"] = experience["mask"] * ~holes
    moved = 0.0 if kind == "on-policy" else 0.4
    noise = jax.random.normal(jax.random.key(1), experience["mask"].shape)
    logp = experience["behavior_logp"] + moved * noise * experience["mask"]
    if kind == "on-policy":
        # The sampler computes in another precision: a gap that a correction sees.
        logp = logp + 0.3 * noise * experience["mask"]
    return experience, Context(GROUP, T, PROMPTS, on_policy=kind == "on-policy"), logp


def number(kind):
    """A number for a named policy, another for each kind and each value of its own number."""
    match kind:
        case Initial():
            return 0.0
        case Average(decay):
            return -1.0 - 5.0 * decay
        case Previous(every):
            return 1.0 + 2.0 * every


def with_policies(experience, algorithm):
    """The rollout with the log-probabilities of the policies that an algorithm names."""
    mask = experience["mask"]
    noise = jax.random.normal(jax.random.key(2), mask.shape)
    for name, kind in algorithm.policies.items():
        logp = experience["reference_logp"] + 0.5 * number(kind) * noise * mask
        experience[f"{name}_logp"] = logp
    return experience


@functools.cache
def outcome(settings, kind):
    """What the settings decide: batch, sum of the metrics' inputs, gradient, opponent, state."""
    experience, context, logp = inputs(kind)
    algorithm = settings.build(context)
    experience = with_policies(experience, algorithm)
    if not algorithm.samples and isinstance(algorithm.unit, Pair):
        answers = len(algorithm.unit.roles)
        rows = len(logp) // answers * answers
        experience = jax.tree.map(lambda x: x[:rows].reshape(-1, answers, *x.shape[1:]), experience)
    state = algorithm.init(KEY)
    # Twice: a moving baseline says nothing in the first step.
    state, _, _ = algorithm.prepare(state, experience, KEY)
    _, batch, _ = algorithm.prepare(state, experience, KEY)
    # Online pairs are fewer than the samples: the first rows stand for them.
    lead = batch["mask"].shape[:-1]
    rows = slice(int(np.prod(lead)))
    logp = logp[rows].reshape(*lead, T)
    moved = 1.0 if context.on_policy else 1.1
    values = moved * experience["values"].reshape(-1, T + 1)[rows].reshape(*lead, T + 1)

    def loss(logp, entropy, values):
        needs = algorithm.needs
        outputs = Outputs(
            logp,
            entropy if needs.entropy else None,
            values if needs.values else None,
        )
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, KEY)
        return algorithm.loss(outputs, chosen)[0]

    gradient = jax.grad(loss, argnums=(0, 1, 2))(logp, 1.0 + jnp.abs(logp), values)
    samples = algorithm.collect.samples
    versus = samples.versus if samples else None
    opponent = versus and (versus.weight, number(algorithm.policies[versus.name]))
    return {"gradient": gradient, "opponent": opponent}, dict(algorithm.policies)


def base(name):
    """The settings of an algorithm with every optional term on."""
    found = algorithms.find(name)
    names = {f.name for f in dataclasses.fields(found)}
    on = {k: v for k, v in ON.items() if k in names}
    if name in ("rloo", "reinforce_plus_plus", "ppo"):
        on["kl"] = algorithms.RewardKL(0.3)
    return found(**(on | CHOSEN.get(name, {})))


def live(settings, field, kind):
    """Whether another value of one setting changes the outcome."""
    value = getattr(settings, field.name)
    values = value, None if dataclasses.is_dataclass(value) else other(field, value)
    return differ(*(dataclasses.replace(settings, **{field.name: x}) for x in values), kind)


def differ(one, two, kind):
    """Whether two settings have different outcomes."""
    (a, policies), (b, policies_of_two) = outcome(one, kind), outcome(two, kind)
    if policies != policies_of_two:
        return True
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(
        x.shape != y.shape or not np.allclose(x, y, rtol=1e-6, atol=1e-9)
        for x, y in ((np.asarray(x), np.asarray(y)) for x, y in leaves)
    )


def dead(settings):
    """What changes nothing on any of the three inputs: settings, parts, numbers of parts."""
    kinds = ("off-policy", "holes", "on-policy")
    return [
        what
        for what, one, two in variants(settings)
        if not any(differ(one, two, kind) for kind in kinds)
    ]


# One of a kind in the quick suite; the others, which share its code, in `make test-slow`.
KINDS = ("cispo", "dpo", "f_dpg", "grpo", "inpo", "kl_cov", "nash_md", "ppo", "topr")
NAMES = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(algorithms.NAMES)
]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_something(name):
    assert dead(base(name)) == []


def test_a_setting_that_nothing_reads_is_found():
    @dataclasses.dataclass(frozen=True)
    class WithDeadField(algorithms.CISPO):
        clip_low: float = 0.2

    on = {k: v for k, v in ON.items() if k in algorithms.CISPO.__dataclass_fields__}
    assert dead(WithDeadField(**on)) == ["clip_low"]


def test_a_part_that_nothing_reads_is_found():
    @dataclasses.dataclass(frozen=True)
    class WithDeadPart(algorithms.DPO):
        reference: Initial | Average = dataclasses.field(default=Initial(), kw_only=True)

        def _policies(self):
            return {"reference": Initial()}

    found = WithDeadPart(label_smoothing=0.1)
    assert dead(found) == ["reference Average", "reference.decay"]


@pytest.mark.parametrize("name", NAMES)
def test_settings_said_to_be_inert_are_inert_and_no_others(name):
    """The sentences before step 1 name exactly the changed settings without effect in that run."""
    settings = base(name)
    numbers = [
        field
        for field in dataclasses.fields(settings)
        if field.name not in ON and (field.name in OTHER or type(field.default) is float)
    ]
    new = {field.name: other(field, getattr(settings, field.name)) for field in numbers}
    settings = dataclasses.replace(settings, **new)
    for kind in ("on-policy", "off-policy"):
        algorithm = settings.build(inputs(kind)[1])
        if kind == "off-policy" and not algorithm.reuse:
            continue
        sentences = [w.partition("no effect")[0] for w in algorithm.warnings if "no effect" in w]
        said = set(re.findall(r"\w+", " ".join(sentences)))
        for field in dataclasses.fields(settings):
            if field.name in said:
                assert not live(settings, field, kind), field.name
            elif kind == "on-policy" and "clip" in field.name and field.name != "log_ratio_clip":
                assert live(settings, field, kind), field.name


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_defaults_without_effect_are_said_only_where_the_algorithm_becomes_another(name):
    warnings = algorithms.find(name)().build(inputs("on-policy")[1]).warnings
    warnings = [sentence for sentence in warnings if "no effect" in sentence]
    assert bool(warnings) == (name in ("topr", "kl_cov"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (algorithms.GRPO(clip_high=0.28), "clip_high has no effect"),
        (algorithms.GRPO(clip_low=0.1, clip_high=0.3), "clip_low, clip_high have no effect"),
        (algorithms.DAPO(clip_high=0.2), "clip_high has no effect"),
        (algorithms.PPO(value_clip=0.5), "value_clip has no effect"),
        (algorithms.NFT(epsilon=0.5), "epsilon has no effect"),
        (algorithms.DisCO(bound=algorithms.KLBound(delta=0.5)), "bound has no effect"),
    ],
)
def test_a_changed_setting_without_effect_is_said_and_no_other(settings, said):
    (sentence,) = settings.build(inputs("on-policy")[1]).warnings
    assert sentence.startswith(said)
    assert not settings.build(inputs("off-policy")[1]).warnings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (algorithms.CISPO(cap_low=1.2), "cap_low"),
        (algorithms.CISPO(cap_high=0.8), "cap_high"),
        (algorithms.TOPR(positive=(0.0, 0.5)), "positive"),
        (algorithms.TOPR(negative=(1.5, 2.0)), "negative"),
    ],
)
def test_limits_that_exclude_a_ratio_of_1_act_on_policy_too(settings, field):
    context = inputs("on-policy")[1]
    said = " ".join(settings.build(context).warnings).partition("no effect")[0]
    assert field not in said
    found = type(settings)()
    a, b = outcome(settings, "on-policy")[0], outcome(found, "on-policy")[0]
    assert any(
        not np.allclose(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
