"""Eight devices learn as one does, in float32 and on stored rollouts; each holds its share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import GROUP, PROMPTS, P, T, V, stored_rollouts

from polgrad import algorithms, policies
from polgrad.contract import Context
from polgrad.training import Optimizer
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.step import Programs, make_gradient

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
KEY = jax.random.key(3)
ROLLOUTS = stored_rollouts(np.float32)


@functools.cache
def network():
    # Nothing here is square by accident: an axis laid over the wrong devices would show.
    return policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=V + 5, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48,
            max_length=P + T,
        )
    )  # fmt: skip


def algorithm():
    settings = algorithms.GRPO(kl=algorithms.KL(0.1), entropy=algorithms.Entropy(0.01))
    return settings.build(Context(GROUP, T, PROMPTS, on_policy=False))


def programs(sizes, method="adamw"):
    optimizer = Optimizer(method=method, learning_rate=1e-3).build(5, network().logical_axes())
    scoring = Scoring(entropy_gradient=True)
    return Programs(network(), algorithm(), optimizer, mesh_lib.make(sizes), scoring=scoring)


def batch_on(mesh):
    experience = jax.tree.map(jnp.asarray, ROLLOUTS)
    _, batch, _ = jax.jit(algorithm().prepare)((), experience, KEY)
    return mesh_lib.place_batch(batch, mesh)


@functools.cache
def learned(devices):
    """The first gradient, and five losses."""
    made = programs(EIGHT if devices == 8 else {"data": 1})
    function = make_gradient(network(), algorithm(), Scoring(entropy_gradient=True))
    with mesh_lib.entered(made.mesh):
        params = made.place_params(network().init(jax.random.key(0)))
        batch = batch_on(made.mesh)
        _, gradient, _ = jax.jit(function)(params, batch, KEY)
        state, losses = made.first_state(params), []
        for step in range(5):
            state, metrics = made.update(state, batch, jax.random.fold_in(KEY, step))
            losses.append(float(metrics["loss"]))
    return jax.device_get(gradient), losses


@pytest.mark.slow
def test_the_first_gradient_is_that_of_one_device():
    for (path, one), eight in zip(
        jax.tree_util.tree_leaves_with_path(learned(1)[0]), jax.tree.leaves(learned(8)[0])
    ):
        largest = np.abs(one).max()
        assert largest > 1e-4, path
        assert np.abs(one - eight).max() <= 1e-5 * largest, path


@pytest.mark.slow
def test_five_losses_are_those_of_one_device():
    one, eight = learned(1)[1], learned(8)[1]
    np.testing.assert_allclose(eight, one, atol=1e-5, rtol=0)
    assert one[4] < one[0] - 1e-3, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_each_device_holds_its_share_of_parameters_and_optimiser(method):
    made = programs(EIGHT, method)
    with mesh_lib.entered(made.mesh):
        state = made.first_state(made.place_params(network().init(jax.random.key(0))))
    for part in (state.params, state.optimizer):
        held = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(part):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        # Matrices are cut in four (fsdp x tensor); norms, a few per cent, lie everywhere.
        assert len(set(held.values())) == 1
        assert 0.25 * whole <= held[jax.devices()[0]] < 0.3 * whole
