"""The shapes of a run's batches, and an algorithm traced on them before anything is computed."""

import pathlib
import traceback
from typing import Any

import jax
import jax.numpy as jnp

import polgrad
from polgrad import _outside, _user_files
from polgrad.contract import Algorithm, Batch, Context, Outputs, Pair

ARGUMENTS = {
    "prepare": ("state", "experience", "key"),
    "loss": ("outputs", "batch"),
    "init": ("key",),
    "select": ("outputs", "batch", "key"),
    "observe": ("state", "metrics"),
}
"""What the loop calls an algorithm's functions with."""

TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What jax raises where Python asks for the value of an array that has none yet."""


def experience(
    algorithm: Algorithm,
    context: Context,
    *,
    prompts: int,
    prompt_length: int,
    preferences: bool = False,
) -> Batch:
    """Shapes and types of what `prepare` is given in a step.

    Args:
      algorithm: decides the layout and which further arrays there are.
      context: group size and longest completion.
      prompts: prompts, or rows of a data file, in a step.
      prompt_length: tokens of the longest prompt.
      preferences: an opponent's samples are compared by a preference, not by two rewards.

    Returns:
      `jax.ShapeDtypeStruct`s by name.
    """
    tokens = context.max_tokens
    sampled = algorithm.samples
    rows = (prompts * context.group_size,) if sampled else (prompts,)
    if not sampled and isinstance(algorithm.unit, Pair):
        rows = (prompts, len(algorithm.unit.roles))
    real = jnp.result_type(float)  # of 32 bits, or of 64 where jax is told so
    kinds = {
        "prompts": ((prompt_length,), jnp.int32),
        "prompt_lengths": ((), jnp.int32),
        "completions": ((tokens,), jnp.int32),
        "completion_lengths": ((), jnp.int32),
        "mask": ((tokens,), real),
    }
    kinds |= {f"{name}_logp": ((tokens,), real) for name in algorithm.policies}
    if algorithm.needs.values:
        kinds["values"] = ((tokens + 1,), real)
    if sampled:
        kinds |= {"behavior_logp": ((tokens,), real), "rewards": ((), real)}
        kinds |= {name: ((), jnp.bool) for name in ("valid", "stopped")}
        kinds |= {name: ((), jnp.uint32) for name in ("prompt_ids", "sample_ids")}
    if sampled and algorithm.collect.samples.versus is not None:
        kinds["preferences" if preferences else "opponent_rewards"] = ((), real)
    return {
        name: jax.ShapeDtypeStruct(rows + shape, dtype) for name, (shape, dtype) in kinds.items()
    }


UPDATES = ("loss", "gradient_norm", "entropy")
SAMPLED = ("reward_mean", "reward_std", "completion_length")
"""Metrics that `observe` finds in every step, and in every step that samples, besides the
algorithm's own and `kl_NAME`."""


def _check_units(algorithm: Algorithm, batch: Batch) -> None:
    """The batch has the axes of its unit, and each of its arrays can be split by units."""
    unit = algorithm.unit
    for name in ("mask", "weights"):
        if name not in batch:
            raise ValueError(f"prepare returned a batch without {name!r}")
    shape = batch["mask"].shape
    if len(shape) != 2 + unit.axes:
        names = ["units", *(["answers"] if unit.axes else []), "tokens"]
        raise ValueError(
            f"prepare returned a mask of shape {list(shape)}, expected [{', '.join(names)}] "
            f"for unit {type(unit).__name__}"
        )
    for name, x in batch.items():
        if x.shape[:1] != shape[:1]:
            raise ValueError(
                f"prepare returned {name} of shape {list(x.shape)}, expected {shape[0]} rows as in "
                "the mask: batches are split by units, and a number that all share is repeated"
            )


def _values(returned: Any, what: str, expected: str) -> tuple:
    """What a function returned, where it is a tuple of as many values as expected."""
    count = expected.count(",") + 1
    if isinstance(returned, tuple) and len(returned) == count:
        return returned
    came = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
    verb = "is" if what.endswith("which") else "returned"
    raise ValueError(f"{what} {verb} {came}, expected {expected}")


