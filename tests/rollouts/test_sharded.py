"""Sampling with sharded parameters, on eight simulated devices, against one device."""

import os
import subprocess
import sys

import numpy as np

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from polgrad.policies import TransformerConfig, TransformerNetwork
from polgrad.rollouts import Sampling, generate, pad_prompts

assert jax.device_count() == 8
RULES = {"embed": "fsdp", "vocab": "tensor", "mlp": "tensor", "heads": "tensor"}
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
tokens, lengths = pad_prompts([[3], [1, 2, 3, 4], [7, 7], [6, 5], [5, 1]], bucket=4, max_length=16)
config = TransformerConfig(
    vocab_size=12, width=8, layers=2, heads=2, kv_heads=1, mlp_width=16, max_length=16, tied=False
)
network = TransformerNetwork(config)
params = jax.jit(
    lambda: jax.tree.map(lambda x: 15 * x if x.ndim > 1 else x, network.init(jax.random.key(0)))
)()


@jax.jit
def sample(params, prompts):
    return generate(
        network, params, *prompts, jax.random.key(2),
        sampling=Sampling(max_tokens=8, stop_ids=(0,)), group_size=4, slots=8,
    )


prompts = (tokens, lengths, np.arange(5, dtype=np.uint32))
results = {f"one/{k}": v for k, v in sample(params, prompts)._asdict().items()}
with jax.set_mesh(mesh):
    specs = jax.tree.map(
        lambda axes: NamedSharding(mesh, PartitionSpec(*[RULES.get(a) for a in axes])),
        network.logical_axes(), is_leaf=lambda x: isinstance(x, tuple),
    )
    sharded = jax.device_put(params, specs)
    assert all(x.addressable_shards[0].data.size * 4 == x.size for x in (
        sharded["embed"], sharded["head"], sharded["layers"]["mlp"]["up"]["kernel"]
    ))
    # Four devices do not divide five prompts: each prefills two, some of them twice.
    prompts = jax.device_put(prompts, NamedSharding(mesh, PartitionSpec()))
    results |= {f"many/{k}": v for k, v in sample(sharded, prompts)._asdict().items()}
np.savez(sys.argv[1], **results)
"""


def test_eight_devices_sample_what_one_does(tmp_path):
    path = tmp_path / "rollouts.npz"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    results = np.load(path)
    # Sums run in another order, so a token may differ on a boundary; with this seed none does.
    for field in ("completions", "completion_lengths", "stopped", "mask"):
        np.testing.assert_array_equal(results[f"one/{field}"], results[f"many/{field}"])
    gap = results["one/behavior_logp"] - results["many/behavior_logp"]
    assert np.abs(gap).max() < 1e-5
    assert results["one/stopped"].any() and results["one/completion_lengths"].max() == 8
