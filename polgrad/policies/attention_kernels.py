"""Attention of whole sequences through the kernels of accelerators.

XLA's plain attention makes all `T x S` scores of every head; these kernels make them a block at a time
and never hold them, in the backward pass neither.

`splash`, for TPUs, is the Pallas kernel that comes with JAX: grouped heads, segments, windows and the cap
on scores; blocks that no query may see are skipped. `cudnn`, for NVIDIA GPUs, is cuDNN's flash attention
through `jax.nn`: bfloat16 and float16, no cap. Rows that hold one sequence each, padded on the right,
need nothing but causality. For any others JAX hands cuDNN the mask as a bias: one `T x S` array a
row (not a head) is kept, and its gradient, which nobody reads, made.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from polgrad.policies.sharding import BATCH_AXES, HEAD_AXIS, auto_axes

SETTINGS = ("auto", "xla", "cudnn", "splash")
_PLATFORMS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
_DTYPES = {"splash": ("bfloat16", "float32"), "cudnn": ("bfloat16", "float16")}
# Rows below this many tokens are left to XLA: a kernel would pad them to as many.
_SHORT = 128
# A block of the TPU kernel is a multiple of its 128 lanes; large ones run best.
_BLOCKS = (512, 256, 128)


class Rows(NamedTuple):
    """What the queries of each row see: earlier keys of their own non-zero segment.

    Attributes:
      queries: segment of each query `[B, T]`; 0 is padding. Bool where a row is one sequence, with
        padding behind it alone.
      keys: segment of each key `[B, S]`.
      offset: static; query `t` lies at index `t + offset` of the keys, and sees none behind it.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]
    offset: int = 0

    def mask(self, *, causal: bool = True, window: int | None = None) -> Bool[Array, "B 1 T S"]:
        """The same as a mask; with a window, a query sees that many keys, its own included."""
        same = self.queries[:, :, None] == self.keys[:, None, :]
        mask = (same & (self.queries != 0)[:, :, None])[:, None]
        before = jnp.arange(self.queries.shape[1])[:, None] + self.offset
        before = before - jnp.arange(self.keys.shape[1])
        if causal:
            mask = mask & (before >= 0)
        return mask if window is None else mask & (before < window)


def platform() -> str:
    """Of the devices that the program being traced is for: the mesh's, or else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if hasattr(device, "platform"):
        return device.platform
    # JAX 0.10.0 knows the name of a mesh's devices alone.
    kind = "" if device is None else device.device_kind.lower()
    return next((name for name in ("tpu", "cpu") if name in kind), jax.default_backend())


def split_unseen() -> bool:
    """Whether arrays may be split over devices in a way that nothing tells: no mesh is entered."""
    return jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1


def choose(
    setting: str, *, platform: str, dtype, head_dim: int, cap: float | None, length: int
) -> str:
    """The kernel that a setting means: `"xla"`, `"cudnn"` or `"splash"`.

    Args:
      setting: one of these by name, or `"auto"`: the platform's kernel where it can take the rows and
        they are not short, else `"xla"`.
      platform: of the devices that run the program (see `platform`).
      dtype: of the queries.
      head_dim: width of a head.
      cap: on the scores, or None.
      length: keys in a row.

    Raises:
      ValueError: a kernel by name that cannot run there, or cannot take the rows.
    """
    if setting not in SETTINGS:
        raise ValueError(f"attention is {setting!r}; expected one of {', '.join(SETTINGS)}")
    kernel = _PLATFORMS.get(platform, "xla") if setting == "auto" else setting
    if kernel == "xla":
        return kernel
    obstacle = _obstacle(kernel, platform, jnp.dtype(dtype).name, head_dim, cap)
    if setting == "auto":
        return "xla" if obstacle or length < _SHORT else kernel
    if obstacle:
        raise ValueError(f"attention is {setting!r}, which {obstacle}; expected 'xla' or 'auto'")
    return kernel


def _obstacle(kernel, platform, dtype, head_dim, cap) -> str | None:
    """Why a kernel cannot be used, None where it can."""
    if _PLATFORMS.get(platform) != kernel:
        device = {"splash": "a TPU", "cudnn": "an NVIDIA GPU"}[kernel]
        return f"runs on {device}, but the program is for platform {platform!r}"
    if dtype not in _DTYPES[kernel]:
        return f"takes a compute dtype of {' or '.join(_DTYPES[kernel])}, but it is {dtype}"
    if kernel == "splash":
        return None
    unable = [c for c in map(_capability, jax.local_devices()) if not _is_ampere(c)]
    if unable:
        return f"takes compute capability 8.0 or later, but a GPU here has {unable[0]}"
    if cap is not None:
        return f"has no cap on attention scores, but the policy's attention_cap is {cap}"
    if head_dim % 8 or head_dim > 128:
        return f"takes a head_dim that 8 divides, up to 128, but it is {head_dim}"
    return None


def _capability(device) -> str | None:
    """What a GPU says it can do, NVIDIA's a number; None for any other device."""
    return getattr(device, "compute_capability", None) if device.platform == "gpu" else None


def _is_ampere(capability: str | None) -> bool:
    """Whether a GPU is of the generation that cuDNN's flash attention needs: no T4, V100 or AMD's."""
    return capability is None or bool(re.fullmatch(r"([89]|\d\d+)\.\d+", capability))


