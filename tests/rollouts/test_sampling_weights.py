"""Weights of the sampler: how they lie, that nothing is sampled otherwise, and what decoding sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import policies
from polgrad.rehearsal import costs as program_costs
from polgrad.rollouts import Sampling, generate, sampling_weights
from polgrad.training.runtime import mesh as mesh_lib

CONFIG = policies.TransformerConfig(
    vocab_size=32,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp_width=24,
    max_length=16,
    qkv_bias=True,
)
NETWORK = policies.TransformerNetwork(CONFIG)


def abstract(mesh):
    params = NETWORK.shapes()
    shardings = mesh_lib.parameter_shardings(NETWORK, params, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )


def layout(mesh, **settings):
    given = {"dtype": jnp.dtype("bfloat16"), "gather": "always", "memory": None, **settings}
    return sampling_weights.layout(abstract(mesh), NETWORK.logical_axes(), mesh, **given)


def test_matrices_are_narrow_and_whole_over_fsdp_alone():
    mesh = mesh_lib.make({"fsdp": 2, "tensor": 2})
    held = layout(mesh)
    query, bias = (held["layers"]["attention"]["query"][name] for name in ("kernel", "bias"))
    assert (query.dtype, bias.dtype) == (jnp.bfloat16, jnp.float32)
    assert query.sharding.shard_shape(query.shape) == (2, 16, 2, 4)
    assert held["embed"].dtype == jnp.bfloat16
    assert held["embed"].sharding.shard_shape((32, 16)) == (16, 16)
    norm = held["layers"]["mlp_norm"]["scale"]
    assert norm.dtype == jnp.float32
    never = layout(mesh, gather="never")["layers"]["attention"]["query"]["kernel"]
    assert never.sharding.shard_shape(never.shape) == (2, 8, 2, 4)
    assert never.dtype == jnp.bfloat16
    assert layout(mesh, dtype=None)["embed"].dtype == jnp.float32


def test_auto_gathers_what_takes_a_third_of_the_memory():
    mesh = mesh_lib.make({"fsdp": 4})
    size = sampling_weights.bytes_of_a_device(layout(mesh))
    whole = layout(mesh)["embed"].sharding
    assert layout(mesh, gather="auto", memory=3.0 * size)["embed"].sharding == whole
    assert layout(mesh, gather="auto", memory=3.0 * size - 3)["embed"].sharding != whole
    assert layout(mesh, gather="auto")["embed"].sharding != whole
    assert sampling_weights.memory_of(mesh) is None  # a CPU
    # Of processes that were told different sizes, all go by the least.
    assert sampling_weights.smallest([3.0, 2.0]) == 2.0
    assert sampling_weights.smallest([3.0, None]) is None and sampling_weights.smallest([]) is None


def test_nothing_is_copied_where_nothing_changes():
    mesh = mesh_lib.make({"data": 1})
    held = layout(mesh, dtype=jnp.dtype("float32"))
    params = NETWORK.init(jax.random.key(0))
    assert sampling_weights.converter(abstract(mesh), held)(params) is params


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_same_is_sampled_and_no_step_gathers_weights(dtype):
    mesh = mesh_lib.make({"fsdp": 4})
    prompts = np.random.default_rng(0).integers(1, 32, (4, 4))

    def sample(params):
        return generate(
            NETWORK,
            params,
            prompts,
            np.full(4, 4),
            np.arange(4, dtype=np.uint32),
            jax.random.key(1),
            sampling=Sampling(max_tokens=8, stop_ids=()),
            group_size=2,
            compute_dtype=jnp.dtype(dtype),
        )

    with jax.set_mesh(mesh):
        params = NETWORK.init(jax.random.key(0))
        params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, abstract(mesh))
        held = layout(mesh, dtype=jnp.dtype(dtype))
        trees = params, sampling_weights.converter(abstract(mesh), held)(params)
        fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        programs = [jax.jit(sample).lower(tree).compile(fast) for tree in trees]
        split, whole = (program(tree) for program, tree in zip(programs, trees))
    np.testing.assert_array_equal(split.completions, whole.completions)
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # sums in another order
    np.testing.assert_allclose(split.behavior_logp, whole.behavior_logp, atol=tolerance)
    before, after = (sent_in_a_step(program.as_text()) for program in programs)
    matrices = 4 * (3 / 4) * CONFIG.layers * (4 * 16 * 16 + 3 * 16 * 24)
    assert before > 0.5 * matrices * (jnp.dtype(dtype).itemsize / 4)
    assert after < 0.1 * before  # tokens and bookkeeping


def sent_in_a_step(text):
    """Bytes of one more run of the decoding loop, without slots that are refilled."""
    once, twice = (
        program_costs.measure(text, unknown_trips=(n, 0.0)).collectives for n in (1.0, 2.0)
    )
    return sum(c.bytes for c in twice.values()) - sum(c.bytes for c in once.values())
