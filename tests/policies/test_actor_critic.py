"""The actor-critic against scipy's distributions, a network written out, and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polgrad.policies.actor_critic import ActorCritic

KEY = jax.random.key(0)
OBSERVATIONS = jax.random.normal(jax.random.key(1), (5, 3))


def written_out(mlp, x, activation=np.tanh):
    """The network in numpy."""
    *hidden, last = [(np.asarray(a.kernel[...]), np.asarray(a.bias[...])) for a in mlp.layers]
    for kernel, bias in hidden:
        x = activation(x @ kernel + bias)
    return x @ last[0] + last[1]


def randomized(network, scale=0.5):
    """The network with no parameter at zero."""
    leaves, form = jax.tree.flatten(network)
    keys = jax.random.split(KEY, len(leaves))
    return form.unflatten([scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def test_start():
    network = ActorCritic(KEY, 3, actions=2, hidden=(8, 8))
    for mlp, last in ((network.policy, 0.01), (network.value, 1.0)):
        for layer, gain in zip(mlp.layers, (2**0.5, 2**0.5, last), strict=True):
            weight = np.asarray(layer.kernel[...])
            gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
            np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)
            assert not np.any(layer.bias[...])
    policy, value = (mlp.layers[1].kernel[...] for mlp in (network.policy, network.value))
    assert not np.array_equal(policy, value)
    gaussian = ActorCritic(KEY, 3, action_size=2)
    np.testing.assert_array_equal(gaussian.log_std[...], np.zeros(2))
    assert gaussian.policy.layers[-1].kernel.shape == (64, 2)


def test_many_networks_start_as_single_ones_do():
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: ActorCritic(key, 3, actions=2, hidden=(8,))))(keys)
    for i, key in enumerate(keys):
        alone = ActorCritic(key, 3, actions=2, hidden=(8,))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_discrete_statistics_and_values(activation):
    network = randomized(ActorCritic(KEY, 3, actions=4, hidden=(6, 5), activation=activation))
    act = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[activation]
    logits = written_out(network.policy, np.asarray(OBSERVATIONS), act)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    actions = np.array([0, 3, 1, 2, 2])
    logp, entropy = network.statistics(OBSERVATIONS, jnp.asarray(actions))
    np.testing.assert_allclose(logp, np.log(p[np.arange(5), actions]), rtol=1e-5)
    np.testing.assert_allclose(entropy, stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(network.mode(OBSERVATIONS), p.argmax(-1))
    expected = written_out(network.value, np.asarray(OBSERVATIONS), act)[:, 0]
    np.testing.assert_allclose(network.values(OBSERVATIONS), expected, rtol=1e-5)


def test_continuous_statistics():
    network = randomized(ActorCritic(KEY, 3, action_size=2, hidden=(6,)))
    mean = written_out(network.policy, np.asarray(OBSERVATIONS))
    std = np.exp(np.asarray(network.log_std[...]))
    actions = network.sample(OBSERVATIONS, KEY)
    noise = jax.random.normal(KEY, (5, 2))
    np.testing.assert_allclose(actions, mean + std * np.asarray(noise), rtol=1e-5)
    logp, entropy = network.statistics(OBSERVATIONS, actions)
    expected = stats.norm(mean, std).logpdf(np.asarray(actions)).sum(-1)
    np.testing.assert_allclose(logp, expected, rtol=1e-5)
    np.testing.assert_allclose(entropy, np.full(5, stats.norm(mean, std).entropy().sum(-1)[0]))
    np.testing.assert_allclose(network.mode(OBSERVATIONS), mean, rtol=1e-5)


def test_sampled_actions_are_distributed_as_the_policy_says():
    network = randomized(ActorCritic(KEY, 3, actions=3, hidden=(6,)))
    one = OBSERVATIONS[:1]
    drawn = network.sample(jnp.broadcast_to(one, (4000, 3)), KEY)
    logits = written_out(network.policy, np.asarray(one))[0]
    p = np.exp(logits) / np.exp(logits).sum()
    assert p.min() > 0.05 and np.ptp(p) > 0.1
    share = np.bincount(drawn, minlength=3) / 4000
    assert np.all(np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / 4000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "actions is None and action_size None, expected exactly one"),
        ({"actions": 2, "action_size": 2}, "actions is 2 and action_size 2"),
        ({"actions": 0}, "actions or action_size is 0"),
        ({"actions": 2, "hidden": ()}, r"hidden is \(\), expected at least one width"),
        ({"actions": 2, "activation": "gelu"}, "activation is 'gelu', expected one of tanh, relu"),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        ActorCritic(KEY, 3, **settings)
