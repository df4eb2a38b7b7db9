"""Arguments to call any primitive with, ordinary ones and the worst, drawn from its annotations.

jaxtyping says the shapes and what is true or false, the names say the meaning: `logp` is not
positive, `policy` sums to one. So a new function is examined, tabulated and timed without being
registered anywhere; only an argument of an unknown kind has to be added here.
"""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polgrad._annotations import array_annotation, array_annotations
from polgrad.conformance.catalogue import Primitive

__all__ = ["ROWS", "SIZES", "Example", "Situation", "dims", "draw", "row_of", "situations"]

ROWS = 3  # of the axis that a function leaves open; no named axis has this size
SIZES = {
    "...": ROWS,
    "B": ROWS,
    "X": ROWS,
    "T": 4,
    "G": 4,
    "K": 4,
    "V": 5,
    "A": 4,
    "N": 4,
    "U": 2,
    "H": 2,
}
OTHER = 4  # of axes that SIZES does not name

# A plain number without a default, where _NUMBERS does not name it.
_ANY_NUMBER = {float: 0.5, int: 4}
# Numbers without a default that have another range, or that may be arrays too.
_NUMBERS: Mapping[str, object] = {
    "a": 0.2,
    "b": 0.1,
    "beta": 0.5,
    "buffer": 2,
    "c": 0.3,
    "count": 2,
    "discount": 0.875,
    "eta": 0.5,
    "flip_rate": 0.1,
    "inverse_step": 0.5,
    "label_smoothing": 0.1,
    "lambda_": 2.0,
    "length": 2,
    "margin": 0.25,
    "max_length": 4,
    "mode": "token",
    "policies": 3,
    "reference_weight": 0.25,
    "steps": 10,
    "tau": 0.25,
}
_DISTRIBUTIONS = {
    "behavior",
    "opponent",
    "policies",
    "policy",
    "positive",
    "prior",
    "probabilities",
    "reference",
    "responsibilities",
    "weights",
}
_SHARES = (
    "noise",
    "label_smoothing",
    "flip_rate",
    "win_rate",
    "success_rate",
    "probability",
    "target",
    "desirable",
)
_COUNTS = ("lengths", "count", "counts", "entropy", "reference_deviation", "kl")


