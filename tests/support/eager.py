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
    """Functions whose result is one number, with their arguments, by name."""
    from polgrad import advantages, divergences, losses, masking, selection
    from polgrad.policies import heads

    steps, draw = 2, functools.partial(random, dtype=dtype)
    x, logp = draw(0, rows, steps), -jnp.abs(draw(1, rows, steps))
    old, rewards, values = logp + 0.3 * draw(2, rows, steps), draw(3, rows, steps), draw(4, rows, 3)
    mask = jnp.asarray(np.random.default_rng(5).uniform(size=(rows, steps)) < 0.7, dtype)
    weights = masking.weights(mask, mode="token")
    matrix, features, others = draw(6, 3, 5), draw(7, rows, 3), draw(8, rows, 5)
    hidden = draw(9, rows // steps, steps, 3)
    targets = jnp.asarray(np.random.default_rng(10).integers(0, 5, (rows, 1)))
    tokens = targets[: rows // steps * steps].reshape(-1, steps)

    def masked(x, mask):
        return jnp.mean(masking.sequence_sum(x, mask) ** 2)

    def log_likelihood(matrix, features, targets):
        return -jnp.take_along_axis(jax.nn.log_softmax(features @ matrix), targets, axis=-1).mean()

    def relative(rewards, x):
        return jnp.sum(advantages.group_relative(rewards) * x)

    def clipped(logp, old, x, weights):
        return masking.weighted_sum(losses.ppo_clip(logp, old, x), weights)

    def estimated(values, x, mask):
        return jnp.sum(advantages.gae(x, values, jnp.full_like(x, 0.9), mask=mask) * x)

    def preferred(chosen, rejected):
        return losses.dpo(chosen, rejected).mean()

    def squared(matrix, features, targets):
        return losses.value_loss((features @ matrix).sum(-1), targets).mean()

    def diverging(matrix, features, others):
        return divergences.categorical_kl(features @ matrix, others).mean()

    def chunked(hidden, matrix, tokens):
        logp, entropy = heads.token_logp(hidden, matrix, tokens, chunk=1)
        return (logp - 0.01 * entropy).mean()

    def covariant(logp, old, x, mask, weights):
        chosen = selection.covariance_top(logp, x, mask, fraction=0.01)
        return masking.weighted_sum(losses.kl_cov(logp, old, x, chosen), weights)

    return {
        "masked sums": (masked, x, mask),
        "log-softmax of products": (log_likelihood, matrix, features, targets),
        "group_relative": (relative, rewards, x),
        "ppo_clip": (clipped, logp, old, x, weights),
        "gae": (estimated, values, x, mask),
        "dpo": (preferred, logp[:, 0], old[:, 0]),
        "value_loss": (squared, matrix, features, x[:, 0]),
        "categorical_kl": (diverging, matrix, features, others),
        "token_logp in chunks": (chunked, hidden, matrix, tokens),
        "covariance_top and kl_cov": (covariant, logp, old, x, mask, weights),
    }


# --- All losses -----------------------------------------------------------------------------------

FEWER = {
    "reward_models.info_nce": 2_000,  # a matrix of rows by rows
}


def losses(rows: int = 40_000) -> dict[str, float]:
    """Value and gradient of each public loss."""
    from polgrad.conformance import edges

    return {
        primitive.name: _loss(primitive, FEWER.get(primitive.name, rows))
        for primitive in edges.examinable()
        if primitive.room in ("losses", "reward_models")
    }


def _loss(primitive, rows: int) -> float:
    from polgrad.conformance import inputs

    sizes = {**inputs.SIZES, "...": rows, "B": rows, "X": rows}
    arrays, settings = inputs.draw(primitive, np.random.default_rng(0), sizes=sizes)
    numbers = {n: jnp.asarray(x) for n, x in arrays.items() if x.dtype == np.float32}
    others = {n: jnp.asarray(x) for n, x in arrays.items() if n not in numbers}

    def value(numbers):
        return primitive.function(**numbers, **others, **settings)

    def whole(numbers):
        result = value(numbers)
        leaves = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(x * _weights(x)) for x in leaves), result

    outputs = jax.tree.leaves(jax.eval_shape(value, numbers))
    numeric = any(jnp.issubdtype(x.dtype, jnp.floating) for x in outputs)
    if numeric:
        return compared(jax.grad(whole, has_aux=True), numbers)
    return compared(value, numbers)


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
