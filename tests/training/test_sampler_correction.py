"""Samples of rounded weights, corrected: the expected gradient is the trained policy's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import algorithms, policies
from polgrad.contract import Context
from polgrad.training.scoring import Scoring, score
from polgrad.training.step import make_gradient

V, REWARDS = 6, np.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], np.float32)
NETWORK = policies.TransformerNetwork(
    policies.TransformerConfig(vocab_size=V, width=8, layers=1, heads=2, max_length=8)
)


def every_answer():
    """A prompt with each answer of one token."""
    return {
        "prompts": jnp.tile(jnp.array([[1, 4, 2]]), (V, 1)),
        "prompt_lengths": jnp.full(V, 3),
        "completions": jnp.arange(V)[:, None],
        "completion_lengths": jnp.ones(V, int),
        "mask": jnp.ones((V, 1)),
        "advantages": jnp.asarray(REWARDS)[:, None],
    }


LOGP = jax.jit(lambda params: score(NETWORK, params, every_answer()).logp)


def expected_gradient(params, cap):
    """Of REINFORCE, over the answers of the policy with rounded weights."""
    batch = every_answer()
    logp = LOGP(NETWORK.round_layers(params))
    batch |= {"sampler_logp": logp, "weights": jnp.exp(logp)}
    correction = algorithms.TruncatedWeights(cap) if cap else None
    settings = algorithms.Reinforce(baseline="none", sampler_correction=correction)
    algorithm = settings.build(Context(1, 1, 1, on_policy=True))
    gradient = jax.jit(make_gradient(NETWORK, algorithm, Scoring()))
    return gradient(params, batch, jax.random.key(0))[1]


@pytest.mark.slow
def test_truncated_weights_give_the_gradient_of_the_trained_policy():
    params = NETWORK.init(jax.random.key(3))
    # Large enough to round: at the start of training eight bits change little.
    params = jax.tree.map(lambda x: 12 * x if x.ndim > 1 else x, params)

    def objective(params):
        return -(jnp.exp(LOGP(params)[:, 0]) * REWARDS).sum()

    exact = jax.jit(jax.grad(objective))(params)
    scale = max(float(abs(x).max()) for x in jax.tree.leaves(exact))

    def error(cap):
        pairs = zip(jax.tree.leaves(exact), jax.tree.leaves(expected_gradient(params, cap)))
        return max(float(abs(a - b).max()) for a, b in pairs) / scale

    assert error(100.0) < 1e-5
    assert error(0.0) > 5e-4  # uncorrected
