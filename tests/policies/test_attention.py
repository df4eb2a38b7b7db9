"""Attention, windows and rotary positions against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import policies
from polgrad.policies import attention


def config(**changes):
    settings = {"vocab_size": 5, "width": 8, "layers": 1, "heads": 1, "head_dim": 8, **changes}
    return policies.TransformerConfig(**settings)


def test_rotation_by_hand():
    table = attention.rotary_table(
        jnp.array([[3]]), config(head_dim=4, rope_theta=100.0), "float32"
    )
    turned = attention.rotate(jnp.array([1.0, 2.0, 5.0, 7.0]).reshape(1, 1, 1, 4), table)[0, 0, 0]
    # Pairs (1, 5) and (2, 7) turn by 3 and by 3 / sqrt(100).
    first = (1 + 5j) * np.exp(3j)
    second = (2 + 7j) * np.exp(0.3j)
    expected = [first.real, second.real, first.imag, second.imag]
    np.testing.assert_allclose(turned, expected, rtol=1e-5)


def test_linear_scaling_slows_every_frequency():
    plain = attention.rotary_frequencies(config())
    np.testing.assert_allclose(plain, 10_000.0 ** -np.array([0, 0.25, 0.5, 0.75]))
    scaled = attention.rotary_frequencies(config(rope_scaling=policies.RopeScaling("linear", 4.0)))
    np.testing.assert_allclose(scaled, plain / 4)


def test_llama3_scaling_has_three_bands():
    # Turns within the original length: 1000 f / 2 pi = 159, 15.9, 1.59, 0.159 for theta 10^4.
    scaling = policies.RopeScaling("llama3", 8.0, 1.0, 4.0, 1000)
    plain = attention.rotary_frequencies(config())
    scaled = attention.rotary_frequencies(config(rope_scaling=scaling))
    np.testing.assert_allclose(scaled[:2], plain[:2])
    np.testing.assert_allclose(scaled[3], plain[3] / 8)
    smooth = (1000 * plain[2] / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(scaled[2], (1 - smooth) * plain[2] / 8 + smooth * plain[2])


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_is_a_masked_softmax(groups):
    random = np.random.default_rng(3)
    query = random.standard_normal((1, 3, 2 * groups, 4)).astype(np.float32)
    key, value = random.standard_normal((2, 1, 3, 2, 4)).astype(np.float32)
    mask = np.ones((1, 1, 3, 3), bool)
    mask[..., 2, 0] = False
    out = attention.attention(*map(jnp.asarray, (query, key, value, mask)), causal=True)
    for t, seen in enumerate([[0], [0, 1], [1, 2]]):
        for head in range(2 * groups):
            scores = key[0, seen, head // groups] @ query[0, t, head] / 2
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = weights @ value[0, seen, head // groups]
            np.testing.assert_allclose(out[0, t, head], expected, atol=1e-5)


def test_scores_are_divided_and_capped_before_the_softmax():
    random = np.random.default_rng(4)
    query, key, value = (10 * random.standard_normal((1, 3, 1, 4)) for _ in range(3))
    mask = np.ones((1, 1, 3, 3), bool)
    settings = {"causal": True, "scalar": 9, "cap": 2.0}
    out = attention.attention(*map(jnp.asarray, (query, key, value, mask)), **settings)
    for t in range(3):
        scores = key[0, : t + 1, 0] @ query[0, t, 0] / 3
        weights = np.exp(2 * np.tanh(scores / 2))
        expected = weights @ value[0, : t + 1, 0] / weights.sum()
        np.testing.assert_allclose(out[0, t, 0], expected, rtol=1e-4, atol=1e-4)
    # Without a cap it is the kernel that divides.
    plain = attention.attention(*map(jnp.asarray, (query, key, value, mask)), scalar=9)
    scores = np.einsum("tk,sk->ts", query[0, :, 0], key[0, :, 0]) / 3
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ value[0, :, 0] / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(plain[0, :, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_window_counts_positions_of_a_local_layer():
    shape = config(layers=5, window=2, global_every=3)
    np.testing.assert_array_equal(attention.local_layers(shape), [1, 1, 0, 1, 1])
    mask = np.ones((1, 1, 2, 4), bool)
    mask[..., 3] = False
    queries, keys = np.array([[5, 1]]), np.array([[0, 4, 3, 1]])
    local = attention.in_window(mask, queries, keys, shape, True)
    # Position 5 sees 4 and itself; position 1 sees 0 and (by distance alone) later ones.
    np.testing.assert_array_equal(local[0, 0], [[0, 1, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(attention.in_window(mask, queries, keys, shape, False), mask)
    assert attention.local_layers(config()) is None


def test_local_layers_turn_by_their_own_base():
    shape = config(
        rope_theta=1e6,
        rope_scaling=policies.RopeScaling("linear", 8.0),
        window=2,
        global_every=2,
        local_rope_theta=16.0,
    )
    np.testing.assert_allclose(
        attention.rotary_frequencies(shape, local=True), 16.0 ** -np.array([0, 0.25, 0.5, 0.75])
    )
    tables = attention.rotary_tables(jnp.array([[3]]), shape, "float32")
    np.testing.assert_allclose(
        tables(jnp.array(True))[1][0, 0, 0], np.sin(3 / np.array([1, 2, 4, 8])), rtol=1e-5
    )
    stretched = np.sin(3 / 8 * 1e6 ** -np.array([0, 0.25, 0.5, 0.75]))
    np.testing.assert_allclose(tables(jnp.array(False))[1][0, 0, 0], stretched, rtol=1e-5)


def packed(dtype):
    """Two heads a group, two sequences in a row and padding after them; and what to attend to."""
    random = np.random.default_rng(5)
    query = random.standard_normal((2, 6, 4, 8))
    key, value, weight = (random.standard_normal((2, 6, n, 8)) for n in (2, 2, 4))
    segments = np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 4, 0, 0]])
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]
    counted = weight * (segments != 0)[..., None, None]
    return [jnp.asarray(x, dtype) for x in (query, key, value)], mask[:, None], jnp.asarray(counted)


def value_and_gradients(dtype):
    arrays, mask, weight = packed(dtype)

    def loss(query, key, value):
        out = attention.attention(query, key, value, mask, causal=True)
        return (out * weight.astype(out.dtype)).sum(), out * (weight != 0)

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return [np.asarray(x, np.float64) for x in (out, *gradients)]


def assert_equal_up_to(tolerance, found, expected):
    for a, b in zip(found, expected):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.slow
def test_the_path_of_jax_nn_equals_the_plain_path_on_packed_rows():
    with jax.enable_x64(True):
        plain = value_and_gradients(jnp.float64)  # kernels have no float64: this is our einsum
    assert all(np.abs(x).max() > 0.1 for x in plain)
    assert_equal_up_to(1e-5, value_and_gradients(jnp.float32), plain)
