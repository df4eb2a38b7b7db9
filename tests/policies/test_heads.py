"""The chunked head against the dense one: values, gradients and peak memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polgrad.policies import heads
from polgrad.rehearsal import costs as program_costs
from polgrad.training.runtime import mesh as mesh_lib

B, T, D, V = 3, 7, 5, 11


def dense(hidden, head, targets, temperature):
    log_p = jax.nn.log_softmax(hidden @ head / temperature, -1)
    logp = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return logp, -(jnp.exp(log_p) * log_p).sum(-1)


def inputs(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D), dtype)
    head = jax.random.normal(keys[1], (D, V), dtype)
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    return hidden, head, targets, jax.random.normal(keys[3], (2, B, T), dtype)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("chunk", "temperature"), [(1, 0.6), (3, 1.0), (7, 0.6), (100, 1.0), (None, 0.6)]
)
def test_value_and_gradient_equal_the_dense_form(chunk, temperature):
    with jax.enable_x64(True):
        hidden, head, targets, g = inputs(jnp.float64)

        def ours(h, w):
            return heads.token_logp(h, w, targets, temperature=temperature, chunk=chunk)

        def theirs(h, w):
            return dense(h, w, targets, temperature)

        np.testing.assert_allclose(ours(hidden, head), theirs(hidden, head), rtol=1e-12)
        loss = [
            jax.grad(lambda h, w, f=f: (g * jnp.stack(f(h, w))).sum(), (0, 1))
            for f in (ours, theirs)
        ]
        for a, b in zip(loss[0](hidden, head), loss[1](hidden, head)):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("chunk", "entropy_gradient"), [(3, True), (None, False)])
def test_a_cap_bends_values_and_gradients_as_the_dense_form_does(chunk, entropy_gradient):
    cap, temperature = 1.5, 0.7
    with jax.enable_x64(True):
        hidden, head, targets, g = inputs(jnp.float64)

        def ours(h, w):
            settings = {"temperature": temperature, "entropy_gradient": entropy_gradient}
            capped = heads.CappedHead(w, cap)
            return heads.token_logp(h, capped, targets, chunk=chunk, **settings)

        def theirs(h, w):
            log_p = jax.nn.log_softmax(cap * jnp.tanh(h @ w / cap) / temperature, -1)
            logp = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
            entropy = -(jnp.exp(log_p) * log_p).sum(-1)
            return logp, entropy if entropy_gradient else jax.lax.stop_gradient(entropy)

        def loss(form, h, w):
            outputs = jnp.stack(form(h, w))
            return (g * outputs).sum(), outputs

        found, expected = (
            jax.jit(jax.grad(functools.partial(loss, form), (0, 1), has_aux=True))(hidden, head)
            for form in (ours, theirs)
        )
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
        for a, b in zip(found[0], expected[0]):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_logits_are_capped_where_the_head_says_so():
    hidden, head, _, _ = inputs(jnp.float32)
    plain = np.asarray(hidden) @ np.asarray(head)
    np.testing.assert_allclose(heads.logits(hidden, head), plain, rtol=1e-4, atol=1e-5)
    capped = heads.CappedHead(head, 2.0)
    expected = 2 * np.tanh(plain / 2)
    np.testing.assert_allclose(heads.logits(hidden, capped), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain).max() > 4
    low = jax.ShapeDtypeStruct(hidden.shape, jnp.bfloat16)
    assert jax.eval_shape(heads.logits, low, capped).dtype == jnp.float32
    with pytest.raises(TypeError, match="heads.logits"):
        hidden @ capped


def test_entropy_gradient_can_be_switched_off():
    hidden, head, targets, _ = inputs(jnp.float32)

    def entropy(h, on):
        return heads.token_logp(h, head, targets, entropy_gradient=on)[1].sum()

    assert np.abs(jax.grad(entropy)(hidden, True)).max() > 1e-3
    assert np.abs(jax.grad(entropy)(hidden, False)).max() == 0


def test_no_array_of_all_logits_in_the_compiled_gradient():
    batch, length, width, vocabulary = 4, 256, 8, 4096

    def loss(chunk):
        def f(h, w):
            return heads.token_logp(h, w, jnp.zeros((batch, length), jnp.int32), chunk=chunk)[
                0
            ].sum()

        shapes = [
            jax.ShapeDtypeStruct(s, jnp.float32)
            for s in [(batch, length, width), (width, vocabulary)]
        ]
        return jax.jit(jax.grad(f, (0, 1))).lower(*shapes).compile().memory_analysis()

    full = 4 * batch * length * vocabulary
    assert loss(8).temp_size_in_bytes < full / 4 < loss(length).temp_size_in_bytes


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"chunk": 0}])
def test_bad_numbers_are_named(bad):
    hidden, head, targets, _ = inputs(jnp.float32)
    with pytest.raises(ValueError, match=next(iter(bad))):
        heads.token_logp(hidden, head, targets, **bad)


def test_the_score_is_read_at_the_last_token():
    keys = jax.random.split(jax.random.key(1), 2)
    hidden, weight = jax.random.normal(keys[0], (4, 5, D)), jax.random.normal(keys[1], (D,))
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    score = jax.jit(lambda h, w, m: heads.last_token_score(h, w, m, bias=0.5))
    expected = [*(np.asarray(hidden)[[0, 1, 2], [4, 1, 2]] @ np.asarray(weight) + 0.5), 0.0]
    np.testing.assert_allclose(score(hidden, weight, mask), expected, rtol=1e-5)
    plain = jax.jit(heads.last_token_score)(hidden, weight, mask > 0)
    np.testing.assert_allclose(plain[:3], np.array(expected)[:3] - 0.5, rtol=1e-4)
    # What stands behind the last token does not matter, and gets no gradient.
    padded = jnp.where(mask[..., None] > 0, hidden, jnp.nan)
    np.testing.assert_array_equal(score(padded, weight, mask), score(hidden, weight, mask))
    slope = jax.jit(jax.grad(lambda h, w: score(h, w, mask).sum(), (0, 1)))
    to_hidden, to_weight = slope(padded, weight)
    there = jnp.zeros((4, 5), bool).at[jnp.arange(3), jnp.array([4, 1, 2])].set(True)
    np.testing.assert_allclose(to_hidden, jnp.where(there[..., None], weight, 0.0), rtol=1e-6)
    np.testing.assert_allclose(to_weight, slope(hidden, weight)[1], rtol=1e-6)
    low = score(hidden.astype(jnp.bfloat16), weight, mask)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="mask has shape"):
        heads.last_token_score(hidden, weight, mask[:, :4])


def on_mesh(mesh, chunk):
    """Compiled gradients with the head split over rows and columns, and the batch over rows."""
    split = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    batch, head = split(("data", "fsdp")), split("fsdp", "tensor")

    def loss(hidden, head, targets):
        logp, entropy = heads.token_logp(hidden, head, targets, chunk=chunk)
        return logp.sum() + 0.5 * entropy.sum()

    with jax.set_mesh(mesh):
        program = jax.jit(
            jax.grad(loss, (0, 1)), in_shardings=(batch, head, batch), out_shardings=(batch, head)
        )
        return program.lower(*example()).compile()


def example():
    random = np.random.default_rng(0)
    hidden = random.standard_normal((8, 16, 16)).astype(np.float32)
    head = random.standard_normal((16, 64)).astype(np.float32)
    return hidden, head, random.integers(0, 64, (8, 16))


def test_on_a_mesh_the_gradient_is_that_of_one_device_and_no_chunk_sends_the_head():
    mesh = mesh_lib.make({"data": 2, "fsdp": 2, "tensor": 2})
    few, many = on_mesh(mesh, 8), on_mesh(mesh, 1)
    expected = on_mesh(mesh_lib.make({"data": 1}), 16)(*example())
    for found, exact in zip(many(*example()), expected):
        np.testing.assert_allclose(found, exact, atol=1e-5)
    sent = [
        sum(c.bytes for c in program_costs.measure(p.as_text()).collectives.values())
        for p in (few, many)
    ]
    # Statistics of each position are exchanged once, whatever the chunks; so is the head.
    np.testing.assert_allclose(*sent, rtol=0.02)
