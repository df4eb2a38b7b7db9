"""`small.run`: the settings of `polgrad train` in one program, vmapped over seeds and numbers."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import lists
import numpy as np
import optax
import pytest

from polgrad import algorithms, policies, small
from polgrad.contract import (
    Algorithm,
    Average,
    Initial,
    Previous,
)
from polgrad.rollouts import Sampling
from polgrad.small import ModularSums
from polgrad.training import step
from polgrad.training.scoring import Scoring

WORLD = ModularSums.create(jax.random.key(0), prompts=16, fixed=1, vocabulary=3)
POLICY = small.FeaturePolicy(
    small.AutoregressiveMLP(WORLD.width, 3, length=4, width=16), WORLD.features
)
SCHEDULE = small.Schedule(rollouts=6, questions=8, group=4, points=3)


def run(settings, key=None, *, policy=POLICY, task=WORLD, schedule=SCHEDULE, rate=1e-2, **more):
    return small.run(
        jax.random.key(1) if key is None else key,
        settings,
        policy=policy,
        task=task,
        schedule=schedule,
        optimizer=optax.adam(rate),
        **more,
    )


def language_policy(network=None, tokens=3):
    """A language policy that reads the question's number as one token."""
    network = network or policies.LinearNetwork(19, 8, value_head=True)
    return small.NetworkPolicy(
        network,
        Sampling(max_tokens=tokens, stop_ids=(0,)),
        lambda questions: (questions[:, None] + 3, jnp.ones(questions.shape[0], jnp.int32)),
    )


class Counting:
    """Numbers as questions; an answer is right if it begins with a token below 8."""

    size = 16

    def draw(self, key, count):
        return jax.random.permutation(key, self.size)[:count]

    def ids(self, questions):
        return questions

    def reward(self, questions, completions, mask):
        return ((completions[..., 0] < 8) & mask[..., 0]).astype(jnp.float32)

    def answers(self, questions, columns):
        of = {"chosen": 1, "rejected": 2, "answer": 1, "gold": 1}
        rows = jnp.array([of[name] for name in columns])
        completions = jnp.broadcast_to(rows[:, None], (questions.shape[0], len(columns), 3))
        return completions, jnp.ones_like(completions, bool)


def test_grpo_learns_on_every_seed():
    schedule = small.Schedule(rollouts=60, questions=16, group=8, points=3)
    probe = functools.partial(small.probe, policy=POLICY, task=WORLD, samples=1, greedy=True)
    evaluate = lambda p, k: {"accuracy": probe(p, WORLD.prompts, k).rewards.mean()}  # noqa: E731
    train = functools.partial(run, algorithms.GRPO(clip_high=0.28), schedule=schedule, rate=3e-2)
    seeds = jax.random.split(jax.random.key(0), 4)
    found = jax.vmap(lambda key: train(key=key, evaluate=evaluate))
    _, curves = jax.jit(found)(seeds)
    np.testing.assert_array_equal(curves["rollout"][0], [0, 20, 40, 60])
    assert (curves["accuracy"][:, -1] - curves["accuracy"][:, 0]).min() > 0.2
    assert np.isnan(curves["reward_mean"][:, 0]).all()
    assert (curves["reward_mean"][:, -1] > curves["reward_mean"][:, 1]).all()
    picked = small.pick(curves, ["accuracy"], axis="update")
    assert [*picked] == ["update", "accuracy"]
    np.testing.assert_array_equal(picked["update"], curves["rollout"])


@pytest.mark.sampled(60)
@pytest.mark.parametrize("name", ["ranked lists", *sorted(algorithms.NAMES)])
def test_every_algorithm_runs_on_a_language_policy(name):
    """Supervised learning and pairs too; the parameters move and stay finite."""
    settings = lists.Ranked() if name == "ranked lists" else algorithms.find(name)()
    task = Counting()
    policy = language_policy()
    before = policy.init(jax.random.key(3))
    params, curves = jax.jit(
        lambda: run(settings, policy=policy, task=task, params=before, rate=1e-2)
    )()
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), before, params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert np.isfinite(curves["loss"][1:]).all()


