"""A run against a written-out PPO, exact time limits, seeds under vmap, and learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import randomness
from polgrad.algorithms.control_ppo import (
    ControlPPO,
    Steps,
    _shuffles,
    experience,
    loss,
    train,
)
from polgrad.environments.gymnax_worlds import Transition, World, make
from polgrad.policies.actor_critic import ActorCritic
from polgrad.rollouts.unroll import begin, unroll

KEY = jax.random.key(0)
# With a large epsilon Adam does not blow the rounding errors of small gradients up.
TINY = ControlPPO(
    total_steps=96,
    copies=2,
    steps=16,
    epochs=2,
    minibatches=2,
    hidden=(8,),
    adam_epsilon=0.1,
    learning_rate=1.0,
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(network, count):
    """Parameters, and steps whose ratios and values lie on both sides of the clips."""
    keys = jax.random.split(KEY, 7)
    leaves, form = jax.tree.flatten(network.init(keys[0]))
    shapes = zip(jax.random.split(keys[1], len(leaves)), leaves)
    params = form.unflatten([0.7 * jax.random.normal(k, x.shape) for k, x in shapes])
    observations = jax.random.normal(keys[2], (count, network.observation_size))
    actions = network.act(
        params, observations, jax.vmap(network.noise)(jax.random.split(keys[3], count))
    )
    logp, _ = network.statistics(params, observations, actions)
    values = network.values(params, observations)
    noise = jax.random.normal(keys[4], (4, count))
    return params, Steps(
        observations,
        actions,
        logp + 0.4 * noise[0],
        3.0 + noise[1],
        values + noise[2],
        values + 0.4 * noise[3],
    )


def reference(params, batch, settings):
    """The loss of Huang et al., written out with other functions than ours."""

    def tower(layers, x):
        for layer in layers[:-1]:
            x = jnp.tanh(x @ layer["weight"] + layer["bias"])
        return x @ layers[-1]["weight"] + layers[-1]["bias"]

    out = tower(params["policy"], batch.observations)
    if "log_std" in params:
        std = jnp.exp(params["log_std"])
        logp = jax.scipy.stats.norm.logpdf(batch.actions, out, std).sum(-1)
        entropy = jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e * std**2))
    else:
        p = jnp.exp(out) / jnp.exp(out).sum(-1, keepdims=True)
        logp = jnp.log(jnp.take_along_axis(p, batch.actions[:, None], 1)[:, 0])
        entropy = -(p * jnp.log(p)).sum(-1).mean()
    a = batch.advantages
    ratio = jnp.exp(logp - batch.behavior_logp)
    low, high = 1 - settings.clip, 1 + settings.clip
    policy = -jnp.minimum(ratio * a, jnp.clip(ratio, low, high) * a).mean()
    value = tower(params["value"], batch.observations)[:, 0]
    errors = (value - batch.value_targets) ** 2
    if settings.clip_value:
        moved = jnp.clip(value - batch.old_values, -settings.clip, settings.clip)
        errors = jnp.maximum(errors, (batch.old_values + moved - batch.value_targets) ** 2)
    total = policy + settings.value_coefficient * errors.mean() / 2
    return total - settings.entropy_coefficient * entropy


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("form", "clip_value"),
    [({"actions": 3}, True), ({"action_size": 2}, False)],
)
def test_gradient_of_the_loss(form, clip_value):
    network = ActorCritic(4, **form, hidden=(5, 6))
    settings = ControlPPO(clip_value=clip_value, entropy_coefficient=0.1, value_coefficient=0.7)
    params, batch = drawn(network, 24)

    @jax.jit
    def both(params):
        ratio = jnp.exp(network.statistics(params, *batch[:2])[0] - batch.behavior_logp)
        ours = jax.value_and_grad(loss, has_aux=True)(params, batch, network, settings)
        return ratio, *ours, *jax.value_and_grad(reference)(params, batch, settings)

    ratio, (value, terms), ours, expected, theirs = both(params)
    assert (ratio > 1.2).any() and (ratio < 0.8).any() and (abs(ratio - 1) < 0.2).any()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert set(terms) == {"policy_loss", "value_loss", "entropy"}
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def endless(limit: int, *, terminates: bool = False) -> World:
    """Pays 1 a step for ever; a time limit, or its own rules, end an episode."""

    def step(key, state, action):
        ended, never = state + 1 >= limit, jnp.bool(False)
        ends = (ended, never) if terminates else (never, ended)
        return Transition(jnp.ones(1), state + 1, jnp.float32(1.0), *ends)

    return World("Endless", lambda key: (jnp.ones(1), jnp.int32(0)), step, 1, 2, None)


@pytest.mark.parametrize("terminates", [False, True])
def test_a_time_limit_bootstraps_and_a_termination_does_not(terminates):
    settings = ControlPPO(
        total_steps=6, copies=1, steps=6, minibatches=1, discount=0.5, lambda_=1.0, hidden=(4,)
    )
    world = endless(3, terminates=terminates)
    network = settings.network(world)
    params = network.init(KEY)
    worth = 7.0
    params["value"][-1] = {"weight": jnp.zeros((4, 1)), "bias": jnp.array([worth])}
    start = begin(world, KEY, copies=1)

    @jax.jit
    def seen(params):
        act = functools.partial(network.act, params)
        _, trajectory = unroll(world, act, network.noise, start, KEY, steps=6)
        return experience(params, trajectory, network, settings)

    got = seen(params)
    # By hand, backwards: the last reward, and half of what follows it.
    after = 0.0 if terminates else worth
    third = 1 + 0.5 * after
    second = 1 + 0.5 * third
    targets = [1 + 0.5 * second, second, third]
    np.testing.assert_allclose(got.value_targets, targets * 2, rtol=1e-6)
    np.testing.assert_allclose(got.advantages, np.array(targets * 2) - worth, rtol=1e-6)


def test_the_value_of_a_world_without_end_is_learned_through_its_time_limit():
    # Worth 1 / (1 - 0.5) = 2 everywhere; with limits taken for ends it would be at most 1.5.
    settings = ControlPPO(
        total_steps=8_000,
        copies=4,
        steps=8,
        minibatches=1,
        discount=0.5,
        learning_rate=1e-2,
        hidden=(8,),
    )
    world = endless(2)
    state, _ = jax.jit(lambda key: train(settings, key, world))(KEY)
    value = settings.network(world).values(state.params, jnp.ones((1, 1)))
    np.testing.assert_allclose(value, 2.0, atol=0.02)


def written_out(settings, key, world):
    """The run as a plain loop with optax on the tree of parameters."""
    network = settings.network(world)
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.adam(
            lambda count: settings.learning_rate * (1 - count // 4 / settings.updates),
            eps=settings.adam_epsilon,
        ),
    )

    def place(purpose, number=0):
        return jax.random.fold_in(jax.random.fold_in(key, purpose), number)

    params = network.init(place(randomness.INIT))
    memory = optimizer.init(params)
    position = begin(world, place(randomness.PREPARE), copies=settings.copies)

    @jax.jit
    def descend(params, memory, steps, rows):
        batch = jax.tree.map(lambda x: x[rows], steps)
        a = batch.advantages
        batch = batch._replace(advantages=(a - a.mean()) / a.std(ddof=1))
        change, memory = optimizer.update(jax.grad(reference)(params, batch, settings), memory)
        return jax.tree.map(jnp.add, params, change), memory

    collect = jax.jit(
        lambda params, position, key: unroll(
            world,
            functools.partial(network.act, params),
            network.noise,
            position,
            key,
            steps=settings.steps,
        )
    )
    learnt_from = jax.jit(lambda params, got: experience(params, got, network, settings))
    for number in range(settings.updates):
        position, trajectory = collect(params, position, place(randomness.SAMPLE, number))
        steps = learnt_from(params, trajectory)
        for epoch in range(settings.epochs):
            shuffle = jax.random.fold_in(place(randomness.SHUFFLE, number), epoch)
            drawn = np.asarray(jax.random.bits(shuffle, (settings.collected,)))
            order = np.argsort(drawn // settings.collected, kind="stable")  # 32, a power of 2
            for rows in np.split(order, settings.minibatches):
                params, memory = descend(params, memory, steps, rows)
    return params


def test_every_epoch_sees_every_step_once_in_an_order_of_its_own():
    orders = np.asarray(_shuffles(KEY, 3, 37))  # not a power of 2
    np.testing.assert_array_equal(np.sort(orders), [np.arange(37)] * 3)
    assert len({tuple(order) for order in orders}) == 3
    first = np.asarray(_shuffles(KEY, 2000, 5))[:, 0]
    share = np.bincount(first, minlength=5) / 2000
    assert np.all(np.abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000))


@pytest.mark.slow
def test_a_run_equals_a_loop():
    world = make(TINY.world)
    state, metrics = jax.jit(functools.partial(train, TINY))(KEY)
    expected = written_out(TINY, KEY, world)
    start = TINY.network(world).init(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0))
    for got, want, before in zip(*map(jax.tree.leaves, (state.params, expected, start))):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
        assert np.any(np.abs(got - before) > 1e-3)
    assert metrics["entropy"].shape == (3,)


@pytest.mark.slow
def test_seeds_under_vmap_are_single_runs():
    keys = jax.random.split(KEY, 3)
    run = functools.partial(train, TINY)
    states, metrics = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(run)
    for i, key in enumerate(keys):
        state, curve = alone(key)
        for a, b in zip(jax.tree.leaves(states.params), jax.tree.leaves(state.params)):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(metrics["episodes"][i], curve["episodes"])
        np.testing.assert_array_equal(metrics["returns"][i], curve["returns"])


@pytest.mark.slow
def test_learns_to_balance():
    settings = ControlPPO(total_steps=50_000, learning_rate=1e-3)
    _, metrics = jax.jit(functools.partial(train, settings))(KEY)
    returns, episodes = (np.asarray(metrics[k]) for k in ("returns", "episodes"))
    first, last = (returns[s].sum() / episodes[s].sum() for s in (slice(8), slice(-8, None)))
    assert first < 60 and last > 120


@pytest.mark.slow
def test_moves_a_continuous_world():
    settings = dataclasses.replace(TINY, world="Pendulum-v1")
    state, metrics = jax.jit(functools.partial(train, settings))(KEY)
    assert np.any(state.params["log_std"] != 0)
    assert np.all(np.isfinite(metrics["value_loss"]))


def test_annealing():
    settings = ControlPPO(total_steps=512 * 4 + 100, epochs=1, minibatches=2)
    rates = np.stack([settings.rates(jnp.int32(n)) for n in range(4)])
    np.testing.assert_allclose(rates[:, 0], [2.5e-4, 1.875e-4, 1.25e-4, 6.25e-5], rtol=1e-6)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    constant = dataclasses.replace(settings, anneal=False)
    np.testing.assert_allclose(constant.rates(jnp.int32(3)), [2.5e-4, 2.5e-4], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 3}, r"minibatches is 3, expected a divisor of copies \* steps = 4 \* 128"),
        ({"total_steps": 511}, "total_steps is 511, expected at least one collection"),
        ({"copies": 0}, "copies is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"discount": 1.1}, "discount is 1.1"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"adam_epsilon": 0.0}, "adam_epsilon is 0.0"),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ControlPPO(**changes)


def test_an_unknown_world_is_named():
    with pytest.raises(ValueError, match="unknown world 'CartPole'; did you mean CartPole-v1"):
        train(ControlPPO(world="CartPole"), KEY)
