"""A run against a written-out PPO, exact time limits, seeds under vmap, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import contract
from polgrad.agents.ppo import PPO, Samples, train
from polgrad.environments.gymnax_worlds import Transition, World, make
from polgrad.policies.actor_critic import ActorCritic
from polgrad.rollouts.unroll import begin, unroll

KEY = jax.random.key(0)
CARTPOLE = make("CartPole-v1")
# With a large epsilon Adam does not blow the rounding errors of small gradients up.
TINY = PPO(
    total_steps=96,
    copies=2,
    steps=16,
    epochs=2,
    minibatches=2,
    hidden=(8,),
    adam_epsilon=0.1,
    learning_rate=1.0,
)


@functools.partial(jax.jit, static_argnums=1)
def drawn(network, count):
    """Another network, and steps whose ratios and values lie on both sides of the clips."""
    keys = jax.random.split(KEY, 4)
    leaves, form = jax.tree.flatten(network)
    shapes = zip(jax.random.split(keys[0], len(leaves)), leaves)
    network = form.unflatten([0.7 * jax.random.normal(k, x.shape) for k, x in shapes])
    observations = jax.random.normal(keys[1], (count, 4))
    actions = network.sample(observations, keys[2])
    logp, _ = network.statistics(observations, actions)
    values = network.values(observations)
    noise = jax.random.normal(keys[3], (4, count))
    return network, Samples(
        observations,
        actions,
        logp + 0.4 * noise[0],
        3.0 + noise[1],
        values + noise[2],
        values + 0.4 * noise[3],
    )


def reference(network, batch, settings):
    """The loss of Huang et al., written out with other functions than ours."""

    def tower(mlp, x):
        for layer in mlp.layers[:-1]:
            x = jnp.tanh(x @ layer.kernel[...] + layer.bias[...])
        return x @ mlp.layers[-1].kernel[...] + mlp.layers[-1].bias[...]

    out = tower(network.policy, batch.observations)
    if network.log_std is not None:
        std = jnp.exp(network.log_std[...])
        scaled = (batch.actions - out) / std
        logp = -(scaled**2 / 2 + jnp.log(std) + jnp.log(2 * jnp.pi) / 2).sum(-1)
        entropy = jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e * std**2))
    else:
        p = jnp.exp(out) / jnp.exp(out).sum(-1, keepdims=True)
        logp = jnp.log(jnp.take_along_axis(p, batch.actions[:, None], 1)[:, 0])
        entropy = -(p * jnp.log(p)).sum(-1).mean()
    a = (batch.advantages - batch.advantages.mean()) / batch.advantages.std(ddof=1)
    ratio = jnp.exp(logp - batch.behavior_logp)
    low, high = 1 - settings.clip, 1 + settings.clip
    policy = -jnp.minimum(ratio * a, jnp.clip(ratio, low, high) * a).mean()
    value = tower(network.value, batch.observations)[:, 0]
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
    settings = PPO(clip_value=clip_value, entropy_coefficient=0.1, value_coefficient=0.7)
    network, batch = drawn(ActorCritic(KEY, 4, **form, hidden=(5, 6)), 24)

    @jax.jit
    def both(network):
        ratio = jnp.exp(network.statistics(*batch[:2])[0] - batch.behavior_logp)
        ours = jax.value_and_grad(settings.loss, has_aux=True)(network, batch)
        return ratio, *ours, *jax.value_and_grad(reference)(network, batch, settings)

    ratio, (value, terms), ours, expected, theirs = both(network)
    assert (ratio > 1.2).any() and (ratio < 0.8).any() and (abs(ratio - 1) < 0.2).any()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert set(terms) == {"policy_loss", "value_loss", "entropy"}
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def endless(limit: int, *, terminates: bool = False) -> World:
    """Pays 1 a step for ever; a time limit, or its own rules, end an episode."""

    def step(key, state, action):
        ended, never = state + 1 >= limit, jnp.bool(False)
        ends = (ended, never) if terminates else (never, ended)
        return Transition(jnp.ones(1), state + 1, jnp.float32(1.0), *ends)

    return World("Endless", lambda key: (jnp.ones(1), jnp.int32(0)), step, 1, 2, None)


def worth(value, hidden=4):
    """A network of the endless world that takes every state for worth this much."""
    network = ActorCritic(KEY, 1, actions=2, hidden=(hidden,))
    last = network.value.layers[-1]
    last.kernel[...], last.bias[...] = jnp.zeros((hidden, 1)), jnp.array([value])
    return network


@pytest.mark.parametrize("terminates", [False, True])
def test_a_time_limit_bootstraps_and_a_termination_does_not(terminates):
    settings = PPO(total_steps=6, copies=1, steps=6, minibatches=1, discount=0.5, lambda_=1.0)
    world = endless(3, terminates=terminates)

    @jax.jit
    def seen(network):
        start = begin(world, KEY, copies=1)
        _, trajectory = unroll(world, network.sample, start, KEY, steps=6)
        return settings.experience(network, trajectory._asdict())

    got = seen(worth(7.0))
    # By hand, backwards: the last reward, and half of what follows it.
    after = 0.0 if terminates else 7.0
    third = 1 + 0.5 * after
    second = 1 + 0.5 * third
    targets = [1 + 0.5 * second, second, third]
    np.testing.assert_allclose(got.value_targets, targets * 2, rtol=1e-6)
    np.testing.assert_allclose(got.advantages, np.array(targets * 2) - 7.0, rtol=1e-6)


def test_the_end_of_a_collection_bootstraps():
    settings = PPO(total_steps=4, copies=1, steps=2, minibatches=1, discount=0.5, lambda_=1.0)
    world = endless(9)
    network = worth(7.0)
    start = begin(world, KEY, copies=1)
    _, trajectory = unroll(world, network.sample, start, KEY, steps=2)
    got = settings.experience(network, trajectory._asdict())
    np.testing.assert_allclose(got.value_targets, [1 + 0.5 * (1 + 0.5 * 7), 1 + 0.5 * 7], rtol=1e-6)


def test_the_value_of_a_world_without_end_is_learned_through_its_time_limit():
    # Worth 1 / (1 - 0.5) = 2 everywhere; with limits taken for ends it would be at most 1.5.
    settings = PPO(
        total_steps=8_000,
        copies=4,
        steps=8,
        minibatches=1,
        discount=0.5,
        learning_rate=1e-2,
        hidden=(8,),
    )
    state, _ = jax.jit(functools.partial(train, settings, endless(2)))(KEY)
    np.testing.assert_allclose(state.network.values(jnp.ones((1, 1))), 2.0, atol=0.02)


def written_out(settings, key, world):
    """The run as a plain loop."""
    init_key, world_key, run_key = jax.random.split(key, 3)
    network = settings.init(init_key, world).network
    total = settings.updates * settings.epochs * settings.minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.max_gradient_norm),
        optax.adam(
            lambda count: settings.learning_rate * (1 - count / total), eps=settings.adam_epsilon
        ),
    )
    memory = optimizer.init(network)
    position = begin(world, world_key, copies=settings.copies)

    @jax.jit
    def descend(network, memory, steps, rows):
        batch = jax.tree.map(lambda x: x[rows], steps)
        change, memory = optimizer.update(jax.grad(reference)(network, batch, settings), memory)
        return jax.tree.map(jnp.add, network, change), memory

    @jax.jit
    def collect(network, position, key):
        position, got = unroll(world, network.sample, position, key, steps=settings.steps)
        return position, settings.experience(network, got._asdict())

    for key in jax.random.split(run_key, settings.updates):
        act_key, update_key = jax.random.split(key)
        position, steps = collect(network, position, act_key)
        for epoch_key in jax.random.split(update_key, settings.epochs):
            order = np.asarray(jax.random.permutation(epoch_key, settings.collected))
            for rows in np.split(order, settings.minibatches):
                network, memory = descend(network, memory, steps, rows)
    return network


def test_a_pass_sees_every_step_once():
    # At learning rate 0 the value loss is half the mean square of the advantages.
    settings = PPO(total_steps=12, copies=2, steps=6, epochs=1, minibatches=4, learning_rate=0.0)
    state = settings.init(KEY, CARTPOLE)

    @jax.jit
    def both(state):
        start = begin(CARTPOLE, KEY, copies=2)
        _, trajectory = unroll(CARTPOLE, state.network.sample, start, KEY, steps=6)
        batch = trajectory._asdict()
        steps = settings.experience(state.network, batch)
        return steps, settings.update(state, batch, KEY)[1]

    steps, metrics = both(state)
    assert len(np.unique(steps.advantages)) == 12
    expected = np.mean(np.square(steps.advantages)) / 2
    np.testing.assert_allclose(metrics["value_loss"], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_run_equals_a_loop():
    state, metrics = jax.jit(functools.partial(train, TINY, CARTPOLE))(KEY)
    expected = written_out(TINY, KEY, CARTPOLE)
    start = TINY.init(jax.random.split(KEY, 3)[0], CARTPOLE).network
    for got, want, before in zip(*map(jax.tree.leaves, (state.network, expected, start))):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
        assert np.any(np.abs(got - before) > 1e-3)
    assert metrics["entropy"].shape == (3,)


@pytest.mark.slow
def test_seeds_under_vmap_are_single_runs():
    keys = jax.random.split(KEY, 3)
    run = functools.partial(train, TINY, CARTPOLE)
    states, metrics = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(run)
    for i, key in enumerate(keys):
        state, curve = alone(key)
        for a, b in zip(jax.tree.leaves(states.network), jax.tree.leaves(state.network)):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(metrics["episodes"][i], curve["episodes"])
        np.testing.assert_array_equal(metrics["returns"][i], curve["returns"])


@pytest.mark.slow
def test_learns_to_balance():
    settings = PPO(total_steps=50_000, learning_rate=1e-3)
    _, metrics = jax.jit(functools.partial(train, settings, CARTPOLE))(KEY)
    returns, episodes = (np.asarray(metrics[k]) for k in ("returns", "episodes"))
    first, last = (returns[s].sum() / episodes[s].sum() for s in (slice(8), slice(-8, None)))
    assert first < 60 and last > 120


@pytest.mark.slow
def test_moves_a_continuous_world():
    state, metrics = jax.jit(functools.partial(train, TINY, make("Pendulum-v1")))(KEY)
    assert np.any(state.network.log_std[...] != 0)
    assert np.all(np.isfinite(metrics["value_loss"]))


@pytest.mark.parametrize("anneal", [True, False])
def test_annealing(anneal):
    # With a gradient that never changes, a step of Adam is as large as the learning rate.
    settings = PPO(total_steps=512 * 2 + 100, epochs=1, minibatches=2, anneal=anneal)
    optimizer, parameter = settings.optimizer, jnp.zeros(1)
    memory, sizes = optimizer.init(parameter), []
    for _ in range(5):
        change, memory = optimizer.update(jnp.ones(1), memory)
        sizes.append(-change[0] / 2.5e-4)
    expected = [1.0, 0.75, 0.5, 0.25, 0.0] if anneal else [1.0] * 5
    np.testing.assert_allclose(sizes, expected, rtol=1e-4)


@pytest.mark.parametrize(("norm", "expected"), [(0.5, [0.3, 0.4]), (0, [3.0, 4.0])])
def test_the_gradient_is_clipped_unless_the_norm_is_0(norm, expected):
    optimizer = PPO(max_gradient_norm=norm).optimizer
    gradient = jnp.array([3.0, 4.0])
    memory = optimizer.update(gradient, optimizer.init(gradient))[1]
    np.testing.assert_allclose(10 * optax.tree.get(memory, "mu"), expected, rtol=1e-5)


def test_it_acts_at_random_only_to_explore():
    settings = PPO(hidden=(4,))
    state = settings.init(KEY, CARTPOLE)
    observations = jnp.ones((200, 4))
    acted = {
        explore: settings.act(state, (), observations, KEY, explore=explore)
        for explore in (False, True)
    }
    assert [memory for memory, _, _ in acted.values()] == [(), ()]
    assert len(np.unique(acted[False][1])) == 1 and len(np.unique(acted[True][1])) == 2
    assert settings.wants == contract.Steps(steps=128, copies=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 3}, r"minibatches is 3, expected a divisor of copies \* steps = 4 \* 128"),
        (
            {"minibatches": 512},
            r"minibatches is 512, expected less than copies \* steps = 4 \* 128",
        ),
        ({"copies": 4.0}, "copies is 4.0, expected a whole number of at least 1"),
        ({"total_steps": float("inf")}, "total_steps is inf, expected a whole number"),
        ({"entropy_coefficient": float("nan")}, "entropy_coefficient is nan"),
        ({"clip": 1.5}, "clip is 1.5"),
        ({"total_steps": 511}, r"total_steps is 511, expected at least copies \* steps = 4 \* 128"),
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
        PPO(**changes)