class Example(NamedTuple):
    """What a primitive can be called with.

    Attributes:
      arrays: by argument name, in the order of the signature.
      settings: all else that it needs.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, object]


class Situation(NamedTuple):
    """One way in which the first row (or, without rows, the whole input) is not ordinary.

    Attributes:
      name: such as "nothing valid".
      arrays: all arguments.
      whole: what it does to the row is to be looked at in the whole row, not in one entry.
    """

    name: str
    arrays: dict[str, np.ndarray]
    whole: bool


def draw(
    primitive: Primitive,
    random: np.random.Generator,
    *,
    optional: Collection[str] = (),
    sizes: Mapping[str, int] = SIZES,
) -> Example:
    """Ordinary arguments: multiples of 1/8 where they are free, so exact in bfloat16 too.

    Args:
      primitive: what they are for.
      random: what they are drawn from.
      optional: arguments with a default that are drawn all the same, as `mask` and `valid` are.
      sizes: of the named axes, "..." for the open one.

    Raises:
      LookupError: for an argument that nothing is known of; it belongs into this module.
    """
    arrays, settings = {}, {}
    for parameter in inspect.signature(primitive.function).parameters.values():
        name, annotation = parameter.name, array_annotation(parameter.annotation)
        required = parameter.default is parameter.empty
        if required and name in _NUMBERS and float in typing.get_args(parameter.annotation):
            settings[name] = _NUMBERS[name]
        elif annotation is not None and (required or name in ("mask", "valid", *optional)):
            shape = _shape(annotation, sizes)
            if any(_kind(a) == "bool" for a in array_annotations(parameter.annotation)):
                arrays[name] = _indicator(_kind(annotation), shape, random)
            else:
                arrays[name] = _rounded(_value(name, annotation, shape, random))
        elif required:
            settings[name] = _other(primitive, parameter)
    return Example(arrays, settings)


def situations(primitive: Primitive, arrays: Mapping[str, np.ndarray]) -> list[Situation]:
    """The edges that the arguments allow, the ordinary case first."""
    shapes = dims(primitive.function)
    rows = {n: _row(shapes[n]) for n in arrays}
    first = {n: rows[n] + _first(shapes[n]) for n in arrays}
    return [
        Situation("ordinary", dict(arrays), True),
        *_masked_ones(arrays, rows),
        *_excluded_ones(arrays, first),
        *_rewarded_ones(arrays, rows, first),
    ]


def _masked_ones(arrays, rows):
    names = [n for n in arrays if n in ("mask", "valid")]
    if not names:
        return
    for title, kept in (("nothing valid", slice(0, 0)), ("one valid", slice(0, 1))):
        yield _changed(title, arrays, names, lambda n, k=kept: _masked(arrays[n], rows[n], k))
    yield _changed("nothing valid anywhere", arrays, names, lambda n: np.zeros_like(arrays[n]))


def _excluded_ones(arrays, first):
    current = [n for n in arrays if _is_logp(n) and not _is_stopped(n)]
    others = [n for n in arrays if _is_logp(n) and _is_stopped(n)]
    groups = {"logp": current, "stopped": others, "both": current + others}
    if not (current and others):
        del groups["both"]
    for whose, names in groups.items():
        # Beyond what exp holds, and beyond everything.
        for value in (-900.0, -np.inf) if names else ():
            title = f"{whose} {value:.0f}"
            yield _changed(
                title, arrays, names, lambda n, v=value: _filled(arrays[n], first[n], v), False
            )
    # Minus infinity wherever the mask is 0: it must not be seen.
    mask = arrays.get("mask")
    hidden = [n for n in current + others if mask is not None and arrays[n].shape == mask.shape]
    if hidden:
        yield _changed(
            "-inf under the mask", arrays, hidden, lambda n: np.where(mask > 0, arrays[n], -np.inf)
        )


def _rewarded_ones(arrays, rows, first):
    names = [n for n in arrays if n.endswith(("rewards", "metric"))]
    if not names:
        return
    if any(arrays[n].ndim for n in names):
        alike = "equal rewards", arrays, names
        yield _changed(*alike, lambda n: _filled(arrays[n], (*rows[n], Ellipsis), 0.5))
    yield _changed(
        "NaN reward", arrays, names, lambda n: _filled(arrays[n], first[n], np.nan), False
    )
    yield _changed("all rewards NaN", arrays, names, lambda n: np.full_like(arrays[n], np.nan))


def _changed(title, arrays, names, how, whole=True) -> Situation:
    changed = {n: how(n).astype(arrays[n].dtype) for n in names}
    return Situation(title, {**arrays, **changed}, whole)


def row_of(primitive: Primitive, name: str) -> tuple:
    """Index of the first row of an argument; () where it has no rows."""
    return _row(dims(primitive.function)[name])


# --- Values -----------------------------------------------------------------------------------


def dims(function: Callable) -> dict[str, str]:
    """The axes of a function's array arguments, by name, such as {"logp": "B T"}."""
    parameters = inspect.signature(function).parameters.values()
    annotations = {p.name: array_annotation(p.annotation) for p in parameters}
    return {n: a.dim_str for n, a in annotations.items() if a is not None}


def _is_logp(name: str) -> bool:
    return "logp" in name or "logratio" in name or "log_ratio" in name


def _is_stopped(name: str) -> bool:
    return any(part in name for part in ("behavior", "reference_", "teacher", "previous", "log_"))


def _open(dims: str) -> int | None:
    """Which axis counts rows, if any."""
    for axis, name in enumerate(dims.split()):
        if name in ("...", "B", "*B", "*X", "X"):
            return axis
    return None


def _row(dims: str) -> tuple:
    axis = _open(dims)
    return () if axis is None else (slice(None),) * axis + (0,)


def _first(dims: str) -> tuple:
    """Index of the first entry within a row."""
    return (0,) * (len(dims.split()) - len(_row(dims)))


