"""Invariances of the transformer: caching, packing, padding, rematerialisation, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import policies
from polgrad.policies.network import initialize

CONFIG = policies.TransformerConfig(
    vocab_size=29,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp_width=24,
    max_length=32,
    qkv_bias=True,
    qk_norm=True,
    tied=False,
    value_head=True,
    reward_head=True,
)
NETWORK = policies.TransformerNetwork(CONFIG)
# Gemma 2 and 3 in one: local layers around a global one, and a window that the rows are longer than.
GEMMA = policies.TransformerNetwork(
    dataclasses.replace(
        CONFIG,
        layers=3,
        activation="gelu_tanh",
        embedding_scale=True,
        centered_norms=True,
        post_norms=True,
        query_scalar=6,
        attention_cap=2.0,
        logit_cap=5.0,
        window=3,
        global_every=2,
        local_rope_theta=100.0,
    )
)
BOTH = pytest.mark.parametrize("network", [NETWORK, GEMMA], ids=["plain", "gemma"])
B, T = 3, 9
LENGTHS = np.array([9, 4, 6])


@functools.cache
def params(network=NETWORK):
    """Random parameters, norms and biases too: nothing hides behind a zero or a one."""
    random = np.random.default_rng(0)
    norms = 0.0 if network.config.centered_norms else 1.0

    def leaf(path, shape):
        start = norms if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(start + 0.3 * random.standard_normal(shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, network.shapes())


@functools.cache
def initial():
    """What training starts from."""
    return jax.jit(NETWORK.init)(jax.random.key(0))


@functools.cache
def tokens():
    return np.random.default_rng(2).integers(0, CONFIG.vocab_size, (B, T), np.int32)


@functools.cache
def compiled(network, method):
    static = ("compute_dtype", "remat") if method == "hidden" else ()
    return jax.jit(getattr(network, method), static_argnames=static)


def forward(*arrays, network=NETWORK, **settings):
    return compiled(network, "hidden")(*arrays, **settings)


@functools.cache
def full(network=NETWORK):
    """Hidden states of the right-padded rows."""
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    segments = (positions < LENGTHS[:, None]).astype(int)
    return forward(params(network), tokens(), positions, segments, network=network)


def test_it_is_a_network_with_plain_parameters():
    assert isinstance(NETWORK, policies.Network)
    assert all(type(node) is dict for node in (params(), params()["layers"]["mlp"]))
    axes = NETWORK.logical_axes()

    def check(leaf, names):
        assert leaf.ndim == len(names)
        assert set(names) <= {None, "layers", "embed", "heads", "kv_heads", "mlp", "vocab"}
        assert leaf.dtype == jnp.float32

    jax.tree.map(check, params(), axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    shapes = jax.tree.map(lambda leaf: leaf.shape, NETWORK.shapes())
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, params())


def test_initialisation_is_addressed_by_name():
    fresh = initial()
    kernel = fresh["layers"]["attention"]["key"]["kernel"]
    name = "layers/attention/key/kernel"
    alone = initialize(jax.random.key(0), {name: (kernel.shape, 0.02)})[name]
    np.testing.assert_allclose(kernel, alone, atol=1e-7)
    mlp = fresh["layers"]["mlp"]
    assert np.std(mlp["up"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.std(mlp["down"]["kernel"]) == pytest.approx(0.02 / np.sqrt(4), rel=0.1)
    assert not np.array_equal(mlp["up"]["kernel"], mlp["gate"]["kernel"])
    assert np.all(fresh["norm"]["scale"] == 1)
    assert np.all(fresh["value_head"]["kernel"] == 0)


@BOTH
def test_prefill_and_decode_give_the_full_forward(network):
    lengths = np.array([5, 1, 3])
    # A cache full of rubbish: nothing beyond what was written may be read.
    cache = jax.tree.map(lambda leaf: leaf + 7.0, network.init_cache(B, T + 2, jnp.float32))
    hidden, cache = compiled(network, "prefill")(params(network), tokens(), lengths, cache)
    rows, decode = np.arange(B), compiled(network, "decode")
    np.testing.assert_allclose(hidden, full(network)[rows, lengths - 1], atol=1e-5)
    for step in range(3):
        positions = lengths + step
        inputs = (tokens()[rows, positions], positions, cache)
        hidden, cache = decode(params(network), *inputs)
        np.testing.assert_allclose(hidden, full(network)[rows, positions], atol=1e-5)


def test_an_empty_prompt_is_decoded_from_position_zero():
    cache = NETWORK.init_cache(B, T + 2, jnp.float32)
    hidden, cache = compiled(NETWORK, "prefill")(params(), tokens(), np.zeros(B, int), cache)
    assert np.all(np.isfinite(hidden))
    hidden, cache = compiled(NETWORK, "decode")(params(), tokens()[:, 0], np.zeros(B, int), cache)
    np.testing.assert_allclose(hidden, full()[:, 0], atol=1e-5)


def test_a_row_outside_the_cache_writes_nothing():
    cache = NETWORK.init_cache(B, T + 2, jnp.float32)
    _, after = compiled(NETWORK, "decode")(params(), tokens()[:, 0], np.array([0, T + 2, 1]), cache)
    assert np.all(after["key"][:, 1] == 0)
    assert np.any(after["key"][:, 0, 0] != 0)
    assert np.any(after["key"][:, 2, 1] != 0)


def test_cache_leaves_have_the_batch_second():
    for leaf in jax.tree.leaves(NETWORK.init_cache(5, 7, jnp.bfloat16)):
        assert leaf.shape[:2] == (CONFIG.layers, 5)
        assert leaf.dtype == jnp.bfloat16


@BOTH
def test_packing_changes_nothing(network):
    rows = [np.asarray(tokens()[b, :n]) for b, n in enumerate(LENGTHS)]
    packed = np.concatenate([*rows, [0, 0]])[None]
    segments = np.concatenate([np.full(n, b + 4) for b, n in enumerate(LENGTHS)] + [[0, 0]])[None]
    positions = np.concatenate([np.arange(n) for n in LENGTHS] + [[0, 0]])[None]
    hidden = forward(params(network), packed, positions, segments, network=network)[0]
    start = 0
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden[start : start + n], full(network)[b, :n], atol=1e-5)
        start += n
    assert np.all(np.isfinite(hidden))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("network", "remat"), [(NETWORK, "none"), (NETWORK, "full"), (GEMMA, "full")]
)
def test_a_prompt_read_once_gives_each_completion_the_same_states(network, remat):
    random = np.random.default_rng(4)
    prompts, lengths = random.integers(0, CONFIG.vocab_size, (3, 5)), np.array([5, 2, 1])
    completions = random.integers(0, CONFIG.vocab_size, (3, 2, 4))
    shared = jax.jit(network.group_hidden, static_argnames="remat")
    shared = shared(params(network), prompts, lengths, completions, remat=remat)
    assert shared.shape == (3, 2, 5, CONFIG.width)
    positions = np.broadcast_to(np.arange(T), (B, T))
    segments = (positions < lengths[:, None] + 4).astype(int)
    for sample in range(2):
        whole = np.zeros((B, T), np.int32)
        for row, length in enumerate(lengths):
            whole[row, :length] = prompts[row, :length]
            whole[row, length : length + 4] = completions[row, sample]
        alone = forward(params(network), whole, positions, segments, network=network)
        for row, length in enumerate(lengths):
            expected = alone[row, length - 1 : length + 4]
            np.testing.assert_allclose(shared[row, sample], expected, atol=2e-5)


def test_padding_changes_nothing_before_it():
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    inside = np.arange(T) < LENGTHS[:, None]
    other = np.where(inside, tokens(), 11)
    hidden = forward(params(), other, positions, inside.astype(int))
    np.testing.assert_array_equal(hidden[inside], full()[inside])


def test_a_token_does_not_see_later_ones():
    changed = tokens().copy()
    changed[:, 5] = (changed[:, 5] + 1) % CONFIG.vocab_size
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    hidden = forward(params(), changed, positions, np.ones((B, T), int))
    plain = forward(params(), tokens(), positions, np.ones((B, T), int))
    np.testing.assert_array_equal(hidden[:, :5], plain[:, :5])
    assert np.all(np.any(hidden[:, 5:] != plain[:, 5:], axis=-1))


def test_only_differences_of_positions_matter():
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    shifted = forward(params(), tokens(), positions + 11, np.ones((B, T), int))
    plain = forward(params(), tokens(), positions, np.ones((B, T), int))
    np.testing.assert_allclose(shifted, plain, atol=2e-5)
    stretched = forward(params(), tokens(), 2 * positions, np.ones((B, T), int))
    assert np.max(np.abs(stretched - plain)) > 1e-2


def test_a_local_layer_sees_its_window_and_nothing_behind_it():
    network = policies.TransformerNetwork(dataclasses.replace(GEMMA.config, layers=1))
    changed = tokens().copy()
    changed[:, 2] = (changed[:, 2] + 1) % CONFIG.vocab_size
    # Two sequences in each row: the third token of the first is seen by itself and the next two.
    segments = np.broadcast_to(np.array([1, 1, 1, 1, 1, 1, 2, 2, 2]), (B, T))
    positions = np.broadcast_to(np.array([0, 1, 2, 3, 4, 5, 0, 1, 2]), (B, T))
    plain, other = (
        forward(params(network), x, positions, segments, network=network)
        for x in (tokens(), changed)
    )
    seen = np.array([0, 0, 1, 1, 1, 0, 0, 0, 0], bool)
    np.testing.assert_array_equal(np.any(plain != other, axis=-1), np.broadcast_to(seen, (B, T)))


@functools.cache
def gradient(network, remat):
    """Gradient of a sum over the unpadded hidden states."""
    positions = np.broadcast_to(np.arange(T), (B, T))
    segments = (positions < LENGTHS[:, None]).astype(int)

    def loss(params):
        hidden = network.hidden(params, tokens(), positions, segments, remat=remat)
        return jnp.sum(jnp.where(segments[..., None] > 0, jnp.sin(hidden), 0.0))

    return jax.jit(jax.grad(loss))(params())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("dots", 2)])
def test_remat_and_unroll_change_no_gradient(remat, unroll):
    network = policies.TransformerNetwork(dataclasses.replace(CONFIG, unroll=unroll))
    ours, expected = gradient(network, remat), gradient(NETWORK, "none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, expected)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(ours))
    assert max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(ours)) > 1


def test_float64_differs_from_float32_by_rounding_alone():
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    segments = (positions < LENGTHS[:, None]).astype(int)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params())
        hidden = forward(wide, tokens(), positions, segments, compute_dtype=jnp.float64)
        assert hidden.dtype == jnp.float64
        # Rows are alone in the batch or not: only float64 attention makes this small.
        alone = forward(wide, tokens()[:1], positions[:1], segments[:1], compute_dtype=jnp.float64)
        np.testing.assert_allclose(alone[0], hidden[0], atol=1e-12)
    inside = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(hidden)[inside], full()[inside], atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    segments = (positions < LENGTHS[:, None]).astype(int)
    hidden = forward(params(), tokens(), positions, segments, compute_dtype=jnp.bfloat16)
    assert hidden.dtype == jnp.bfloat16
    inside = np.asarray(segments) > 0
    error = np.asarray(hidden, np.float32)[inside] - full()[inside]
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.std(full()[inside])


def test_scalar_heads_are_linear_and_start_at_zero():
    fresh = initial()
    assert np.all(NETWORK.values(fresh, full()) == 0)
    head = params()["value_head"]
    expected = full() @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(NETWORK.values(params(), full()), expected, atol=1e-5)
    head = params()["reward_head"]
    expected = full()[:, -1] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(NETWORK.rewards(params(), full()[:, -1]), expected, atol=1e-5)


def test_tied_head_is_the_embedding():
    network = policies.TransformerNetwork(dataclasses.replace(CONFIG, tied=True))
    assert "head" not in network.shapes()
    tied = {name: leaf for name, leaf in params().items() if name != "head"}
    np.testing.assert_array_equal(network.head(tied), tied["embed"].T)
    capped = GEMMA.head(params(GEMMA))
    assert capped.cap == 5.0
    np.testing.assert_array_equal(capped.matrix, params(GEMMA)["head"])


def test_numpy_parameters_are_welcome():
    plain = jax.tree.map(np.asarray, params())
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    hidden = forward(plain, tokens(), positions, (positions < LENGTHS[:, None]).astype(int))
    np.testing.assert_array_equal(hidden, full())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"layers": 0}, "layers"),
        ({"unroll": 0}, "unroll"),
        ({"activation": "gelu"}, "activation must be .* got 'gelu'"),
        ({"logit_cap": 0.0}, "logit_cap is 0.0; expected a number above 0"),
        ({"attention_cap": float("inf")}, "attention_cap is Infinity; expected a finite number"),
        ({"heads": 2.7}, "heads is 2.7; expected a whole number of at least 1"),
        ({"heads": True}, "heads is true; expected a whole number"),
        ({"width": None}, "width is null; expected a whole number"),
        (
            {"vocab_size": 10**14},
            "vocab_size is 1.*; expected a whole number of at most 2147483647",
        ),
        ({"rope_theta": 0}, "rope_theta is 0; expected a number of at least 1"),
        ({"norm_epsilon": float("nan")}, r"norm_epsilon is NaN; expected a number in \[0, 1\]"),
        ({"tied": 1}, "tied is 1; expected true or false"),
        ({"rope_scaling": {}}, "rope_scaling must be None or a RopeScaling"),
        ({"query_scalar": -1}, "query_scalar"),
        ({"window": 0, "global_every": 2}, "window is 0; expected a whole number of at"),
        ({"window": 4}, "global_every must be at least 2"),
        ({"global_every": 2}, "window is None"),
        ({"local_rope_theta": 1e4}, "window is None"),
    ],
)
def test_a_bad_shape_is_named(change, name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(CONFIG, **change)


def test_bad_calls_are_named():
    ones = jnp.ones((1, 33), int)
    with pytest.raises(ValueError, match="max_length"):
        NETWORK.hidden(params(), ones, ones, ones)
    with pytest.raises(ValueError, match="max_length"):
        NETWORK.group_hidden(params(), ones[:, :30], ones[:, 0], ones[None, :, :3])
    with pytest.raises(ValueError, match="max_length"):
        NETWORK.init_cache(1, 33, jnp.float32)
    with pytest.raises(ValueError, match="remat"):
        NETWORK.hidden(params(), tokens(), tokens(), tokens(), remat="some")
    with pytest.raises(ValueError, match="tokens"):
        NETWORK.prefill(params(), tokens(), jnp.ones(B, int), NETWORK.init_cache(B, 4, jnp.float32))
    plain = policies.TransformerNetwork(dataclasses.replace(CONFIG, value_head=False))
    with pytest.raises(ValueError, match="value_head"):
        plain.values(params(), full())
    with pytest.raises(ValueError, match="yarn"):
        policies.RopeScaling("yarn", 2.0)
