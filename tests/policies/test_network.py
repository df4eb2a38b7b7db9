"""Helpers that networks share."""

import jax
import numpy as np
import pytest

from polgrad.policies import network


def test_initialize_follows_key_and_name():
    leaves = {"a": ((3, 500), 0.5), "ones": ((2,), "ones"), "large": ((1200, 1000), 1.0)}
    draw = jax.jit(lambda key: network.initialize(key, leaves))
    first, other = draw(jax.random.key(0)), draw(jax.random.key(1))
    assert set(first) == set(leaves)
    assert {name: leaf.shape for name, leaf in first.items()} == {
        name: shape for name, (shape, _) in leaves.items()
    }
    assert np.mean(first["a"] == other["a"]) < 0.01
    np.testing.assert_array_equal(first["ones"], [1, 1])
    assert np.std(first["a"]) == pytest.approx(0.5, rel=0.1)
    assert np.std(first["large"]) == pytest.approx(1.0, rel=0.01)
    assert abs(np.corrcoef(first["a"].reshape(-1), first["large"].reshape(-1)[:1500])[0, 1]) < 0.1
    alone = network.initialize(jax.random.key(0), {"b": ((4,), 1.0), "a": ((3, 500), 0.5)})
    np.testing.assert_allclose(alone["a"], first["a"], atol=1e-6)
    assert np.all(alone["b"] != first["a"].reshape(-1)[:4])
