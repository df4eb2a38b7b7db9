"""Logged samples and ready answers as the tasks of small runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import algorithms, losses, small
from polgrad.contract import Algorithm, Context, Needs, Outputs, Previous

WORLD = small.ModularSums.create(jax.random.key(0), prompts=8, fixed=1, vocabulary=3)
POLICY = small.FeaturePolicy(
    small.AutoregressiveMLP(WORLD.width, 3, length=2, width=8), WORLD.features
)
GROUP = 4
PARAMS = jax.tree.map(lambda x: 3.0 * x, POLICY.init(jax.random.key(1)))


def log(rewards=None):
    """Samples of another policy than `PARAMS`; half of the samples are right."""
    rows = POLICY.sample(
        POLICY.init(jax.random.key(2)),
        POLICY.prompts(WORLD.prompts),
        WORLD.prompts,
        jax.random.key(3),
        samples=GROUP,
    )
    right = jnp.tile(jnp.array([1.0, 0.0, 0.0, 1.0]), (8, 1)) if rewards is None else rewards
    by_question = lambda x: x.reshape(8, GROUP, -1)  # noqa: E731
    return small.Log(
        WORLD.prompts, by_question(rows["completions"]), by_question(rows["behavior_logp"]), right
    )


def run(settings, task, *, optimizer=None, policy=POLICY, params=PARAMS, **sizes):
    schedule = small.Schedule(rollouts=1, questions=8, group=GROUP, points=1)._replace(**sizes)
    return small.run(
        jax.random.key(4),
        settings,
        policy=policy,
        task=task,
        schedule=schedule,
        optimizer=optimizer or optax.sgd(1.0),
        params=params,
    )


def logp_of(params, task):
    """Log-probability of each logged completion, [8, G]."""
    batch = {
        "prompts": jnp.repeat(WORLD.features(WORLD.prompts), GROUP, axis=0),
        "completions": task.completions.reshape(8 * GROUP, -1),
        "mask": jnp.ones((8 * GROUP, task.completions.shape[-1])),
    }
    return POLICY.forward(params, batch, needs=Needs()).logp


def whole(params, task):
    return logp_of(params, task).sum(-1).reshape(8, GROUP)


def topr_loss(params, task):
    logp, behavior = whole(params, task).ravel(), task.behavior_logp.sum(-1).ravel()
    signed = 2.0 * task.rewards.ravel() - 1.0
    return losses.topr(logp, behavior, signed).sum() / jnp.isfinite(signed).sum()


def copg_loss(params, task):
    logratio = whole(params, task) - whole(PARAMS, task)
    return losses.copg_group(logratio, task.rewards, beta=0.1).mean()


def dpo_loss(params, task):
    """The first right and the first wrong sample are the first and the second one."""
    logratio = whole(params, task) - whole(PARAMS, task)
    return losses.dpo(logratio[:, 0], logratio[:, 1], beta=0.1).mean()


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        (algorithms.TOPR(), topr_loss),
        (algorithms.CoPG(beta=0.1), copg_loss),
        (algorithms.DPO(pairs="samples", beta=0.1), dpo_loss),
    ],
)
def test_an_update_is_that_of_the_public_loss_on_the_logged_arrays(settings, loss):
    task = log()
    after, _ = jax.jit(lambda: run(settings, task))()
    wanted = jax.jit(jax.grad(lambda params: loss(params, task)))(PARAMS)
    moved = jax.tree.map(jnp.subtract, PARAMS, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, wanted)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(wanted)) > 1e-3


def test_a_sample_without_a_reward_is_left_out():
    right = jnp.tile(jnp.array([1.0, 0.0, jnp.nan, 1.0]), (8, 1))
    task = log(right)
    after, curves = jax.jit(lambda: run(algorithms.TOPR(), task))()
    wanted = jax.jit(jax.grad(lambda params: topr_loss(params, task)))(PARAMS)
    moved = jax.tree.map(jnp.subtract, PARAMS, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, wanted)
    np.testing.assert_allclose(curves["reward_mean"][1], 2 / 3, rtol=1e-6)


def test_the_padding_of_a_log_may_be_anything():
    policy = small.TablePolicy.create(3, 2, end=2)
    completions = jnp.array([[[2, 0], [0, 1]], [[1, 2], [2, 0]]])
    mask = jnp.array([[[1, 0], [1, 1]], [[1, 1], [1, 0]]])
    clean = small.Log(
        jnp.zeros(2), completions, jnp.where(mask, -1.0, 0.0), jnp.array([[1.0, 0.0]] * 2), mask
    )
    padded = dataclasses.replace(
        clean,
        completions=jnp.where(mask, completions, jnp.array([[[0, 1]], [[0, -7]]])),
        behavior_logp=jnp.where(mask, -1.0, jnp.nan),
    )
    start = policy.init(jax.random.key(5))
    sizes = {"policy": policy, "params": start, "questions": 2, "group": 2, "mini_batches": 2}
    train = jax.jit(lambda task: run(algorithms.DisCO(), task, **sizes), static_argnums=0)
    (params, curves), (ours, found) = train(clean), train(padded)
    np.testing.assert_array_equal(ours, params)
    assert jnp.abs(params - start).max() > 1e-3
    assert np.isfinite(found["behavior_kl"][1])
    jax.tree.map(np.testing.assert_array_equal, found, curves)


class OneNumberEach:
    """A policy with a parameter for each question, which is the log-probability of any answer."""

    def init(self, key):
        return jnp.zeros(8)

    def prompts(self, questions):
        return {"prompts": questions, "prompt_lengths": jnp.ones(len(questions), jnp.int32)}

    def forward(self, params, batch, *, needs):
        logp = (batch["prompts"] @ params)[:, None]
        return Outputs(logp, jnp.zeros_like(logp))


@pytest.mark.parametrize(("settings", "per_row"), [(algorithms.TOPR(), GROUP), (None, 1)])
def test_an_epoch_uses_every_question_once(settings, per_row):
    """Each row adds the same number to its own parameter; samples and demonstrations alike."""
    numbers = jnp.eye(8)
    if settings is None:
        settings, task = algorithms.Supervised(), small.Answers(numbers, {"answer": numbers[:, :1]})
    else:
        zeros = jnp.zeros((8, GROUP, 1))
        task = small.Log(numbers, zeros.astype(int), zeros, jnp.ones((8, GROUP)))
        # No mixture of policies and no sampler: the policy has no method `sample`.
    policy = OneNumberEach()
    policy.sample = lambda *_, **__: {"completions": jnp.zeros((1, 1), int)}
    sizes = {"rollouts": 3, "points": 3, "mini_batches": 4, "group": per_row}
    params, _ = jax.jit(lambda: run(settings, task, policy=policy, params=jnp.zeros(8), **sizes))()
    np.testing.assert_allclose(params, 3 * 4 / 8, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Spy:
    """REINFORCE that keeps the context and reports what it is given of the sampling policy."""

    seen: list

    def build(self, context: Context) -> Algorithm:
        self.seen.append(context)

        def prepare(state, experience, key):
            kept = ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask")
            batch = {name: experience[name] for name in kept}
            batch |= {"weights": jnp.ones(len(experience["rewards"]))}
            names = ("now_logp", "behavior_logp")
            return state, batch, {name: experience[name].sum() for name in names}

        return Algorithm(
            prepare=prepare,
            loss=lambda outputs, batch: (0.0 * outputs.logp.sum(), {}),
            policies={"now": Previous(every=1)},
            reuse=False,
        )


def test_logged_samples_are_never_on_policy():
    seen = []
    task = log()
    _, curves = jax.jit(lambda: run(Spy(seen), task))()
    _, sampled = jax.jit(lambda: run(Spy(seen), WORLD))()
    assert [context.on_policy for context in seen] == [False, True]
    assert [context.max_tokens for context in seen] == [2, 2]
    # The policy before the updates did not draw the log.
    np.testing.assert_allclose(curves["now_logp"][1], whole(PARAMS, task).sum(), rtol=1e-5)
    np.testing.assert_allclose(curves["behavior_logp"][1], task.behavior_logp.sum(), rtol=1e-5)
    assert abs(curves["now_logp"][1] - curves["behavior_logp"][1]) > 0.1
    np.testing.assert_array_equal(sampled["now_logp"][1], sampled["behavior_logp"][1])


def test_a_log_may_serve_updates_without_a_ratio_and_samples_may_not():
    settings = algorithms.Reinforce()
    jax.eval_shape(lambda: run(settings, log(), mini_batches=2))
    with pytest.raises(ValueError, match="is 2, expected 1: Reinforce has no importance ratio"):
        jax.eval_shape(lambda: run(settings, WORLD, mini_batches=2))


def test_imitation_learns_answers():
    addition = small.Addition(1)
    network = small.FactorizedMLP(addition.width, 10, addition.length, width=32)
    policy = small.FeaturePolicy(network, addition.features)
    questions = addition.draw(jax.random.key(0), 512)
    probe = functools.partial(small.probe, policy=policy, task=addition, samples=1, greedy=True)
    accuracy = lambda params, key: probe(params, questions, key).rewards.mean()  # noqa: E731

    @jax.jit
    def both(key):
        first = policy.init(key)
        imitate = functools.partial(
            small.imitate, policy=policy, optimizer=optax.adam(1e-2), epochs=30, batch=64
        )
        last = imitate(key, first, questions, addition.answer(questions))
        return accuracy(first, key), accuracy(last, key)

    before, after = both(jax.random.key(1))
    assert before < 0.2 and after > 0.95


def test_a_probe_is_the_mean_over_the_samples_of_each_question():
    def both(key):
        found = small.probe(PARAMS, WORLD.prompts, key, policy=POLICY, task=WORLD, samples=500)
        words = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 2, indexing="ij"), -1).reshape(-1, 2)
        every = jnp.broadcast_to(words, (8, 9, 2))
        rows = POLICY.prompts(WORLD.prompts)["prompts"].repeat(9, axis=0)
        batch = {"prompts": rows, "completions": every.reshape(-1, 2), "mask": jnp.ones((72, 2))}
        logp, entropy, _ = POLICY.forward(PARAMS, batch, needs=Needs())
        chance = jnp.exp(logp.sum(-1)).reshape(8, 9)
        return found, chance, WORLD.reward(WORLD.prompts, every), entropy.mean(-1).reshape(8, 9)

    found, chance, rewards, entropy = both(jax.random.key(0))
    assert found.rewards.shape == (8, 500)
    np.testing.assert_allclose(found.rewards.mean(1), (chance * rewards).sum(1), atol=0.08)
    np.testing.assert_allclose(found.entropy, (chance * entropy).sum(1), atol=0.03)


# Made outside of a traced function, where its tokens are known.
WRONG = small.Log(
    WORLD.prompts, jnp.full((8, GROUP, 2), 3), jnp.zeros((8, GROUP, 2)), jnp.ones((8, GROUP))
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run(algorithms.TOPR(), log(), group=2),
            "group is 2, expected 4, the samples of each question in the log",
        ),
        (
            lambda: run(algorithms.TOPR(), log(), questions=9),
            "questions is 9, expected at most 8, the rows of the data",
        ),
        (lambda: run(algorithms.NashMD(), log()), "NashMD samples from a mixture .*Log"),
        (lambda: run(algorithms.Supervised(), log()), "Supervised reads answer .*Log"),
        (
            lambda: run(
                algorithms.DPO(), small.Answers(WORLD.prompts, {"chosen": jnp.ones((8, 2))})
            ),
            "reads column 'rejected', expected one of chosen",
        ),
        (
            lambda: run(algorithms.TOPR(), WRONG),
            r"completions has token 3, expected tokens in 0\.\.2, those of the policy",
        ),
        (
            lambda: run(
                algorithms.Supervised(),
                small.Answers(WORLD.prompts, {"answer": np.full((8, 2), -1)}),
            ),
            r"columns\['answer'\] has token -1, expected tokens in 0\.\.2",
        ),
        (lambda: log(jnp.ones((8, 3))), r"rewards has shape \[8, 3\], expected \[N, G\], .*8, 4"),
        (
            lambda: dataclasses.replace(log(), questions=jnp.eye(7)),
            "questions has 7 rows, expected 8, as the answers",
        ),
        (
            lambda: small.imitate(
                jax.random.key(0),
                PARAMS,
                WORLD.prompts,
                jnp.zeros((8, 2), int),
                policy=POLICY,
                optimizer=optax.sgd(1.0),
                epochs=1,
                batch=3,
            ),
            "batch is 3, expected a divisor of the 8 answers",
        ),
    ],
)
def test_what_cannot_be_used_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)