def _filled(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def _masked(array, row, kept):
    array = array.copy()
    inside = array[row] if row else array
    if np.ndim(inside) == 0:
        array[row] = kept.stop > 0
        return array
    keep = np.zeros(inside.shape, array.dtype)
    keep[kept] = 1
    array[row or ...] = keep
    return array


def _shape(annotation, sizes) -> tuple[int, ...]:
    shape = []
    for axis in annotation.dim_str.split():
        name, _, more = axis.lstrip("*").partition("+")
        shape.append(sizes.get(name, OTHER) + int(more or 0))
    return tuple(shape)


def _kind(annotation) -> str:
    """ "bool", "int", "float" or, for what may be a number or a truth value, "float" too."""
    dtypes = str(annotation.dtypes)
    if "float32" in dtypes:
        return "float"
    return "bool" if "bool" in dtypes else "int"


def _indicator(kind, shape, random) -> np.ndarray:
    """Truth values, as such or as 0 and 1; the first of a row is true."""
    drawn = np.asarray(random.uniform(size=shape) < 0.7)
    if drawn.ndim:
        drawn[..., 0] = True
    return drawn if kind == "bool" else drawn.astype(np.float32)


def _value(name, annotation, shape, random) -> np.ndarray:
    if name == "key":
        return np.asarray(jax.random.key_data(jax.random.key(0)))
    if _kind(annotation) == "int":
        return random.integers(1, 4, shape).astype(np.int32)
    last = annotation.dim_str.split()[-1:]
    if name in ("preference", "other") and len(shape) > 1 and shape[-1] == shape[-2]:
        upper = np.triu(_eighths(random.uniform(0.125, 0.875, shape)), 1)
        lower = np.tril(1.0 - np.swapaxes(upper, -1, -2), -1)
        return (upper + lower + 0.5 * np.eye(shape[-1])).astype(np.float32)
    if name in _DISTRIBUTIONS and last and last[0] not in ("...", "*B"):
        size, total = shape[-1], max(16, 2 * shape[-1])
        counts = 1 + random.multinomial(total - size, [1 / size] * size, shape[:-1])
        return (counts / total).astype(np.float32)
    if name.startswith("log_") and name != "log_ratios" and last[0] in ("A", "N"):
        return np.asarray(jax.nn.log_softmax(random.normal(size=shape)), np.float32)
    return _eighths(_number(name, random.normal(size=shape), random))


def _number(name, normal, random):
    if "logratio" in name or "log_ratio" in name:
        return normal
    if "logp" in name or name.startswith("log_"):
        return -np.abs(normal) - 0.25
    if name.endswith("rewards") and name != "token_rewards":
        # Some functions want answers that are right or wrong: both, and one in between.
        return np.resize([1.0, 0.0, 0.5, 1.0], normal.shape) if normal.ndim else normal
    if name == "discounts":
        return np.full(normal.shape, 0.875)
    if name in _SHARES or "preference" in name or "fraction" in name:
        return random.integers(1, 8, normal.shape) / 8
    if name.endswith(_COUNTS):
        return 1.0 + np.abs(normal)
    return normal


def _eighths(x):
    return (np.round(np.asarray(x) * 8) / 8).astype(np.float32)


def _rounded(x: np.ndarray) -> np.ndarray:
    """As bfloat16 holds it, so that both formats see the same numbers."""
    return x.astype(jnp.bfloat16).astype(np.float32) if x.dtype == np.float32 else x


# --- What is no array -------------------------------------------------------------------------


def _other(primitive: Primitive, parameter: inspect.Parameter) -> object:
    name = parameter.name
    makers = {
        "chosen_gradient": lambda: jnp.array([1.0, 0.5]),
        "rejected_gradient": lambda: jnp.array([0.25, -1.0]),
        "divergence": _reverse_kl,
        "chosen": lambda: jnp.ones((4, 2)),
        "initial": lambda: jnp.ones((ROWS, 2)),
        "loss": lambda: lambda params: jnp.sum(params**2),
        "new": lambda: jnp.ones((4, 2)),
        "objective": lambda: lambda params: jnp.prod(params),
        "older": lambda: (jnp.zeros((4, 2)),),
        "pair_loss": _dpo,
        "params": lambda: jnp.array([1.0, -1.0]),
        "rankings": lambda: ((0, 1, 2), (2, 1, 0)),
        "state": lambda: _state(primitive),
        "rejected": lambda: jnp.zeros((4, 2)),
        "trajectories": lambda: jnp.zeros((4, 5, 2)),
        "states": lambda: jnp.arange(8.0).reshape(4, 2),
    }
    if name in _NUMBERS:
        return _NUMBERS[name]
    if name in makers:
        return makers[name]()
    if parameter.annotation in _ANY_NUMBER:
        return _ANY_NUMBER[parameter.annotation]
    raise LookupError(
        f"{primitive.name} needs {name}, of which polgrad/conformance/inputs.py knows nothing: annotate it "
        "with its shape, or add a value there"
    )


def _dpo():
    from polgrad.losses import dpo

    return dpo


def _reverse_kl():
    from polgrad.divergences import reverse_kl

    return reverse_kl


def _state(primitive: Primitive):
    from polgrad import running, schedules
    from polgrad.curricula import bandit, windows

    if primitive.name.startswith("curricula.bandit"):
        return bandit.init(4)
    if primitive.name.startswith("curricula.windows"):
        return windows.init(4, window=8)
    if primitive.room == "advantages":
        return running.exponential().init()
    return schedules.Coefficient(jnp.asarray(0.5))
