"""Policies that the rollout tests share, and the oracle they are held to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.distributions import log_softmax
from polgrad.policies import LinearNetwork, TransformerConfig, TransformerNetwork, heads


class Given(NamedTuple):
    network: Any
    params: Any
    reference_params: Any


@pytest.fixture(scope="session")
def transformer() -> Given:
    config = TransformerConfig(
        vocab_size=12,
        width=16,
        layers=2,
        heads=2,
        kv_heads=1,
        mlp_width=16,
        max_length=32,
        tied=False,
    )
    network = TransformerNetwork(config)

    @jax.jit
    def init(key):
        # Far above the usual scale: the next token must depend on everything before it.
        return jax.tree.map(lambda x: 15 * x if x.ndim > 1 else x, network.init(key))

    return Given(network, *(init(jax.random.key(seed)) for seed in (0, 1)))


@pytest.fixture(scope="session")
def linear() -> Given:
    network = LinearNetwork(vocab_size=8, width=6)
    return Given(network, *(network.init(jax.random.key(seed)) for seed in (0, 1)))


@pytest.fixture(scope="session")
def teacher_forced():
    """Log-probabilities `[N, T, V]` before each completion token, by the training forward."""

    @jax.jit(static_argnames="network")
    def forward(network, params, tokens, segments, places):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = network.hidden(params, tokens, positions, segments)
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        return log_softmax(heads.logits(hidden, network.head(params)))

    def run(network, params, rollout):
        rollout = jax.tree.map(np.asarray, rollout)
        count, width = rollout.completions.shape
        tokens = np.zeros((count, rollout.prompts.shape[1] + width), np.int32)
        segments = np.zeros_like(tokens)
        for n in range(count):
            start, length = rollout.prompt_lengths[n], rollout.completion_lengths[n]
            tokens[n, :start] = rollout.prompts[n, :start]
            tokens[n, start : start + length] = rollout.completions[n, :length]
            segments[n, : start + length] = 1
        places = np.maximum(rollout.prompt_lengths[:, None] - 1, 0) + np.arange(width)
        return np.asarray(forward(network, params, tokens, segments, places))

    return run
