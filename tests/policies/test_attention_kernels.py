"""Kernels against the plain path in float64: values and gradients; which one a setting means."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import policies
from polgrad.policies import attention, attention_kernels
from polgrad.policies.attention_kernels import Rows
from polgrad.training.runtime import mesh as mesh_lib

# An interpreted kernel is a large program, and the arrays are tiny.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SPLASH = functools.partial(attention_kernels.splash, interpret=True)


def case(rows, *, heads=4, kv_heads=2, size=16, seed=0):
    """Queries, keys, values, and the weight of each result in a loss; 0 at padding."""
    random = np.random.default_rng(seed)
    (batch, length), span = rows.queries.shape, rows.keys.shape[1]
    shapes = [(batch, length, heads, size), *[(batch, span, kv_heads, size)] * 2]
    # Scores of some size: a scale, a cap or a segment left out shows.
    arrays = [2 * random.standard_normal(shape) for shape in shapes]
    weight = random.standard_normal(shapes[0]) * (np.asarray(rows.queries) != 0)[..., None, None]
    return arrays, weight


def packed(batch=1, length=200):
    """Two sequences, the second longer than a block, and padding."""
    segments = np.ones((batch, length), int)
    segments[:, 40:] = 2
    segments[:, 190:] = 0
    return Rows(jnp.asarray(segments), jnp.asarray(segments))


def completions():
    """Completions over a prompt that its part's left is padded for, as `group_hidden` has them."""
    keys = np.ones((2, 150 + 70), int)
    keys[0, :60] = keys[1, :145] = 0
    return Rows(jnp.ones((2, 70), int), jnp.asarray(keys), offset=150)


def plain(arrays, rows, window, scalar, cap):
    mask = rows.mask(window=window)
    return attention.attention(*arrays, mask, scalar=scalar, cap=cap)


def value_and_gradients(attend, arrays, weight):
    def loss(arrays):
        out = attend(*arrays)
        return (out * weight.astype(out.dtype)).sum(), jnp.where(weight != 0, out, 0.0)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)
    (_, out), gradients = run(arrays)
    return [np.asarray(x, np.float64) for x in (out, *gradients)]


def assert_equal_up_to(tolerance, found, expected):
    for a, b in zip(found, expected, strict=True):
        assert np.abs(b).max() > 0.1
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def expected(rows, arrays, weight, *, window=None, scalar=None, cap=None):
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arrays]
        return value_and_gradients(lambda *x: plain(x, rows, window, scalar, cap), wide, weight)


def narrow(arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("rows", "local", "settings"),
    [
        (packed(), True, {"window": 37, "scalar": 9.0, "cap": 3.0}),
        (completions(), None, {}),
        pytest.param(packed(), False, {"window": 37}, marks=pytest.mark.slow),
        pytest.param(completions(), True, {"window": 90, "cap": 3.0}, marks=pytest.mark.slow),
    ],
)
def test_splash_is_the_plain_path(rows, local, settings):
    arrays, weight = case(rows)
    attend = functools.partial(SPLASH, local=local, rows=rows, **settings)
    found = value_and_gradients(attend, narrow(arrays), weight)
    if not local:
        settings = {**settings, "window": None}
    assert_equal_up_to(1e-5, found, expected(rows, arrays, weight, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads"),
    [
        (4, 6, 3),  # the middle one of the keys' heads goes to both halves
        pytest.param(4, 4, 2, marks=pytest.mark.slow),
        pytest.param(3, 3, 1, marks=pytest.mark.slow),  # nothing can be split
    ],
)
def test_splash_on_a_mesh_is_the_plain_path(batch, heads, kv_heads):
    rows = packed(batch, 128)
    arrays, weight = case(rows, heads=heads, kv_heads=kv_heads)
    attend = functools.partial(SPLASH, local=None, rows=rows)
    with mesh_lib.entered(mesh_lib.make({"fsdp": 2, "tensor": 2})):
        found = value_and_gradients(attend, narrow(arrays), weight)
    assert_equal_up_to(1e-5, found, expected(rows, arrays, weight))


def test_each_device_attends_for_its_rows_and_heads():
    rows = packed(4, 128)
    (query, key, value), _ = case(rows)
    attend = functools.partial(SPLASH, local=None, rows=rows)
    with mesh_lib.entered(mesh_lib.make({"fsdp": 2, "tensor": 2})):
        text = jax.jit(attend).lower(*narrow((query, key, value))).as_text()
    assert "tensor<2x128x2x16xf32>" in text and "tensor<2x128x1x16xf32>" in text


GEMMA = policies.TransformerConfig(
    vocab_size=11,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    max_length=64,
    window=5,
    global_every=2,
    attention_cap=2.0,
    query_scalar=3.0,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "differentiated"),
    [
        ("group_hidden", False),
        pytest.param("group_hidden", True, marks=pytest.mark.slow),
        pytest.param("hidden", True, marks=pytest.mark.slow),
    ],
)
def test_a_policy_attends_through_the_kernel(method, differentiated, monkeypatch):
    network = policies.TransformerNetwork(GEMMA)
    random = np.random.default_rng(0)
    # Wide enough that what attention gives is a good part of the result.
    params = jax.tree.map(
        lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), network.shapes()
    )
    tokens = random.integers(0, 11, (2, 20))
    if method == "hidden":
        place = np.arange(20) * np.ones((2, 1), int)
        arguments = (tokens, np.where(place < 8, place, place - 8), np.where(place < 8, 1, 2))
    else:
        arguments = (tokens[:, :8], np.array([8, 3]), tokens[:, 8:].reshape(2, 2, 6))
    run = functools.partial(getattr(network, method), remat="full")

    def states(params, setting):
        hidden = run(params, *arguments, attention=setting)
        return jnp.sum(jnp.sin(hidden) ** 2), hidden

    if differentiated:
        states = jax.value_and_grad(states, has_aux=True)
    states = jax.jit(states, static_argnums=1, compiler_options=FAST)
    results = [states(params, "auto")]
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(attention_kernels, "splash", SPLASH)
    results.append(states(params, "splash"))
    for a, b in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("rows", [packed(2, 700), completions()])
