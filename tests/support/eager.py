"""Compiled functions next to the same ones computed operation by operation.

    python eager.py reproducers      what some versions of jaxlib compile wrongly
    python eager.py losses           every loss at 40,000 rows, value and gradient
    python eager.py shapes FILE      ten functions of polgrad at 32,769 rows, compiled, into a file

It is a program too, because the flags of a compiler are those with which its process began. The
first two print JSON: the largest error of each case, in units of what is allowed.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

ROWS = (16_385, 32_769, 40_000)
DTYPES = ("float32", "float64")
# Relative to an entry and to the mean size of all: a wrong entry is wrong in its first digits.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


def error(got, expected) -> float:
    """The largest difference between two trees, in units of what is allowed for their dtype."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max((_error(np.asarray(g), np.asarray(e)) for g, e in pairs), default=0.0)


def _error(got, expected) -> float:
    if got.dtype.kind != "f":
        return np.inf if np.any(got != expected) else 0.0
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    sizes = np.abs(expected[np.isfinite(expected)])
    allowed = np.abs(expected) + (sizes.mean() if sizes.size else 0.0)
    allowed = TOLERANCE[str(got.dtype)] * allowed + np.finfo(got.dtype).tiny
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(got - expected) / allowed)
    return float(np.nan_to_num(off, nan=np.inf, posinf=np.inf).max(initial=0.0))


def compared(function, *arguments) -> float:
    """The error of a function that is compiled as one program."""
    got = jax.jit(function)(*arguments)
    with jax.disable_jit():
        expected = function(*arguments)
    return error(got, expected)


def random(seed: int, *shape: int, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --- What some versions compile wrongly -----------------------------------------------------------


def reproducers() -> dict[str, float]:
    """Squares of products over many rows; batched products with a constant matrix."""
    errors = {}
    for dtype in DTYPES:
        matrix = random(0, 3, 3, dtype=dtype)

        def square(rows, matrix=matrix):
            return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

        for rows in ROWS:
            errors[f"rows {rows} {dtype}"] = compared(square, random(1, rows, 3, dtype=dtype))

        def batched(x):
            return jnp.sum((x @ jnp.full_like(x, 0.37)) * x, axis=-1)

        for batch, size in ((5, 60), (400, 16)):
            x = random(2, batch, size, size, dtype=dtype)
            x = x @ x.swapaxes(1, 2)
            errors[f"batched {batch} x {size} {dtype}"] = compared(batched, x)
    return errors


# --- Ten functions of polgrad ---------------------------------------------------------------------


def shapes(dtype: str = "float32", rows: int = 32_769) -> dict:
    """Value and gradient of ten functions, compiled unless `jax.disable_jit` is on.

    At this number of rows 0.10.2 goes wrong first.
    """
    found = typical(rows, dtype).items()
    return {name: jax.jit(jax.value_and_grad(f))(*arguments) for name, (f, *arguments) in found}


def typical(rows: int, dtype: str) -> dict:
    """Functions with one number as their result, and arguments, by name."""
    from polgrad import advantages, divergences, losses, masking, selection
    from polgrad.policies import heads

    steps, draw = 4, functools.partial(random, dtype=dtype)
    x, logp, old = draw(0, rows, steps), -jnp.abs(draw(1, rows, steps)), draw(2, rows, steps)
    old = logp + 0.3 * old
    mask = jnp.asarray(np.random.default_rng(3).uniform(size=(rows, steps)) < 0.7, dtype)
    weights = masking.weights(mask, mode="token")
    features, matrix = draw(4, rows, 3), draw(5, 3, 5)
    targets = jnp.asarray(np.random.default_rng(6).integers(0, 5, rows))

    def log_likelihood(matrix):
        logp = jax.nn.log_softmax(features @ matrix)
        return -jnp.take_along_axis(logp, targets[:, None], axis=-1).mean()

    def relative(rewards):
        return jnp.sum(advantages.group_relative(rewards) * x)

    def clipped(logp):
        return masking.weighted_sum(losses.ppo_clip(logp, old, x), weights)

    def estimated(values):
        discounts = jnp.full_like(x, 0.9)
        return jnp.sum(advantages.gae(x, values, discounts, mask=mask) * logp)

    def preferred(chosen):
        return losses.dpo(chosen, old[:, 0]).mean()

    def squared(matrix):
        values = (features @ matrix).sum(-1)
        return losses.value_loss(values, x[:, 0]).mean()

    def diverging(matrix):
        return divergences.categorical_kl(features @ matrix, draw(7, rows, 5)).mean()

    def chunked(hidden):
        tokens = targets[: rows // steps * steps].reshape(-1, steps)
        head = draw(8, 3, 5)
        logp, entropy = heads.token_logp(hidden, head, tokens, chunk=rows // steps // 2)
        return (logp - 0.01 * entropy).mean()

    def covariant(logp):
        chosen = selection.covariance_top(logp, x, mask, fraction=0.01)
        return masking.weighted_sum(losses.kl_cov(logp, old, x, chosen), weights)

    return {
        "masked sums": (lambda x: jnp.sum(masking.sequence_sum(x, mask) ** 2) / rows, x),
        "log-softmax of products": (log_likelihood, matrix),
        "group_relative": (relative, draw(9, rows, steps)),
        "ppo_clip": (clipped, logp),
        "gae": (estimated, draw(10, rows, steps + 1)),
        "dpo": (preferred, logp[:, 0]),
        "value_loss": (squared, matrix),
        "categorical_kl": (diverging, matrix),
        "token_logp in chunks": (chunked, draw(11, rows // steps, steps, 3)),
        "covariance_top and kl_cov": (covariant, logp),
    }


# --- All losses -----------------------------------------------------------------------------------

# A matrix of rows by rows, or a sort that is unrolled where nothing is compiled.
FEWER: dict[str, int] = {}


def losses(rows: int = 40_000) -> dict[str, float]:
    """Value and gradient of each public loss."""
    from polgrad import _guarantees

    return {
        primitive.name: _loss(primitive, FEWER.get(primitive.name, rows))
        for primitive in _guarantees.examinable()
        if primitive.room == "losses"
    }


def _loss(primitive, rows: int) -> float:
    from polgrad import _examples

    sizes = {**_examples.SIZES, "...": rows, "B": rows, "X": rows}
    arrays, settings = _examples.draw(primitive, np.random.default_rng(0), sizes=sizes)
    numbers = {n: jnp.asarray(x) for n, x in arrays.items() if x.dtype == np.float32}
    others = {n: jnp.asarray(x) for n, x in arrays.items() if n not in numbers}

    def whole(numbers):
        result = primitive.function(**numbers, **others, **settings)
        leaves = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(x * _weights(x)) for x in leaves), result

    return compared(jax.grad(whole, has_aux=True), numbers)


def _weights(x):
    return 1.0 + jnp.sin(jnp.arange(x.size)).reshape(x.shape)


def main(what: str, file: str = "") -> None:
    """Does what the command line asks for."""
    if what == "shapes":
        found = shapes()
        leaves = {f"{name}/{i}": np.asarray(x) for name in found for i, x in enumerate(found[name])}
        np.savez(file, **leaves)
        return
    jax.config.update("jax_enable_x64", what == "reproducers")
    print(json.dumps({"reproducers": reproducers, "losses": losses}[what]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
