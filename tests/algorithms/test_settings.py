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

from polgrad import algorithms, contract
from polgrad.contract import Context, Outputs, Pair

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


OTHER_PARTS = {
    "reference": contract.Previous(2),
    "surrogate": algorithms.surrogates.CISPO(cap_high=1.03),
    "advantage": algorithms.estimators.LeaveOneOut(),
}


def other(field, value):
    """Another value of a setting; a part that is on is switched off where there may be none."""
    if dataclasses.is_dataclass(value):
        return OTHER_PARTS.get(field.name)
    if field.name in OTHER:
        found = OTHER[field.name]
        return found(value) if callable(found) else found
    if isinstance(value, str):
        return next(x for x in typing.get_args(field.type) if x != value)
    return (not value) if isinstance(value, bool) else 0.5 * value


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


@functools.cache
def outcome(settings, kind):
    """What the settings decide: batch, sum of the metrics' inputs, gradient, opponent, state."""
    experience, context, logp = inputs(kind)
    algorithm = settings.build(context)
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
    versus = samples.versus.weight if samples and samples.versus else None
    return {"gradient": gradient, "opponent": versus}, dict(algorithm.policies)


def base(name):
    """The settings of an algorithm with every optional term on."""
    found = algorithms.find(name)
    names = {f.name for f in dataclasses.fields(found)}
    on = {k: v for k, v in ON.items() if k in names}
    if name in ("rloo", "reinforce_plus_plus", "ppo"):
        on["kl"] = algorithms.RewardKL(0.3)
    return found(**(on | CHOSEN.get(name, {})))


def fields_of(settings, path=()):
    """All settings, and those of the parts: `(path, field)`, such as `(("kl",), coefficient)`."""
    for field in dataclasses.fields(settings):
        yield path, field
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, (*path, field.name))


def replaced(settings, path, field, value):
    """The settings with another value of one field, of their own or of a part."""
    if not path:
        return dataclasses.replace(settings, **{field.name: value})
    part = replaced(getattr(settings, path[0]), path[1:], field, value)
    return dataclasses.replace(settings, **{path[0]: part})


def live(settings, path, field, kind):
    """Whether another value of one setting changes the outcome."""
    owner = functools.reduce(getattr, path, settings)
    changed = replaced(settings, path, field, other(field, getattr(owner, field.name)))
    (a, policies), (b, policies_changed) = outcome(settings, kind), outcome(changed, kind)
    if policies != policies_changed:
        return True
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(
        x.shape != y.shape or not np.allclose(x, y, rtol=1e-6, atol=1e-9)
        for x, y in ((np.asarray(x), np.asarray(y)) for x, y in leaves)
    )


def dead(settings):
    """The settings that change nothing on any of the three inputs."""
    kinds = ("off-policy", "holes", "on-policy")
    return [
        ".".join((*path, field.name))
        for path, field in fields_of(settings)
        if not any(live(settings, path, field, kind) for kind in kinds)
    ]


# One of a kind in the quick suite; the others, which share its code, in `make test-slow`.
KINDS = ("cispo", "dpo", "grpo", "kl_cov", "policy_gradient", "ppo", "topr")
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
                assert not live(settings, (), field, kind), field.name
            elif kind == "on-policy" and "clip" in field.name and field.name != "log_ratio_clip":
                assert live(settings, (), field, kind), field.name


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_defaults_without_effect_are_said_only_where_the_algorithm_becomes_another(name):
    warnings = algorithms.find(name)().build(inputs("on-policy")[1]).warnings
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
