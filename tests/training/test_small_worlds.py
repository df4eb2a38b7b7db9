"""The loop of small worlds: what a loss sees, when it is evaluated, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import advantages, losses, masking
from polgrad.small import Addition, AutoregressiveMLP, FactorizedMLP, ModularSums
from polgrad.training import small_worlds

SCHEDULE = small_worlds.Schedule(rollouts=4, questions=8, group=3, updates=2, points=2)


def make(key):
    world = ModularSums.create(key, prompts=16, fixed=1, vocabulary=3)
    policy = AutoregressiveMLP(world.width, 3, length=4, width=16)
    return world, policy


def success(world, policy):
    def evaluate(params, key):
        rewards, entropy = small_worlds.probe(
            params, world.prompts, key, policy=policy, task=world, samples=4
        )
        return {"success": rewards.mean(), "entropy": entropy.mean()}

    return evaluate


def reinforce(outputs, batch, key):
    loss = losses.reinforce(outputs.logp, batch.advantages)
    return masking.reduce(loss, batch.mask, mode="token")


def test_what_a_loss_sees():
    world, policy = make(jax.random.key(0))
    seen = []

    def loss(outputs, batch, key):
        rows = {"logp": outputs.logp, "entropy": outputs.entropy} | batch._asdict()
        jax.debug.callback(lambda **x: seen.append(x), ordered=True, **rows)
        return reinforce(outputs, batch, key)

    @jax.jit
    def run(key):
        return small_worlds.train(
            key,
            policy.init(key),
            policy=policy,
            task=world,
            schedule=SCHEDULE,
            optimizer=optax.sgd(0.0),
            loss=loss,
            evaluate=lambda params, key: {},
            advantages=lambda rewards: advantages.group_relative(rewards, scale="batch"),
        )[1]

    run(jax.random.key(1))
    jax.effects_barrier()
    assert len(seen) == SCHEDULE.rollouts * SCHEDULE.updates
    for batch in seen:
        # Four questions of three answers with four tokens each.
        assert batch["tokens"].shape == batch["logp"].shape == batch["entropy"].shape == (12, 4)
        assert batch["rewards"].shape == (4, 3) and batch["advantages"].shape == (12, 1)
        assert np.all(batch["mask"])
        # The policy never moves, so it agrees with the one that sampled.
        np.testing.assert_allclose(batch["logp"], batch["behavior_logp"], atol=1e-5)
        assert np.all(batch["entropy"] <= np.log(3) + 1e-5)
    # The advantages were formed on both mini-batches of a rollout together.
    both = np.concatenate([seen[0]["rewards"], seen[1]["rewards"]])
    expected = advantages.group_relative(jnp.array(both), scale="batch").reshape(-1, 1)
    found = np.concatenate([seen[0]["advantages"], seen[1]["advantages"]])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len({batch["tokens"].tobytes() for batch in seen}) == len(seen)


def test_points_and_seeds():
    reported = []

    def run(key):
        world, policy = make(key)
        return small_worlds.train(
            key,
            policy.init(key),
            policy=policy,
            task=world,
            schedule=SCHEDULE,
            optimizer=optax.adam(1e-2),
            loss=reinforce,
            evaluate=success(world, policy),
            advantages=advantages.leave_one_out,
            report=lambda point, total, **metrics: reported.append((total, set(metrics))),
        )[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    curves = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_array_equal(curves["rollout"], [[0, 2, 4]] * 3)
    assert curves["success"].shape == curves["entropy"].shape == (3, 3)
    assert len({curve.tobytes() for curve in np.asarray(curves["entropy"])}) == 3
    assert reported and all(x == (3, {"success", "entropy"}) for x in reported)
    np.testing.assert_allclose(curves["entropy"][:, 0], np.log(3), atol=0.05)


def test_it_learns_and_the_sign_of_the_loss_matters():
    world, policy = make(jax.random.key(3))

    def run(sign):
        schedule = small_worlds.Schedule(rollouts=40, questions=16, group=8, updates=2, points=1)
        return small_worlds.train(
            jax.random.key(4),
            policy.init(jax.random.key(5)),
            policy=policy,
            task=world,
            schedule=schedule,
            optimizer=optax.adam(1e-2),
            loss=lambda *x: sign * reinforce(*x),
            evaluate=success(world, policy),
            advantages=advantages.group_relative,
        )[1]["success"]

    up, down = jax.jit(jax.vmap(run))(jnp.array([1.0, -1.0]))
    assert up[-1] > 0.6 > 0.35 > up[0]
    assert down[-1] < 0.1


def test_fitting_answers_learns_them():
    addition = Addition(1)
    policy = FactorizedMLP(addition.width, 10, addition.length, width=32)
    questions, key = addition.draw(jax.random.key(0), 512), jax.random.key(1)

    @jax.jit
    def accuracy(params):
        rewards, _ = small_worlds.probe(
            params, questions, key, policy=policy, task=addition, samples=1, greedy=True
        )
        return rewards.mean()

    @jax.jit
    def run(key):
        return small_worlds.imitate(
            key,
            policy.init(key),
            addition.features(questions),
            addition.answer(questions),
            policy=policy,
            optimizer=optax.adam(1e-2),
            epochs=30,
            batch=64,
        )

    assert accuracy(policy.init(key)) < 0.2 and accuracy(run(key)) > 0.95


def test_an_epoch_uses_every_unit_once():
    params, curves = small_worlds.fit(
        jax.random.key(0),
        jnp.zeros(6),
        jnp.arange(6),
        loss=lambda params, batch, key: jnp.sum(params[batch]),
        optimizer=optax.sgd(1.0),
        epochs=3,
        batch=2,
        evaluate=lambda params, key: {"least": params.min(), "most": params.max()},
    )
    np.testing.assert_array_equal(params, -3.0)
    np.testing.assert_array_equal(curves["epoch"], [0, 1, 2, 3])
    for name in ("least", "most"):
        np.testing.assert_array_equal(curves[name], [0, -1, -2, -3])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"updates": 3}, "updates is 3, .* questions = 8"), ({"points": 3}, "points is 3, .* = 4")],
)
def test_sizes_that_do_not_divide_are_named(change, message):
    world, policy = make(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        small_worlds.train(
            jax.random.key(0),
            {},
            policy=policy,
            task=world,
            schedule=SCHEDULE._replace(**change),
            optimizer=optax.sgd(0.0),
            loss=reinforce,
            evaluate=success(world, policy),
        )
    with pytest.raises(ValueError, match="batch is 4, .* data = 6"):
        small_worlds.fit(
            jax.random.key(0),
            jnp.zeros(6),
            jnp.arange(6),
            loss=lambda params, batch, key: jnp.sum(params),
            optimizer=optax.sgd(1.0),
            epochs=1,
            batch=4,
        )
