"""Helpers that networks share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from polgrad.policies import network


def test_shard_batch_asks_for_nothing_outside_a_mesh():
    x = jnp.ones((3, 2))
    assert network.shard_batch(x) is x


def test_shard_batch_constrains_inside_a_mesh_and_tolerates_odd_batches():
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        text = str(jax.make_jaxpr(network.shard_batch)(jnp.ones((4, 2))))
        np.testing.assert_array_equal(jax.jit(network.shard_batch)(jnp.ones((3, 2))), 1.0)
    assert "sharding_constraint" in text
    assert "('data',)" in text or "data" in text


def test_initialize_follows_key_and_name():
    key = jax.random.key(0)
    first = network.initialize(key, "a", (3,), 0.5)
    np.testing.assert_array_equal(first, network.initialize(key, "a", (3,), 0.5))
    assert np.all(first != network.initialize(key, "b", (3,), 0.5))
    assert np.all(first != network.initialize(jax.random.key(1), "a", (3,), 0.5))
    np.testing.assert_array_equal(network.initialize(key, "a", (2,), "ones"), [1, 1])