def test_numbers_of_the_settings_can_be_swept():
    def final(clip):
        schedule = SCHEDULE._replace(mini_batches=4, epochs=2)
        return run(algorithms.GRPO(clip_high=clip), schedule=schedule, rate=3e-2)[0]

    clips = jnp.array([0.01, 0.3])
    together = jax.jit(jax.vmap(final))(clips)
    alone = jax.jit(final)(clips[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), together, alone)
    differ = jax.tree.map(lambda a: jnp.abs(a[0] - a[1]).max(), together)
    assert max(jax.tree.leaves(differ)) > 1e-4


def test_the_number_of_a_part_can_be_swept():
    """The weight of Nash-MD's opponent, on a language policy whose sampler mixes two policies."""

    def final(weight):
        settings = algorithms.NashMD(opponent=algorithms.Mixed(weight))
        params, _ = run(settings, policy=language_policy(), task=Counting(), rate=0.3)
        return params

    weights = (0.0, 0.5, 1.0)
    together = jax.jit(jax.vmap(final))(jnp.array(weights))
    for index, weight in enumerate(weights):
        alone = jax.jit(final, static_argnums=0)(weight)
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, atol=1e-4), together, alone
        )
    differ = jax.tree.map(lambda a: jnp.abs(a[0] - a[2]).max(), together)
    assert max(jax.tree.leaves(differ)) > 1e-3


