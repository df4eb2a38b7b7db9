"""A check of the compiler on the run's own program: one gradient, whole and in two parts.

The update adds the gradients of micro-batches in a scan. Some versions of libtpu lose contributions
to the gradient of a scattered embedding there (https://github.com/openxla/xla/issues/49143), and
nothing fails: the run learns from a wrong gradient.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from polgrad import _compilers
from polgrad.contract import Batch
from polgrad.training.scoring import split_micro, with_packing

LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}
"""The largest difference allowed, by the dtype of the network's products."""

# Some leaves have no gradient but rounding, such as the bias of a key. A leaf is measured against
# its own norm, and at least against this share of the norm of the whole gradient.
FLOORS = {"float32": 1e-2, "bfloat16": 1e-1}

_PASS = "--xla_disable_hlo_passes=while-loop-all-reduce-code-motion"


def wanted(setting: Literal["on", "off"] | None, platform: str) -> bool:
    """Whether a run compares the two gradients.

    Args:
      setting: the user's; None leaves it to the platform and the version of jaxlib.
      platform: of the devices, such as "tpu".
    """
    if setting is not None:
        return setting == "on"
    return platform == "tpu" or _compilers.fault(platform) is not None


def differences(
    programs, params: Any, batch: Batch, key, *, micro_batches: int, packing: bool, dtype: str
) -> Mapping[str, float] | None:
    r"""How far the gradient of the rows of a micro-batch is from that of a scan of two halves.

    :math:`\lVert a - b \rVert / \max(\lVert a \rVert, \lVert b \rVert, f \lVert g \rVert)` for the
    gradients a and b of a leaf, the gradient g of all leaves without the scan, and the floor f of
    the dtype. Because of the floor the loss of a small leaf cannot be seen: with bfloat16 products
    a leaf whose norm is below 0.3% of that of g cannot be judged, with float32 ones below 0.0001%.

    Args:
      programs: the run's `Programs`.
      params: parameters, as they lie on the mesh.
      batch: an optimiser batch, of two rows at least.
      key: of the update.
      micro_batches: parts of an update.
      packing: whether the update packs its rows.
      dtype: of the network's products.

    Returns:
      The relative difference by the leaf's name, NaN where only the scan gives NaN; None where g
      is 0 or not finite, so that another batch has to be looked at.
    """
    rows = _rows(batch, micro_batches)
    # What is chosen from the whole batch must not depend on the parts.
    rows = programs.selected(params, rows, key)
    whole, split = (_gradient(programs, params, rows, key, parts, packing) for parts in (1, 2))
    size, found = _compare(whole, split, FLOORS[dtype])
    if not 0 < float(size) < float("inf"):
        return None
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(p, simple=True, separator="."): float(x) for p, x in leaves}


def complaint(found: Mapping[str, float], dtype: str, platform: str) -> str | None:
    """One line that names the leaf of the largest difference and the cure; None where all agree.

    Args:
      found: what `differences` returned.
      dtype: of the network's products.
      platform: of the devices.
    """
    # A difference that is not a number is not below the limit either.
    apart = {name: x for name, x in found.items() if not x <= LIMITS[dtype]}
    if not apart:
        return None
    leaf = max(apart, key=lambda name: (math.isnan(apart[name]), apart[name]))
    bad = _compilers.fault(platform)
    if bad is not None:
        cure = f"another jaxlib than {_compilers.version()}, or XLA_FLAGS={bad.flag!r}"
    else:
        cure = (
            f"a newer libtpu (https://github.com/openxla/xla/issues/49143), or XLA_FLAGS={_PASS!r}"
        )
    return (
        f"the gradient of {leaf} is {found[leaf]:.2g} apart between one batch and the same batch "
        f"in two parts, expected at most {LIMITS[dtype]:g}: the compiler loses a part of it; "
        f"use {cure}, or --probe off to train all the same"
    )


@functools.partial(jax.jit, static_argnums=1)
def _rows(batch: Batch, micro_batches: int) -> Batch:
    """An even number of rows, of one micro-batch where that has two."""
    size = batch["weights"].shape[0] // micro_batches
    if size < 2:
        return jax.tree.map(lambda x: x[:2], batch)
    return jax.tree.map(lambda x: split_micro(x, micro_batches)[0][: size // 2 * 2], batch)


def _gradient(programs, params, rows: Batch, key, parts: int, packing: bool):
    packed = None
    if packing:
        rows, packed = with_packing(rows, parts)
    return programs.gradient(params, rows, key, micro_batches=parts, packed_rows=packed)


@functools.partial(jax.jit, static_argnums=2)
def _compare(whole, split, floor: float):
    """The norm of the whole gradient, and the relative difference of each leaf."""

    def norm(x):
        return jnp.linalg.norm(x.astype(jnp.float32))

    def difference(a, b):
        return norm(a - b) / jnp.maximum(jnp.maximum(norm(a), norm(b)), smallest)

    # Of `whole` alone: a NaN that only the scan makes must be found, not excuse the batch.
    total = norm(jnp.stack([norm(x) for x in jax.tree.leaves(whole)]))
    smallest = jnp.maximum(floor * total, jnp.finfo(jnp.float32).tiny)
    return total, jax.tree.map(difference, whole, split)