def test_splash_is_what_a_program_for_tpus_calls(rows):
    (query, key, value), _ = case(rows, size=64)

    def loss(query, key, value):
        out = attention_kernels.splash(query, key, value, True, rows, window=90, cap=3.0)
        return out.astype(jnp.float32).sum()

    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = gradients.trace(*arrays).lower(lowering_platforms=("tpu",))
    # Forward, and two kernels back; of a local layer and of a global one.
    assert lowered.as_text().count("tpu_custom_call") == 6


def test_blocks_waste_little():
    for length, block in [(1, 128), (128, 128), (130, 128), (500, 512), (640, 128), (4095, 512)]:
        assert attention_kernels._block(length) == block
    for length in range(1024, 2048):
        assert -length % attention_kernels._block(length) <= length / 8


KERNEL = {"dtype": "bfloat16", "head_dim": 128, "cap": None, "length": 4096}


@pytest.mark.parametrize(
    ("platform", "changes", "kernel"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "splash"),
        ("tpu", {"dtype": "float32", "cap": 50.0, "head_dim": 256}, "splash"),
        ("tpu", {"dtype": "float64"}, "xla"),
        ("tpu", {"length": 127}, "xla"),
        ("gpu", {}, "cudnn"),
        ("cuda", {}, "cudnn"),
        ("rocm", {}, "xla"),
        ("gpu", {"dtype": "float32"}, "xla"),
        ("gpu", {"cap": 50.0}, "xla"),
        ("gpu", {"head_dim": 256}, "xla"),
    ],
)
def test_auto_is_the_kernel_of_the_platform(platform, changes, kernel):
    chosen = attention_kernels.choose("auto", platform=platform, **{**KERNEL, **changes})
    assert chosen == kernel
    assert attention_kernels.choose("xla", platform=platform, **{**KERNEL, **changes}) == "xla"


@pytest.mark.parametrize(
    ("setting", "platform", "changes", "match"),
    [
        ("flash", "tpu", {}, "attention is 'flash'; expected one of auto, xla"),
        ("splash", "cpu", {}, "attention is 'splash', which runs on a TPU.*'cpu'; expected 'xla'"),
        ("cudnn", "tpu", {}, "'cudnn', which runs on an NVIDIA GPU.*'tpu'"),
        ("splash", "tpu", {"dtype": "float64"}, "bfloat16 or float32, but it is float64"),
        ("cudnn", "gpu", {"dtype": "float32"}, "bfloat16 or float16, but it is float32"),
        ("cudnn", "gpu", {"cap": 50.0}, "attention_cap is 50.0"),
        ("cudnn", "gpu", {"head_dim": 256}, "head_dim .*256"),
    ],
)
def test_a_kernel_that_cannot_work_is_refused(setting, platform, changes, match):
    with pytest.raises(ValueError, match=match):
        attention_kernels.choose(setting, platform=platform, **{**KERNEL, **changes})


