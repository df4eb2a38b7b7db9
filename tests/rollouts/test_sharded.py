"""Sampling with sharded parameters, on eight simulated devices, against one device."""

import os
import subprocess
import sys

import numpy as np

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from polgrad.policies import LinearNetwork, TransformerConfig, TransformerNetwork
from polgrad.rollouts import Sampling, generate, pad_prompts

assert jax.device_count() == 8
RULES = {"embed": "fsdp", "vocab": "tensor", "mlp": "tensor", "heads": "tensor"}
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
tokens, lengths = pad_prompts([[3], [1, 2, 3, 4], [7, 7], [6, 5]], bucket=4, max_length=16)
results = {}
config = TransformerConfig(
    vocab_size=12, width=8, layers=2, heads=2, kv_heads=1, mlp_width=16, max_length=16, tied=False
)
for name, network in {"transformer": TransformerNetwork(config)}.items():
    params = jax.jit(
        lambda: jax.tree.map(
            lambda x: (15 if name == "transformer" and x.ndim > 1 else 1) * x,
            network.init(jax.random.key(0)),
        )
    )()
    def sample(params, prompts):
        rollout = jax.jit(
            lambda params, prompts: generate(
                network, params, *prompts, jax.random.key(2),
                sampling=Sampling(max_tokens=8, stop_ids=(0,)), group_size=4, slots=8,
            )
        )(params, prompts)
        return jax.tree.map(np.asarray, rollout)
    prompts = (tokens, lengths, np.arange(4, dtype=np.uint32))
    single = sample(params, prompts)
    with jax.set_mesh(mesh):
        specs = jax.tree.map(
            lambda axes: NamedSharding(mesh, PartitionSpec(*[RULES.get(a) for a in axes])),
            network.logical_axes(), is_leaf=lambda x: isinstance(x, tuple),
        )
        sharded = jax.device_put(params, specs)
        leaf = max(jax.tree.leaves(sharded), key=lambda x: x.size)
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size
        prompts = jax.device_put(prompts, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        many = sample(sharded, prompts)
    for kind, rollout in (("single", single), ("many", many)):
        for field, value in rollout._asdict().items():
            results[f"{name}/{kind}/{field}"] = value
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
    for name in ("linear", "transformer"):
        one, many = (
            {k.split("/")[2]: results[k] for k in results if k.startswith(f"{name}/{kind}/")}
            for kind in ("single", "many")
        )
        # Sums run in another order, so a token may differ on a boundary; with this seed none does.
        np.testing.assert_array_equal(one["completions"], many["completions"])
        np.testing.assert_array_equal(one["completion_lengths"], many["completion_lengths"])
        np.testing.assert_allclose(one["behavior_logp"], many["behavior_logp"], atol=1e-5)
        assert one["stopped"].any() and one["completion_lengths"].max() == 8
