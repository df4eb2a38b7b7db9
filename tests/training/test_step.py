"""The compiled update: what it overwrites in place, and what it never holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import algorithms, policies
from polgrad.contract import Context
from polgrad.training.optimizers import Optimizer
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.step import Programs

SEQUENCES, PROMPT = 4, 4


def make_network(length, vocabulary):
    return policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=vocabulary, width=16, layers=1, heads=2, max_length=length
        )
    )


@functools.cache
def compiled(length, vocabulary, micro_batches=1, chunk=8):
    """The compiled GRPO update of a small transformer, and the bytes of its state."""
    network = make_network(2048, vocabulary)
    context = Context(group_size=4, max_tokens=length, num_prompts=1, on_policy=True)
    mesh = mesh_lib.make({"data": 1})
    programs = Programs(
        network,
        algorithms.GRPO().build(context),
        Optimizer(learning_rate=1e-3).build(1),
        mesh,
        scoring=Scoring(remat="full", chunk=chunk),
        micro_batches=micro_batches,
    )

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((SEQUENCES, *shape), dtype)

    batch = {"prompts": of(jnp.int32, PROMPT), "completions": of(jnp.int32, length)}
    batch |= {name: of(jnp.int32) for name in ("prompt_lengths", "completion_lengths")}
    names = ("mask", "weights", "behavior_logp", "sampler_logp")
    batch |= {name: of(jnp.float32, length) for name in names}
    batch["advantages"] = of(jnp.float32, 1)
    with mesh_lib.entered(mesh):
        lowered = programs.lower_update(batch, jax.eval_shape(jax.random.key, 0))
        memory = lowered.compile().memory_analysis()
    sizes = [
        x.dtype.itemsize * int(np.prod(x.shape)) for x in jax.tree.leaves(programs.abstract_state)
    ]
    params = sum(4 * int(np.prod(x.shape)) for x in jax.tree.leaves(programs.abstract_state.params))
    return memory, sum(sizes), params


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_state_is_overwritten_in_place(micro_batches):
    memory, state, params = compiled(8, 4096, micro_batches, chunk=1)
    assert state == pytest.approx(3 * params, rel=0.01)  # parameters and two moments
    # All of it: what is left over is a handful of scalars.
    assert state - memory.alias_size_in_bytes < 1024
    # The gradient, the head's share of it while a chunk is walked, and a chunk's logits; a state
    # that is not donated would be three copies of the parameters more. Versions of the compiler differ
    # by a tenth in what they hold at once.
    chunk = 4 * SEQUENCES * 4096
    assert memory.temp_size_in_bytes < 3.8 * params + 2 * chunk


def test_nothing_grows_with_tokens_times_vocabulary():
    length, few, many = 256, 512, 2048
    grown = (
        compiled(length, many)[0].temp_size_in_bytes - compiled(length, few)[0].temp_size_in_bytes
    )
    logits = 4 * SEQUENCES * length * (many - few)
    assert grown < 0.1 * logits, grown / logits


def sharing_programs(network, mesh, **changes):
    """Programs for two prompts with three samples each."""
    context = Context(group_size=3, max_tokens=4, num_prompts=2, on_policy=True)
    return Programs(
        network,
        algorithms.GRPO().build(context)._replace(**changes),
        Optimizer(learning_rate=1e-3).build(1),
        mesh,
        scoring=Scoring(),
        samples=3,
        track_kl=True,
    )


@pytest.mark.slow
def test_an_order_that_mixes_prompts_is_seen():
    random = np.random.default_rng(0)
    network, mesh = make_network(16, 11), mesh_lib.make({"data": 1})
    programs = sharing_programs(network, mesh)
    experience = {
        "prompts": np.repeat(random.integers(0, 11, (2, 5)), 3, axis=0),
        "prompt_lengths": np.repeat([5, 3], 3),
        "completions": random.integers(0, 11, (6, 4)),
        "completion_lengths": np.full(6, 4),
        "mask": np.ones((6, 4), np.float32),
    }
    experience = jax.tree.map(jnp.asarray, experience)
    order = np.array([0, 3, 1, 4, 2, 5])
    mixed = jax.tree.map(lambda x: x[order], experience)
    with mesh_lib.entered(mesh):
        params = network.init(jax.random.key(0))
        logp = programs.complete(experience, params, {"reference": params})["reference_logp"]
        other = programs.complete(mixed, params, {"reference": params})["reference_logp"]
        assert [programs._shared_in_update(x) for x in (experience, mixed)] == [3, 1]
        # A selection may order the batch anew, behind this check.
        selecting = sharing_programs(network, mesh, select=lambda outputs, batch, key: batch)
        assert selecting._shared_in_update(experience) == 1
    np.testing.assert_allclose(other, logp[order], atol=1e-5)