def cudnn(query, key, value, local, rows: Rows, *, window=None, scalar=None):
    """`attention.attention` of `rows` through cuDNN; `local` is the layer's entry of `local_layers`."""
    length, scale = query.shape[1], None if scalar is None else scalar**-0.5
    attend = functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
    # JAX has cuDNN train on even lengths alone.
    query, key, value, rows = _pad(query, key, value, rows, 2, 2)
    if rows.queries.dtype == bool and not rows.offset and window is None:
        # What lies behind a sequence is hidden from it by causality.
        return attend(query, key, value, is_causal=True)[:, :length]
    mask = rows.mask()
    if window is not None:
        mask = jnp.where(local, rows.mask(window=window), mask)
    return attend(query, key, value, mask=mask)[:, :length]


def splash(
    query,
    key,
    value,
    local,
    rows: Rows,
    *,
    window=None,
    scalar=None,
    cap=None,
    local_share=0.5,
    interpret=False,
):
    """`attention.attention` of `rows` through the TPU kernel.

    Args:
      query: `[B, T, H, K]`.
      key: `[B, S, N, K]`, where N divides H.
      value: `[B, S, N, K]`.
      local: the layer's entry of `local_layers`: the window is its alone.
      rows: what is seen. A query's index and segment must be those of a key, or the row be padding.
      window: keys that a query of a local layer sees, its own included.
      scalar: scores are divided by its square root (default: K).
      cap: of `attention.soft_cap` on the scores.
      local_share: share of the layers that are local, for what is estimated of a program.
      interpret: run the kernel's program on any platform, slowly.

    Returns:
      `[B, T, H, K]`; finite but meaningless at padding.
    """
    length, span = query.shape[1], key.shape[1]
    blocks = _block(length), _block(span)
    # The kernel has no scale of its own; bfloat16 would round the scale of every score alike.
    scaled = query.astype(jnp.float32) * (scalar or query.shape[-1]) ** -0.5
    query = scaled.astype(query.dtype)
    query, key, value, rows = _pad(query, key, value, rows, *blocks)
    segments = rows.queries.astype(jnp.int32), rows.keys.astype(jnp.int32)
    run = functools.partial(_run, blocks=blocks, offset=rows.offset, cap=cap, interpret=interpret)
    if window is None or window >= span:
        layer = functools.partial(run, window=None, share=1.0)
    else:
        near = functools.partial(run, window=window, share=local_share)
        far = functools.partial(run, window=None, share=1.0 - local_share)

        def layer(local, *arrays):
            return jax.lax.cond(local, near, far, local, *arrays)

    local = jnp.asarray(False if local is None else local, bool)
    return _over_mesh(layer, local, query, key, value, *segments)[:, :length]


def _block(length: int) -> int:
    """The largest block that pads a row by at most an eighth of it; the smallest where none does."""
    fits = (b for b in _BLOCKS if -length % b <= length // 8)
    return next(fits, _BLOCKS[-1])


def _pad(query, key, value, rows: Rows, queries: int, keys: int):
    """Queries and keys up to multiples of two numbers, with padding's segment."""

    def pad(x, multiple):
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, -x.shape[1] % multiple)
        return jnp.pad(x, widths) if widths[1][1] else x

    padded = Rows(pad(rows.queries, queries), pad(rows.keys, keys), rows.offset)
    return pad(query, queries), pad(key, keys), pad(value, keys), padded


def _run(local, query, key, value, queries, keys, *, blocks, offset, window, share, cap, interpret):
    """The kernel on arrays of one device whose lengths the blocks divide.

    `local` is settled by the window; `share` is that of the layers that come here.
    """
    # Not at the top: Pallas for TPUs takes an eighth of a second to load.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    del local
    (_, length, heads, _), span = query.shape, key.shape[1]
    if window is None:
        mask = kernels.CausalMask((length, span), offset)
    else:
        mask = kernels.LocalMask((length, span), (window - 1, 0), offset)
    block_q, block_kv = blocks
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )
    heads_first = "batch steps heads size -> batch heads steps size"
    query, key, value = (rearrange(x, heads_first) for x in (query, key, value))
    # `rehearsal.costs` reads this: a compiled kernel does not tell what it skips.
    scope = f"pairs_{_pairs(length, span, offset, window):.4f}_runs_{share:.4f}"
    with jax.named_scope(scope):
        mixed = jax.vmap(kernel)(query, key, value, kernels.SegmentIds(queries, keys))
    return rearrange(mixed, "batch heads steps size -> batch steps heads size")


def _pairs(length: int, span: int, offset: int, window: int | None) -> float:
    """Share of all pairs of a query and a key that a mask leaves, segments aside."""
    last = np.minimum(np.arange(length) + offset, span - 1)
    first = 0 if window is None else np.maximum(np.arange(length) + offset - window + 1, 0)
    return float((last - first + 1).sum() / (length * span))


def _over_mesh(layer, local, query, key, value, queries, keys):
    """`layer` on each device's share of the batch and of the heads: no partitioner splits a kernel."""
    auto = auto_axes()
    if math.prod(auto.values()) == 1:
        return layer(local, query, key, value, queries, keys)
    rows = tuple(name for name in BATCH_AXES if name in auto)
    if query.shape[0] % math.prod(auto[name] for name in rows):
        rows = ()
    heads = HEAD_AXIS if HEAD_AXIS in auto else None
    split = auto.get(HEAD_AXIS, 1)
    if query.shape[2] % split:
        heads = None
    elif key.shape[2] % split:
        # Each device needs the keys of its own query heads.
        copies = math.lcm(key.shape[2], split) // key.shape[2]
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    array, ids = PartitionSpec(rows or None, None, heads), PartitionSpec(rows or None)
    return jax.shard_map(
        layer,
        in_specs=(PartitionSpec(), array, array, array, ids, ids),
        out_specs=array,
        axis_names=set(auto),
        check_vma=False,
    )(local, query, key, value, queries, keys)
