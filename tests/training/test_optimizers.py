"""The optimiser's settings: schedules by hand, and which parameters Muon takes."""

import functools

import jax
import numpy as np
import optax
import pytest

from polgrad import policies
from polgrad.training import Optimizer
from polgrad.training.optimizers import clip_by_global_norm


def small_network():
    return policies.TransformerNetwork(
        policies.TransformerConfig(vocab_size=7, width=8, layers=2, heads=2, max_length=8)
    )


def updates_of(optimizer, network):
    """Updates of the first step under a random gradient, by path."""
    params = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    keys = jax.tree_util.keystr
    return {keys(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(updates)}


@functools.cache
def muon_updates():
    network = small_network()
    settings = Optimizer(method="muon", learning_rate=0.5, max_gradient_norm=0.0)
    return updates_of(settings.build(10, network.logical_axes()), network)


def test_schedules_by_hand():
    linear = Optimizer(learning_rate=1.0, schedule="linear", warmup=2).rate(12)
    assert [float(linear(i)) for i in (0, 1, 2, 7, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    cosine = Optimizer(learning_rate=1.0, schedule="cosine").rate(10)
    assert [float(cosine(i)) for i in (0, 5, 10)] == pytest.approx([1, 0.5, 0], abs=1e-7)
    assert float(Optimizer(learning_rate=0.3).rate(10)(9)) == pytest.approx(0.3)


def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest():
    muon, adam = muon_updates(), updates_of(optax.adamw(0.5, nesterov=True), small_network())
    for path, update in muon.items():
        if "kernel" in path:
            # As large as Adam's: a root mean square of 0.2 times the rate, whatever the shape.
            assert np.sqrt(np.mean(update**2)) == pytest.approx(0.2 * 0.5, rel=0.2), path
        else:
            np.testing.assert_allclose(update, adam[path], rtol=1e-3, err_msg=path)


def test_muon_orthogonalises_each_layer_by_itself():
    updates = muon_updates()
    path = next(p for p in updates if "mlp" in p and "up" in p)
    layers = updates[path]
    assert layers.shape[0] == 2 and layers.ndim == 3
    for layer in layers:
        singular = np.linalg.svd(layer, compute_uv=False)
        # Newton-Schulz leaves the singular values near one another, not equal.
        assert singular.max() < 2 * singular.min()


@pytest.mark.slow
def test_muon_without_momentum_forgets_the_gradient_before():
    network = small_network()
    params = network.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape), params) for _ in range(3)]

    def last(momentum, *gradients):
        settings = Optimizer(
            method="muon", learning_rate=1e-3, momentum=momentum, max_gradient_norm=0.0
        )
        optimizer = settings.build(10, network.logical_axes())
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
        return np.asarray(updates["layers"]["mlp"]["up"]["kernel"])

    one, other = last(0.0, grads[0], grads[2]), last(0.0, grads[1], grads[2])
    np.testing.assert_allclose(one, other, atol=1e-8)
    assert np.abs(last(0.95, grads[0], grads[2]) - last(0.95, grads[1], grads[2])).max() > 1e-5


def test_muon_needs_matrices():
    with pytest.raises(ValueError, match="the policy has no matrices"):
        Optimizer(method="muon", learning_rate=1e-3).build(
            1, policies.LinearNetwork(5, 4).logical_axes()
        )
    with pytest.raises(ValueError, match="the policy has no matrices"):
        Optimizer(method="muon", learning_rate=1e-3).build(1)


def test_clipping_bounds_the_norm_that_the_method_sees():
    params = {"w": np.zeros(3, np.float32)}
    grads = {"w": np.array([300.0, 0.0, 400.0], np.float32)}
    optimizer = Optimizer(learning_rate=1e-3, max_gradient_norm=1.0).build(1)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree_utils.tree_get(state, "mu")["w"]
    np.testing.assert_allclose(first_moment, 0.1 * np.array([0.6, 0, 0.8]), rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 40.0])
def test_clipping_is_that_of_optax(size):
    grads = {"w": np.array([0.6, 0.0], np.float32) * size, "b": np.float32(0.8 * size)}
    ours, theirs = clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    (found, _), (expected, _) = (c.update(grads, c.init(grads)) for c in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"learning_rate": 0.0},
            r"optimizer.learning_rate is 0.0; expected a number in \(0, 100\] \(at 0 no update",
        ),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
        (
            {"learning_rate": 1.0, "warmup": -1},
            "optimizer.warmup is -1; expected a whole number of at least 0",
        ),
        ({}, "learning_rate is None"),
    ],
)
def test_rates_that_cannot_be_used_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        Optimizer(**settings).build(10)
