"""The actor-critic against scipy's distributions, a network written out, and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polgrad.policies.actor_critic import ActorCritic

KEY = jax.random.key(0)
OBSERVATIONS = jax.random.normal(jax.random.key(1), (5, 3))


def written_out(layers, x, activation=np.tanh):
    """The network in numpy."""
    for layer in layers[:-1]:
        x = activation(x @ np.asarray(layer["weight"]) + np.asarray(layer["bias"]))
    return x @ np.asarray(layers[-1]["weight"]) + np.asarray(layers[-1]["bias"])


def randomized(network, scale=0.5):
    """Parameters with nothing at zero."""
    leaves, form = jax.tree.flatten(network.init(KEY))
    keys = jax.random.split(KEY, len(leaves))
    return form.unflatten([scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def test_start():
    params = ActorCritic(3, actions=2, hidden=(8, 8)).init(KEY)
    for tower, last in (("policy", 0.01), ("value", 1.0)):
        for layer, gain in zip(params[tower], (2**0.5, 2**0.5, last)):
            weight = np.asarray(layer["weight"])
            gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
            np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)
            assert not np.any(layer["bias"])
    assert not np.array_equal(params["policy"][1]["weight"], params["value"][1]["weight"])
    gaussian = ActorCritic(3, action_size=2).init(KEY)
    np.testing.assert_array_equal(gaussian["log_std"], np.zeros(2))
    assert gaussian["policy"][-1]["weight"].shape == (64, 2)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_discrete_statistics_and_values(activation):
    network = ActorCritic(3, actions=4, hidden=(6, 5), activation=activation)
    params = randomized(network)
    act = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[activation]
    logits = written_out(params["policy"], np.asarray(OBSERVATIONS), act)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    actions = np.array([0, 3, 1, 2, 2])
    logp, entropy = network.statistics(params, OBSERVATIONS, jnp.asarray(actions))
    np.testing.assert_allclose(logp, np.log(p[np.arange(5), actions]), rtol=1e-5)
    np.testing.assert_allclose(entropy, stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(network.mode(params, OBSERVATIONS), p.argmax(-1))
    expected = written_out(params["value"], np.asarray(OBSERVATIONS), act)[:, 0]
    np.testing.assert_allclose(network.values(params, OBSERVATIONS), expected, rtol=1e-5)


def test_continuous_statistics():
    network = ActorCritic(3, action_size=2, hidden=(6,))
    params = randomized(network)
    mean = written_out(params["policy"], np.asarray(OBSERVATIONS))
    std = np.exp(np.asarray(params["log_std"]))
    noise = jax.random.normal(KEY, (5, 2))
    actions = network.act(params, OBSERVATIONS, noise)
    np.testing.assert_allclose(actions, mean + std * np.asarray(noise), rtol=1e-5)
    logp, entropy = network.statistics(params, OBSERVATIONS, actions)
    expected = stats.norm(mean, std).logpdf(np.asarray(actions)).sum(-1)
    np.testing.assert_allclose(logp, expected, rtol=1e-5)
    np.testing.assert_allclose(entropy, np.full(5, stats.norm(mean, std).entropy().sum(-1)[0]))
    np.testing.assert_allclose(network.mode(params, OBSERVATIONS), mean, rtol=1e-5)
    assert network.noise(KEY).shape == (2,)


def test_sampled_actions_are_distributed_as_the_policy_says():
    network = ActorCritic(3, actions=3, hidden=(6,))
    params = randomized(network)
    one = OBSERVATIONS[:1]
    noise = jax.vmap(network.noise)(jax.random.split(KEY, 4000))
    drawn = network.act(params, jnp.broadcast_to(one, (4000, 3)), noise)
    logits = written_out(params["policy"], np.asarray(one))[0]
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
        ActorCritic(3, **settings)