def test_a_loop_on_the_host_gives_the_same_run():
    parts = small.program(
        algorithms.ClipCov(fraction=0.1, low=-1.0),
        policy=POLICY,
        task=WORLD,
        schedule=SCHEDULE,
        optimizer=optax.adam(1e-2),
    )
    key, stretch = jax.random.key(1), jax.jit(parts.stretch, donate_argnums=0)
    carry = parts.init(key)
    for point in range(parts.points + 1):
        carry, _ = stretch(carry, key, point)
    whole, _ = jax.jit(lambda: run(algorithms.ClipCov(fraction=0.1, low=-1.0)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry[0].params, whole)


def test_the_update_is_that_of_train():
    """On the rollout of a small run both loops have the same gradient, to 1e-9 in float64."""
    with jax.enable_x64(True):
        for network in (
            policies.LinearNetwork(19, 8, value_head=True),
            policies.TransformerNetwork(
                policies.TransformerConfig(
                    vocab_size=19, width=8, layers=1, heads=2, max_length=8, value_head=True
                )
            ),
        ):
            policy = language_policy(network)
            policy = dataclasses.replace(policy, compute_dtype=jnp.float64)
            params = policy.init(jax.random.key(2))
            params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
            settings = algorithms.PPO(kl=algorithms.RewardKL(0.1), entropy=algorithms.Entropy(0.01))
            schedule = SCHEDULE._replace(epochs=2)
            loop = small.running._Loop(settings, policy, Counting(), schedule, optax.sgd(0.1))
            experience, _ = loop._experience(params, {"reference": params}, jax.random.key(5))
            _, batch, _ = loop.algorithm.prepare((), experience, jax.random.key(6))
            scoring = Scoring(compute_dtype=jnp.float64, values=True, entropy_gradient=True)
            theirs = step.make_gradient(network, loop.algorithm, scoring, micro_batches=2)
            _, wanted, _ = jax.jit(theirs)(params, batch, jax.random.key(7))
            state = loop.first(params, jax.random.key(8))
            state, _ = jax.jit(loop.update)(state, batch, jax.random.key(7))
            for start, end, gradient in zip(
                *map(jax.tree.leaves, (params, state.trainable, wanted)), strict=True
            ):
                np.testing.assert_allclose((start - end) / 0.1, gradient, atol=1e-9)
            assert max(np.abs(x).max() for x in jax.tree.leaves(wanted)) > 1e-3


@dataclasses.dataclass(frozen=True)
class Watching:
    """REINFORCE that keeps what it is given of three named policies, and counts its steps."""

    def build(self, context):
        names = ("start", "lagged", "mean", "now")

        def prepare(state, experience, key):
            rows = {name: experience[f"{name}_logp"].sum() for name in names}
            rows["behavior"] = experience["behavior_logp"].sum()
            batch = {k: experience[k] for k in named(experience)}
            batch |= {"weights": jnp.ones(len(experience["rewards"]))}
            return state, batch, rows

        def loss(outputs, batch):
            return -(outputs.logp.sum(-1) * batch["rewards"] * batch["weights"]).mean(), {}

        return Algorithm(
            init=lambda key: jnp.zeros(()),
            prepare=prepare,
            loss=loss,
            observe=lambda state, metrics: state + metrics["reward_mean"],
            policies={
                "start": Initial(),
                "lagged": Previous(every=2),
                "mean": Average(decay=0.9),
                "now": Previous(every=1),
            },
            reuse=False,
        )


def named(experience):
    return ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask", "rewards")


def test_named_policies_are_what_they_are_called():
    """Compared with copies that the test makes itself, rollout by rollout."""
    settings = Watching()
    loop = small.running._Loop(settings, POLICY, WORLD, SCHEDULE, optax.sgd(0.5))
    params = POLICY.init(jax.random.key(2))
    state, advance = loop.first(params, jax.random.key(3)), jax.jit(loop.step)
    lagged, mean, total = params, params, 0.0
    for number in range(5):
        if number % 2 == 0:
            lagged = state.trainable
        key = jax.random.fold_in(jax.random.key(4), number)
        experience, _ = loop._experience(
            state.params,
            {"start": params, "lagged": lagged, "mean": mean},
            jax.random.fold_in(key, 0),
        )
        state, metrics = advance(state, params, key, number)
        for name in ("start", "lagged", "mean", "now"):
            np.testing.assert_allclose(metrics[name], experience[f"{name}_logp"].sum(), rtol=1e-4)
        np.testing.assert_allclose(metrics["now"], metrics["behavior"], rtol=1e-6)
        mean = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, mean, state.trainable)
        total += metrics["reward_mean"]
    assert abs(metrics["lagged"] - metrics["start"]) > 1e-3
    assert abs(metrics["mean"] - metrics["lagged"]) > 1e-3
    np.testing.assert_allclose(state.algorithm, total, rtol=1e-5)


@pytest.mark.parametrize(
    ("opponent", "named", "plays"),
    [
        (algorithms.Mixed(1.0), "reference", "named"),
        (algorithms.Mixed(0.0), "reference", "own"),
        (Average(decay=0.9), "average", "named"),
    ],
)
def test_nash_md_plays_against_its_opponent(opponent, named, plays):
    """The completions of the other side are those of the policy that the setting names."""

    class Recording(Counting):
        def prefer(self, questions, completions, others):
            return others[..., 0] / 20.0

    policy = language_policy()
    own, other = (jax.tree.map(lambda x: 3.0 * x, policy.init(jax.random.key(n))) for n in (2, 1))
    settings = algorithms.NashMD(opponent=opponent)
    loop = small.running._Loop(settings, policy, Recording(), SCHEDULE, optax.sgd(0.1))
    assert set(loop.policies) == {"reference", named}
    key = jax.random.key(5)
    experience, _ = loop._experience(own, {"reference": own, named: other}, key)
    keys = [jax.random.fold_in(key, n) for n in range(3)]
    questions = loop.task.draw(keys[0], SCHEDULE.questions)
    prompts = policy.prompts(questions)
    params = other if plays == "named" else own
    rows = policy.sample(params, prompts, questions, keys[2], samples=SCHEDULE.group)
    np.testing.assert_allclose(
        experience["preferences"], rows["completions"][:, 0] / 20.0, rtol=1e-6
    )


