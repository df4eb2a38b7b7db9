"""What is asked of the partitioner, and where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polgrad.policies import sharding
from polgrad.rehearsal import costs as program_costs
from polgrad.training.runtime import mesh as mesh_lib


def test_shard_batch_asks_for_nothing_outside_a_mesh():
    x = jnp.ones((3, 2))
    assert sharding.shard_batch(x) is x


def test_shard_batch_constrains_inside_a_mesh_and_tolerates_odd_batches():
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        text = str(jax.make_jaxpr(sharding.shard_batch)(jnp.ones((4, 2))))
        np.testing.assert_array_equal(jax.jit(sharding.shard_batch)(jnp.ones((3, 2))), 1.0)
    assert "sharding_constraint" in text
    assert "('data',)" in text or "data" in text


def test_a_head_is_asked_for_in_all_rows_and_its_gradient_in_parts():
    mesh = mesh_lib.make({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        assert sharding.batch_parts(8) == 4 and sharding.batch_parts(6) == 1
        whole = jax.jit(sharding.whole_rows)(jnp.ones((6, 4)))
        parts = jax.jit(sharding.partial_sums)(jnp.ones((4, 6, 4)))
        odd = jax.jit(sharding.whole_rows)(jnp.ones((6, 5)))
    assert whole.sharding.shard_shape(whole.shape) == (6, 2)
    assert parts.sharding.shard_shape(parts.shape) == (1, 6, 2)
    assert odd.sharding.shard_shape(odd.shape) == (6, 5)


def test_axes_that_somebody_else_handles_are_left_alone():
    mesh = mesh_lib.make({"data": 4})

    def inside(x):
        assert sharding.batch_parts(8) == 1
        return sharding.whole_rows(sharding.shard_batch(x))

    spec = PartitionSpec(("data", "fsdp", "tensor"))
    x = jnp.arange(16.0).reshape(8, 2)
    out = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_array_equal(out, x)


def test_rows_are_written_where_they_lie():
    mesh = mesh_lib.make({"data": 2, "fsdp": 2, "tensor": 2})

    def write(leaf, new, places):
        return leaf.at[:, jnp.arange(places.shape[0]), places].set(new)

    leaf, new = jnp.zeros((3, 8, 5, 2)), jnp.arange(16.0).reshape(8, 2)
    places = jnp.array([4, 0, 1, 9, 2, 2, 3, 0])  # one is outside: it is dropped
    expected = write(leaf, new, places)
    assert sharding.over_batch(write, 8, (1, 0, 0), 1) is write

    def run(leaf, new, places):
        return sharding.over_batch(write, 8, (1, 0, 0), 1)(leaf, new, places)

    batch = PartitionSpec(("data", "fsdp"))
    specs = PartitionSpec(None, ("data", "fsdp"), None, "tensor"), batch, batch
    with jax.set_mesh(mesh):
        shardings = tuple(NamedSharding(mesh, s) for s in specs)
        program = jax.jit(run, in_shardings=shardings).lower(leaf, new, places).compile()
        assert sharding.over_batch(write, 6, (1, 0, 0), 1) is write
    np.testing.assert_array_equal(program(leaf, new, places), expected)
    assert not program_costs.measure(program.as_text()).collectives