class Card(NamedTuple):
    compute_capability: str
    platform: str = "gpu"


@pytest.mark.parametrize(
    ("card", "kernel"), [("7.5", "xla"), ("8.0", "cudnn"), ("12.0", "cudnn"), ("gfx942", "xla")]
)
def test_older_cards_are_left_to_xla(monkeypatch, card, kernel):
    monkeypatch.setattr(jax, "local_devices", lambda: [Card(card)])
    assert attention_kernels.choose("auto", platform="gpu", **KERNEL) == kernel
    if kernel == "xla":
        with pytest.raises(ValueError, match=f"compute capability 8.0 or later, but .* has {card}"):
            attention_kernels.choose("cudnn", platform="gpu", **KERNEL)


class OldDevice(NamedTuple):
    device_kind: str  # all that JAX 0.10.0 tells


class Device(NamedTuple):
    device_kind: str
    platform: str


def test_the_platform_is_that_of_the_mesh():
    here = jax.default_backend()
    assert attention_kernels.platform() == here
    with mesh_lib.entered(mesh_lib.make({"data": 2})):
        assert attention_kernels.platform() == here
    old = {"TPU v5 lite": "tpu", "cpu": "cpu", "NVIDIA H200": here}
    devices = {OldDevice(kind): name for kind, name in old.items()} | {Device("new", "tpu"): "tpu"}
    for device, name in devices.items():
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert attention_kernels.platform() == name


def test_without_a_mesh_auto_asks_for_no_kernel_of_several_devices(monkeypatch):
    network = policies.TransformerNetwork(GEMMA)
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    assert jax.device_count() > 1
    assert network.attention_kernel("auto", "bfloat16", 4096) == "xla"
    assert network.attention_kernel("splash", "bfloat16", 4096) == "splash"
    with mesh_lib.entered(mesh_lib.make({"data": 2})):
        assert network.attention_kernel("auto", "bfloat16", 4096) == "splash"


def single():
    """Rows of one sequence each, of an odd width."""
    inside = jnp.arange(199) < jnp.array([[199], [150]])
    return Rows(inside, inside)


CUDNN = [(packed(1, 199), 37), (completions(), None), (single(), None)]


def cudnn(rows, window, dtype):
    arrays, weight = case(rows)
    attend = functools.partial(attention_kernels.cudnn, local=True, rows=rows, window=window)
    return attend, [jnp.asarray(x, dtype) for x in arrays], weight


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("rows", "window"), CUDNN)
def test_what_cudnn_is_asked_for_is_the_plain_path(rows, window, monkeypatch):
    kernel = jax.nn.dot_product_attention

    def plain_kernel(*args, implementation, **settings):
        assert implementation == "cudnn"
        return kernel(*args, **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain_kernel)
    attend, arrays, weight = cudnn(rows, window, jnp.float32)
    found = value_and_gradients(attend, arrays, weight)
    assert_equal_up_to(1e-5, found, expected(rows, arrays, weight, window=window))


@pytest.mark.parametrize(
    ("rows", "window", "call"),
    [(packed(1, 199), 37, "fmhaScaleBiasSoftmax"), (single(), None, "fmhaSoftmax")],
)
def test_cudnn_is_what_a_program_for_gpus_calls(rows, window, call, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    # Without a GPU there is no version of cuDNN to ask for.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    attend, arrays, weight = cudnn(rows, window, jnp.bfloat16)

    def loss(arrays):
        return (attend(*arrays) * weight.astype(jnp.bfloat16)).sum()

    program = jax.jit(jax.grad(loss)).trace(arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert f"__cudnn${call}(" in program and f"__cudnn${call}Backward(" in program
    # No scores by head; a mask only where there are segments or a window.
    assert "x4x199x199x" not in program and "x4x200x200x" not in program
    assert ("x1x200x200x" in program) == (window is not None)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize(("rows", "window"), CUDNN)
def test_cudnn_is_the_plain_path(rows, window):
    attend, arrays, weight = cudnn(rows, window, jnp.bfloat16)
    found = value_and_gradients(attend, arrays, weight)
    assert_equal_up_to(3e-2, found, expected(rows, arrays, weight, window=window))
