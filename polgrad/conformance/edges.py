"""What a primitive returns for the worst inputs, found by calling it: `docs/guarantees.md`."""

import functools
import inspect
import operator
import typing
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polgrad.conformance import inputs
from polgrad.conformance.catalogue import Primitive, primitives
from polgrad.conformance.inputs import Situation

__all__ = ["COLUMNS", "Examination", "cells", "examinable", "examine"]

COLUMNS = (
    "nothing valid",
    "one valid",
    "equal rewards",
    "logp -inf",
    "stopped -inf",
    "both -inf",
    "NaN reward",
)
_EVERYWHERE = {"nothing valid": "nothing valid anywhere", "NaN reward": "all rewards NaN"}
# Rooms whose functions losses are made of: here gradients have to be finite too.
_DIFFERENTIABLE = (
    "ratios",
    "masking",
    "schedules",
    "advantages",
    "losses",
    "reward_models",
    "data",
)


class Examination(NamedTuple):
    """Everything that one compiled program says about a primitive.

    Attributes:
      situations: the ordinary one first, then the edges; then the same of a second draw.
      values: a result for each situation, computed under `vmap`.
      gradients: for each situation, of a weighted sum of the result, by argument; {} where the
        result is not made of numbers, or the room is not one that losses are made of.
      alone: the result of the ordinary situation, computed without `vmap`.
      low: the same from arguments in bfloat16.
    """

    situations: list[Situation]
    values: list
    gradients: list[dict[str, np.ndarray]]
    alone: object
    low: object

    @property
    def reached(self) -> tuple[str, ...]:
        """Arguments that a gradient reaches, in the ordinary situations."""
        ordinary = (0, len(self.situations) // 2)
        names = self.gradients[0]
        return tuple(n for n in names if any(np.any(self.gradients[i][n] != 0) for i in ordinary))


# These look at concrete numbers: a check, a fit by SciPy, tokens and scores in numpy.
_ON_THE_HOST = (
    "tabular.check_preference",
    "diagnostics.fit_entropy_law",
    "reward_models.comparison_input",
    "reward_models.preference_agreement",
    "reward_models.standardized_mean",
)


def examinable() -> tuple[Primitive, ...]:
    """The primitives that take arrays of jax and return arrays."""
    traced = (p for p in primitives() if p.name not in _ON_THE_HOST)
    return tuple(p for p in traced if _takes_arrays(p) and not _returns_function(p))


def _takes_arrays(primitive: Primitive) -> bool:
    return bool(inputs.draw(primitive, np.random.default_rng(0)).arrays)


def _returns_function(primitive: Primitive) -> bool:
    returned = inspect.signature(primitive.function).return_annotation
    return getattr(typing.get_origin(returned) or returned, "__name__", "") == "Callable"


def examine(primitive: Primitive, *, optional: Collection[str] = ()) -> Examination:
    """Calls a primitive in all its situations, in one compiled program."""
    draw = functools.partial(inputs.draw, primitive, optional=optional)
    examples = [draw(np.random.default_rng(seed)) for seed in (0, 1)]
    every = [s for e in examples for s in inputs.situations(primitive, e.arrays)]
    ordinary, settings = every[0].arrays, examples[0].settings
    floats = [n for n, x in ordinary.items() if x.dtype == np.float32]

    def call(arrays):
        return primitive.function(**arrays, **settings)

    def weighted(numbers, arrays):
        result = call(arrays | numbers)
        leaves = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(x * _weights(x)) for x in leaves), result

    def differentiated(arrays):
        numbers = {n: arrays[n] for n in floats}
        return jax.grad(weighted, has_aux=True)(numbers, arrays)

    def plain(arrays):
        return {}, call(arrays)

    outputs = jax.tree.leaves(jax.eval_shape(lambda: call(ordinary)))
    numeric = any(jnp.issubdtype(x.dtype, jnp.floating) for x in outputs)
    look = differentiated if numeric and _is_differentiable(primitive) else plain

    # Games are exact tables, in float32 or float64: nobody stores one in bfloat16.
    low_dtype = jnp.float32 if primitive.room == "tabular" else jnp.bfloat16

    @jax.jit  # one program: compiling is what this costs
    def everything(stacked, one):
        low = {n: jnp.asarray(x, low_dtype) if n in floats else x for n, x in one.items()}
        return jax.vmap(look)(stacked), call(one), call(low)

    stacked = {n: np.stack([s.arrays[n] for s in every]) for n in ordinary}
    (gradients, values), alone, low = jax.tree.map(np.asarray, everything(stacked, ordinary))
    split = [functools.partial(jax.tree.map, operator.itemgetter(i)) for i in range(len(every))]
    return Examination(every, [s(values) for s in split], [s(gradients) for s in split], alone, low)


def _is_differentiable(primitive: Primitive) -> bool:
    return primitive.room in _DIFFERENTIABLE


def _weights(x):
    return 1.0 + 0.1 * jnp.arange(x.size).reshape(x.shape)


# --- In words ---------------------------------------------------------------------------------


def cells(primitive: Primitive, found: Examination) -> dict[str, str]:
    """What the result is in each of COLUMNS, "" where there is no such situation."""
    half = len(found.situations) // 2
    known = {
        s.name: _cell(primitive, found, i, half) for i, s in enumerate(found.situations[:half])
    }
    # One number for all rows says nothing of the first one.
    if not any(_has_rows(x) for x in jax.tree.leaves(found.alone)):
        known |= {column: known.get(instead, "") for column, instead in _EVERYWHERE.items()}
    return {column: known.get(column, "") for column in COLUMNS}


def _cell(primitive: Primitive, found: Examination, index: int, half: int) -> str:
    """What the changed row (or entry) of the result is; for losses its gradient too."""
    rows = any(inputs.row_of(primitive, n) for n in found.situations[0].arrays)
    whole = found.situations[index].whole
    results = [
        [_at_row(x, rows, whole) for x in jax.tree.leaves(found.values[i])]
        for i in (index, index + half)
    ]
    texts = list(dict.fromkeys(_describe(*pair) for pair in zip(*results, strict=True)))
    text = " / ".join(texts) if len(texts) <= 3 else "finite"
    if primitive.room not in ("losses", "reward_models", "data") or not found.reached:
        return text
    gradients = [found.gradients[i][n] for i in (index, index + half) for n in found.reached]
    still = all(np.all(_at_row(g, rows, whole) == 0) for g in gradients)
    return text + (", no gradient" if still else "")


def _at_row(x: np.ndarray, rows: bool, whole: bool) -> np.ndarray:
    if not rows or not _has_rows(x):
        return x
    return x[0] if whole else x[(0,) * x.ndim]


def _has_rows(x: np.ndarray) -> bool:
    return x.ndim > 0 and x.shape[0] == inputs.ROWS


def _describe(x: np.ndarray, other: np.ndarray) -> str:
    """The one number that it is whatever was drawn, else that all are finite (or are not)."""
    both = np.concatenate([x.ravel(), other.ravel()])
    if both.dtype.kind == "f" and not np.all(np.isfinite(both)):
        kinds = [str(v) for v in (-np.inf, np.inf) if np.any(both == v)]
        return " and ".join(kinds + ["NaN"] * bool(np.any(np.isnan(both))))
    values = np.unique(both)
    if values.size and np.allclose(values, values[0], rtol=1e-5, atol=1e-6):
        value = values[0]
        # To the accuracy at which values count as one: how much less than 1e-6 differs by compiler.
        return str(bool(value)) if both.dtype == bool else f"{np.round(value, 6) + 0.0:.4g}"
    return "True or False" if both.dtype == bool else "finite"