def test_an_opponent_without_a_reward_makes_the_sample_invalid():
    class Sometimes(Counting):
        calls = 0

        def reward(self, questions, completions, mask):
            self.calls += 1
            rewards = super().reward(questions, completions, mask)
            return rewards.at[0].set(jnp.nan) if self.calls == 2 else rewards

    loop = small.running._Loop(
        algorithms.NashMD(), language_policy(), Sometimes(), SCHEDULE, optax.sgd(0.1)
    )
    params = loop.policy.init(jax.random.key(1))
    experience, _ = loop._experience(params, {"reference": params}, jax.random.key(5))
    assert not experience["valid"][: SCHEDULE.group].any()
    assert experience["valid"][SCHEDULE.group :].all()
    assert np.isfinite(experience["opponent_rewards"]).all()


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts what `observe` sees; its loss is not a number once."""

    def build(self, context):
        def prepare(state, experience, key):
            kept = {name: experience[name] for name in named(experience)}
            bad = jnp.where(state[1] == 1, jnp.nan, 1.0)
            rows = len(experience["rewards"])
            batch = kept | {"weights": jnp.ones(rows), "bad": jnp.full(rows, bad)}
            return (state[0], state[1] + 1), batch, {}

        def loss(outputs, batch):
            return (outputs.logp.sum(-1) * batch["bad"]).sum(), {}

        return Algorithm(
            init=lambda key: (jnp.zeros(()), jnp.zeros((), jnp.int32)),
            prepare=prepare,
            loss=loss,
            observe=lambda state, metrics: (0.5 * state[0] + metrics["loss"], state[1]),
        )


def test_a_skipped_update_leaves_the_state_that_observes():
    loop = small.running._Loop(Counter(), POLICY, WORLD, SCHEDULE, optax.sgd(1e-3))
    state = loop.first(POLICY.init(jax.random.key(2)), jax.random.key(3))
    seen = []
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(4), number)
        state, metrics = loop.step(state, state.trainable, key, number)
        seen.append((float(state.algorithm[0]), float(metrics["loss"]), int(state.skipped)))
    (first, loss, _), (second, bad, skipped), (third, last, _) = seen
    assert first == pytest.approx(loss) and np.isnan(bad) and skipped == 1
    assert second == first
    assert third == pytest.approx(0.5 * second + last)


def test_settings_without_effect_are_told_once():
    settings = algorithms.GRPO(clip_high=0.28)
    with warnings.catch_warnings(record=True, action="default") as found:
        for _ in range(2):
            jax.eval_shape(lambda: run(settings))
    (told,) = (warning for warning in found if warning.category is UserWarning)
    assert str(told.message).startswith("GRPO: clip_high has no effect")
    with warnings.catch_warnings(action="error", category=UserWarning):
        jax.eval_shape(lambda: run(settings, schedule=SCHEDULE._replace(mini_batches=4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": SCHEDULE._replace(epochs=0)},
            "epochs is 0, expected a whole number of at least 1",
        ),
        (
            {"schedule": SCHEDULE._replace(points=4)},
            "points is 4, expected a divisor of rollouts = 6",
        ),
        ({"schedule": SCHEDULE._replace(mini_batches=5)}, "mini_batches is 5, .* of the 32 rows"),
        (
            {"settings": algorithms.Reinforce(), "schedule": SCHEDULE._replace(epochs=2)},
            "is 2, expected 1",
        ),
        (
            {"settings": algorithms.DPO()},
            "DPO reads chosen and rejected of the data, and task ModularSums",
        ),
        ({"settings": algorithms.PPO()}, "no value head; take a NetworkPolicy"),
        ({"settings": algorithms.NashMD()}, "asks for a mixture; take a TablePolicy"),
    ],
)
def test_what_cannot_run_is_refused_when_traced(change, message):
    settings = change.pop("settings", algorithms.GRPO())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: run(settings, **change))