def check(algorithm: Algorithm, context: Context, name: str, *, preferences: bool = False) -> None:
    """Traces the algorithm's functions, so that a mistake is found before anything is computed.

    Args:
      algorithm: its functions.
      context: the sizes of the run.
      name: the algorithm, for messages.
      preferences: as in `experience`.

    Raises:
      ValueError: settings out of range, which the losses and advantages refuse; a function of the
        algorithm that reads what it did not require, or that takes other arguments.
    """
    _check_arguments(algorithm, name)
    algorithm.check()
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = experience(algorithm, context, prompts=2, prompt_length=1, preferences=preferences)

    def step(key, given):
        prepared = algorithm.prepare(algorithm.init(key), given, key)
        state, batch, metrics = _values(prepared, "prepare", "(state, batch, metrics)")
        _check_units(algorithm, batch)
        zeros = jnp.zeros(batch["mask"].shape)
        values = jnp.pad(zeros, [(0, 0)] * (zeros.ndim - 1) + [(0, 1)])
        outputs = Outputs(
            zeros,
            zeros if algorithm.needs.entropy else None,
            values if algorithm.needs.values else None,
        )
        lost = algorithm.loss(outputs, algorithm.select(outputs, batch, key))
        loss, measured = _values(lost, "loss", "(sum, metrics)")
        if jnp.shape(loss) != ():
            raise ValueError(
                f"loss returned shape {list(jnp.shape(loss))}, expected one number: the sum of the "
                "losses times the batch's weights"
            )
        for metric, pair in measured.items():
            _values(pair, f"loss has the metric {metric!r}, which", "(sum, count)")
        every = (*UPDATES, *(SAMPLED if algorithm.samples else ()))
        reported = {name: jnp.zeros(()) for name in (*every, *metrics, *measured)}
        reported |= {f"kl_{name}": jnp.zeros(()) for name in algorithm.policies}
        return loss, algorithm.observe(state, reported)

    try:
        jax.eval_shape(step, key, given)
    except ValueError as error:
        raise ValueError(reason(error)) from error
    # The functions are somebody's own: they may raise anything, and call sys.exit.
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"algorithm {name}: {_place(error)}{reason(error)}{_hint(error)}"
        ) from error


def _check_arguments(algorithm: Algorithm, name: str) -> None:
    """Refuses a function that cannot be called as the loop calls it."""
    for field, arguments in ARGUMENTS.items():
        told = _user_files.misfit(getattr(algorithm, field), field, arguments)
        if told:
            raise ValueError(f"algorithm {name}: {told}")


def reason(error: BaseException) -> str:
    """What an error of a traced function says, without what jax appends about its own frames.

    Args:
      error: what the function raised.

    Returns:
      A text; for a value that is not there while jax traces, what to write instead.
    """
    if isinstance(error, KeyError):
        return f"the batch has no {error}"
    if isinstance(error, TRACED):
        return (
            "Python's if, while, and, or, int(), float() and indexing by a condition need a value, "
            f"and an array has none while jax traces ({type(error).__name__}); use jnp.where"
        )
    if isinstance(error, (ValueError, TypeError, AttributeError)):
        return str(error).partition("\n---")[0]
    return _outside.reason(error)


def _place(error: BaseException) -> str:
    """File and line where an error was raised, outside of jax, and outside of libraries if it can be."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jax/" not in f.filename]
    libraries = (str(pathlib.Path(polgrad.__file__).parent), "/site-packages/")
    theirs = [f for f in frames if not any(place in f.filename for place in libraries)]
    frames = theirs or frames
    return f"{pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""


def _hint(error: BaseException) -> str:
    """What to do about outputs and arrays that are there only where they are asked for."""
    if isinstance(error, KeyError) or "NoneType" in str(error):
        return (
            "; outputs.entropy and outputs.values are there only where the algorithm's `needs` has "
            "them, and NAME_logp only where its `policies` has NAME"
        )
    return ""
